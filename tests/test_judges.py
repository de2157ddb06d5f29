"""The judges of generated speech: each tells good from bad, and gives the numbers of the package that it stands for."""

import re
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from codeclm.data.audio import load_audio
from codeclm.inference.config import EvaluateConfig
from codeclm.inference.evaluate.quality.packaged import INSTALL, PACKAGES, is_installed
from codeclm.inference.evaluate.quality.table import _perplexity
from codeclm.inference.evaluate.quality.texts import TextJudge, auto_bleu, distinct
from codeclm.inference.sound.manipulate import with_noise
from codeclm.model.pretrained import PROMPT

RATE = 16_000
ROOT = Path(__file__).parent.parent


def needs(judge: str) -> pytest.MarkDecorator:
    reason = f"{', '.join(PACKAGES[judge])}: not installed (see inference/evaluate/README.md)"
    return pytest.mark.skipif(not is_installed(judge), reason=reason)


def prompt() -> np.ndarray:
    return load_audio(PROMPT, RATE)


@pytest.mark.parametrize(
    ("text", "order", "expected"),
    [
        ("the cat the cat", 2, np.sqrt(2 / 3)),  # all four words again; two of three pairs
        ("The cat. The CAT!", 2, np.sqrt(2 / 3)),
        ("a a a", 2, 0.0),  # its two pairs share a word
        ("a a a a", 2, 1.0 * np.sqrt(2 / 3)),  # the first pair and the last
        ("a b c a", 1, 0.5),
        ("one two three four five", 2, 0.0),
        ("again again", 2, 0.0),
        ("", 2, 0.0),
    ],
)
def test_auto_bleu_is_the_share_that_occurs_again(text: str, order: int, expected: float):
    assert auto_bleu(text, order) == pytest.approx(expected, abs=1e-12)


def test_distinct_counts_different_word_pairs_over_all():
    assert distinct(["a b a b", "A b, c."]) == pytest.approx(3 / 5)
    assert distinct(["a b a b", "a b c"], 1) == pytest.approx(3 / 7)
    assert np.isnan(distinct(["a", ""]))


def test_perplexity_is_over_all_tokens_and_its_interval_holds_it():
    found = np.array([[10.0, 5], [3.0, 1], [0.5, 4]])
    value, low, high = _perplexity(found, EvaluateConfig())
    assert value == pytest.approx(np.exp(13.5 / 10)) and low < value < high
    assert _perplexity(found[:1], EvaluateConfig()) == pytest.approx((np.exp(2),) * 3)


@needs("similarity")
def test_the_embedding_is_the_one_that_resemblyzers_own_code_gives():
    from codeclm.inference.evaluate.quality.speaker import VoiceEncoder, windows

    with torch.inference_mode():
        mean = VoiceEncoder()(torch.from_numpy(np.stack(windows(prompt()[: 3 * RATE])))).mean(dim=0).numpy()
    found = mean / np.linalg.norm(mean)
    largest = [25, 173, 2, 102, 180, 148, 107, 157]  # by VoiceEncoder().embed_utterance, version 0.1.4
    expected = [0.21098, 0.20694, 0.20519, 0.19365, 0.17331, 0.17303, 0.17248, 0.17236]
    assert np.argsort(-found)[:5].tolist() == largest[:5]
    assert found[largest] == pytest.approx(expected, abs=2e-4)


@needs("similarity")
def test_a_voice_is_more_like_itself_than_like_a_higher_one_and_noise_is_like_nobody():
    from codeclm.inference.evaluate.quality.speaker import VoiceEncoder, similarity
    from codeclm.inference.sound.stretch import shift_pitch

    audio = prompt()
    encoder = VoiceEncoder()
    first, second = (encoder.embed(half, RATE) for half in np.array_split(audio, 2))
    higher = encoder.embed(shift_pitch(audio[len(audio) // 2 :], 6.0, RATE), RATE)
    noise = encoder.embed(0.1 * np.random.default_rng(0).standard_normal(2 * RATE), RATE)
    assert similarity(first, first) == pytest.approx(1.0)
    assert similarity(first, second) > 0.75 > similarity(first, higher) > similarity(first, noise)
    assert encoder.embed(np.zeros(RATE), RATE) is None and encoder.embed(np.zeros(0), RATE) is None
    quiet, quieter = (encoder.embed(gain * audio, RATE) for gain in (0.1, 0.02))
    assert similarity(quiet, quieter) > 0.999  # both are raised to one level


def test_of_a_pause_a_part_is_kept():
    pytest.importorskip("transformers")
    from codeclm.inference.evaluate.quality.speaker import without_pauses

    tone = np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE).astype(np.float32)
    found = without_pauses(np.concatenate([tone, np.zeros(2 * RATE, np.float32), tone]))
    assert len(found) / RATE == pytest.approx(2.2, abs=0.05)


@pytest.mark.slow
@needs("MOS")
def test_mos_falls_with_noise_and_hardly_with_a_short_clip_and_no_stub_is_left_behind():
    from codeclm.inference.evaluate.quality.mos import OpinionScore

    mos, audio, rng = OpinionScore(), prompt(), np.random.default_rng(0)
    clean, noisy = mos(audio, RATE), mos(with_noise(audio, 10, rng), RATE)
    assert 5 > clean > noisy + 1 > mos(0.1 * rng.standard_normal(3 * RATE), RATE) + 1 > 2
    assert mos(audio[: 3 * RATE], RATE) > clean - 0.7
    assert np.isnan(mos(np.zeros(RATE), RATE)) and np.isnan(mos(np.zeros(0), RATE))
    assert "torchaudio" not in sys.modules


@pytest.mark.slow
@needs("GenPPL")
def test_the_text_judge_prefers_a_sentence_to_its_words_in_every_other_order_that_is_tried():
    judge = TextJudge()
    nats, tokens = judge("The old farmer opened a window.")
    assert 4 < np.exp(nats / tokens) < 400 and judge("") == (0.0, 0)
    words = ["the", "old", "farmer", "opened", "a", "window"]
    for order in list(permutations(words))[100::200]:
        assert judge(" ".join(order))[0] > judge(" ".join(words))[0]


def test_the_versions_to_install_are_those_that_were_tried():
    pins = (ROOT / "constraints.txt").read_text().lower().splitlines()
    named = re.findall(r"[\w.-]+==[\d.]+", INSTALL.lower())
    assert len(named) == 4 and set(named) <= set(pins)
    makefile = (ROOT / "Makefile").read_text().lower()
    assert all(pin.partition("==")[0] in makefile for pin in named)
