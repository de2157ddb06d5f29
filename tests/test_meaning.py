"""The sentence on the number of `codeclm evaluate`: it says what the numbers say, and no more."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codeclm.inference.config import EvaluateConfig
from codeclm.inference.evaluate.meaning import FINE_TUNED, meaning
from codeclm.inference.evaluate.report import OTHER_HALF, Likelihood, LikelihoodReport, saved_interval

ROOT = Path(__file__).parent.parent


def report(
    ours: float, bigram: float, unigram: float, saved: tuple[float, float], source: str = OTHER_HALF
) -> LikelihoodReport:
    rows = [Likelihood(value, (value, value), value / 25, [2.0], value / 8) for value in (ours, unigram, bigram)]
    return LikelihoodReport(
        definition="", scope="all", num_codebooks=8, context="", precision="", model=rows[0], unigram=rows[1],
        bigram=rows[2], saved_interval=saved, baselines_from=source, raw_bits_per_second=2000.0, eos_nats=0.0,
        num_tokens=0, text_nats=0.0, num_utterances=50, num_frames=30_000, duration_s=1200.0, codec="", data_hash="",
        codec_fingerprint="", checkpoint_hash="",
    )  # fmt: skip


def said(*numbers: float, saved: tuple[float, float], source: str = OTHER_HALF) -> str:
    return meaning(report(*numbers, saved, source), "default")


def test_a_model_that_saves_bits_for_certain_knows_more():
    found = said(1256.5, 1728.3, 1872.6, saved=(0.26, 0.28), source="runs/tokens")
    assert found == (
        "The model knows more of this speech than counting which code follows which on runs/tokens: it needs 27.3 % "
        "fewer bits."
    ).replace(" %", "%")


def test_a_difference_that_may_be_chance_is_called_that():
    for ours, saved in ((1690.0, (-0.01, 0.02)), (1710.0, (-0.02, 0.01))):
        found = said(ours, 1700.0, 1800.0, saved=saved)
        assert "is as good as counting" in found and "0.6% may be chance" in found and "over 50 utterances" in found
        assert "new to the model" not in found and "finetune" not in found


def test_a_voice_that_counting_predicts_better_is_new_and_can_be_tuned_on():
    found = said(1778.0, 1700.0, 1800.0, saved=(-0.06, -0.03))
    assert found.startswith("This speech is new to the model: it needs 4.6% more bits than counting which code follows")
    assert OTHER_HALF in found and "how often each code occurs" not in found
    assert FINE_TUNED in found and found.endswith("codeclm finetune FOLDER --from default --out RUN")
    of_others = meaning(report(1778.0, 1700.0, 1800.0, (-0.06, -0.03)), None)  # cannot be tuned here
    assert found.startswith(of_others) and "Fine-tuning" not in of_others
    worse = said(1900.0, 1700.0, 1800.0, saved=(-0.13, -0.1))
    assert "11.8% more bits" in worse and "and more than counting how often each code occurs" in worse


def test_a_model_that_other_data_predicts_better_than_is_not_called_new_to_the_speech():
    found = said(1900.0, 1700.0, 1950.0, saved=(-0.13, -0.1), source="runs/tokens")
    assert found == (
        "The model knows less of this speech than counting which code follows which on runs/tokens: it needs 11.8% "
        "more bits; it was trained too little, or on other speech."
    )


def test_a_model_that_needs_as_many_bits_as_raw_codes_knows_nothing():
    for ours in (2000.0, 2007.8):
        found = said(ours, 1923.6, 1950.4, saved=(-0.05, -0.04))
        assert "knows nothing of this speech: it needs no fewer bits than codes that are all equally likely" in found
        assert f"({ours} and 2000.0 bits/s)" in found
        assert FINE_TUNED in found
    assert "knows nothing" in said(2100.0, 2200.0, 2300.0, saved=(0.01, 0.1))  # whatever counting needs


def test_counts_of_little_speech_are_called_little():
    short = replace(report(1600.0, 1900.0, 1950.0, (0.1, 0.2)), duration_s=20.0)
    assert f"on {OTHER_HALF}, 10 s, which is little: it needs 15.8% fewer bits" in meaning(short, "default")
    assert "little" not in meaning(replace(short, baselines_from="runs/tokens"), "default")


def test_the_figures_of_fine_tuning_are_those_of_its_page():
    page = (ROOT / "train/README.md").read_text()
    for figure in ("(-41.8 %)", "(-12 %)", "Five minutes of a voice"):
        assert figure in page
    assert "42 %" in FINE_TUNED and "12 %" in FINE_TUNED


def test_the_interval_of_the_share_saved_is_over_the_same_utterances():
    rng = np.random.default_rng(0)
    bigram = rng.gamma(4, 100, (40, 3))
    low, high = saved_interval(0.9 * bigram, bigram, EvaluateConfig())
    assert low == pytest.approx(0.1) and high == pytest.approx(0.1)  # apart, both vary much
    low, high = saved_interval(rng.permutation(bigram), bigram, EvaluateConfig())
    assert low < 0 < high
    coarse = saved_interval(bigram * [0.5, 1, 1], bigram, EvaluateConfig(scope="coarse"))
    assert coarse == pytest.approx((0.5, 0.5))
