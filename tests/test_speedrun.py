"""The speedrun: its parts on a tiny budget, with the real voice, codec and trainer."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from codeclm.model.shapes import DepthConfig, TransformerConfig
from codeclm.train.config import ModelConfig
from codeclm.train.recipes import speedrun

SMALL = ModelConfig(
    backbone=TransformerConfig(dim=32, num_layers=1, num_heads=2, num_kv_heads=2, ff_dim=64),
    depth=DepthConfig(dim=32, num_layers=1, num_heads=2, num_kv_heads=2, ff_dim=64),
)


def test_the_docstrings_of_python_are_hours_of_prose():
    found = speedrun.sentences()
    assert sum(len(text.split()) for text in found) > 2 * 60 * 150  # a voice says 150 words in a minute
    assert len(set(found)) == len(found) and found != sorted(found)
    assert all(text[0].isupper() and text[-1] in ".:" and not set(text) & set('`_()="0123456789') for text in found)


def test_a_run_in_pieces_counts_all_of_its_seconds(tmp_path: Path):
    (tmp_path / speedrun.SECONDS).write_text(json.dumps({"speech": 5.0}))
    with pytest.raises(KeyboardInterrupt), speedrun.timed(tmp_path, "speech"):
        raise KeyboardInterrupt
    with speedrun.timed(tmp_path, "tokens"):
        pass
    spent = speedrun.seconds(tmp_path)
    assert list(spent) == ["speech", "tokens"] and spent["speech"] > 5.0


def test_a_stopped_speedrun_says_in_one_line_that_it_goes_on(tmp_path: Path, monkeypatch, capsys):
    def stopped() -> list[str]:
        raise KeyboardInterrupt

    pytest.importorskip("hibari")
    monkeypatch.setattr(speedrun, "sentences", stopped)
    with pytest.raises(SystemExit) as ended:
        speedrun.main(tmp_path)
    assert ended.value.code == 130
    assert capsys.readouterr().err == f"codeclm: {tmp_path}: stopped; the same command goes on from there\n"


@pytest.mark.slow
def test_the_speedrun_makes_speech_tokens_a_model_a_sample_and_a_card_and_is_then_done(tmp_path: Path, capsys):
    pytest.importorskip("hibari")
    training = replace(speedrun.TRAINING, steps=2, evaluate_every=2, model=SMALL)
    speedrun.main(tmp_path, minutes=4.0, training=training)
    card = (tmp_path / speedrun.CARD).read_text()
    assert capsys.readouterr().out.endswith(card)
    bits = dict(re.findall(r"^\| ([a-z ]+) \| ([\d.]+) \|", card, re.MULTILINE))
    assert list(bits) == ["model", "bigram", "unigram", "raw codes"] and bits["raw codes"] == "2000.0"
    assert 1900 < float(bits["model"]) < 2100
    assert "more bits than the bigram" in card and "2 steps" in card
    assert (tmp_path / speedrun.SAMPLE).stat().st_size == 44 + 2 * 16_000 * (speedrun.PROMPT_S + speedrun.SAMPLE_S)
    before = (tmp_path / speedrun.SECONDS).read_text()
    speedrun.main(tmp_path)
    assert capsys.readouterr().out == card and (tmp_path / speedrun.SECONDS).read_text() == before
