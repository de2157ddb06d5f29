"""A fine-tune's settings are chosen by the hours of speech, and each one that is given wins; what it did is told."""

import json
import logging
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import codeclm
from codeclm.data import TokenStore
from codeclm.data.audio_out import save_audio
from codeclm.data.config import with_settings
from codeclm.inference.loading import save_model
from codeclm.inference.parsing import parse
from codeclm.train.by_hours import PRESETS, by_hours, hours_of, preset_for
from codeclm.train.cli import finetune, main
from codeclm.train.comparison import read, table
from codeclm.train.config import OptimizerConfig
from codeclm.train.finetune_config import FINETUNE, is_open


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: f"{preset.hours:g} h")
def test_a_preset_is_taken_at_its_hours(preset):
    config = by_hours(FINETUNE, preset.hours)
    assert (config.steps, config.copies) == (preset.steps, preset.copies)
    assert (config.batch.frames_per_batch, config.optimizer.learning_rate) == (preset.frames_per_batch, preset.rate)
    assert (config.input_dropout, config.dropout) == (preset.input_dropout, preset.dropout)
    with_adapters = by_hours(with_settings(FINETUNE, {"lora": {"rank": 4}}), preset.hours)
    assert with_adapters.optimizer.learning_rate == preset.lora_rate


def test_settings_lie_between_those_of_the_presets_around_and_end_with_the_last():
    for less, more in pairwise(PRESETS):
        middle = preset_for(math.sqrt(less.hours * more.hours))
        for name in (
            "steps",
            "frames_per_batch",
            "copies",
            "rate",
            "lora_rate",
            "input_dropout",
            "dropout",
            "heldout_share",
        ):
            low, high = sorted((getattr(less, name), getattr(more, name)))
            assert low <= getattr(middle, name) <= high
    assert preset_for(0.0) == preset_for(1e-3) == PRESETS[0] and preset_for(1e6) == PRESETS[-1]


def test_nothing_is_open_once_it_was_chosen_and_no_speech_takes_the_smallest():
    config = by_hours(FINETUNE, 0.0)
    assert config.steps == PRESETS[0].steps and by_hours(config, 1000.0) == config


@pytest.mark.parametrize(
    "flags, settings",
    [
        (["--steps", "320"], {"steps": 320}),  # the very default is a choice, too
        (["--copies", "8"], {"copies": 8}),
        (["--batch.frames-per-batch", "2048"], {"batch": {"frames_per_batch": 2048}}),
        (["--optimizer.learning-rate", "2e-4"], {"optimizer": {"learning_rate": 2e-4}}),
        (["--input-dropout", "0.1", "--dropout", "0"], {"input_dropout": 0.1, "dropout": 0.0}),
        (["--evaluate-every", "40", "--save-every", "80"], {"evaluate_every": 40, "save_every": 80}),
    ],
)
def test_what_is_given_wins_on_the_command_line_and_in_python(flags, settings):
    call = parse(finetune, "codeclm finetune", ["data", "--out", "run", *flags])
    on_the_line = call.keywords.get("config") or call.args[-1]
    for config in (on_the_line, with_settings(FINETUNE, settings)):
        chosen = by_hours(config, 1000.0)
        assert with_settings(chosen, settings) == chosen
        assert chosen != by_hours(FINETUNE, 1000.0)


def test_a_preset_is_told_in_one_line(caplog):
    caplog.set_level(logging.INFO)
    by_hours(replace(FINETUNE, optimizer=OptimizerConfig(1e-5)), 1.2)
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("1.20 h of speech: steps ")
    assert "learning rate" not in caplog.text and is_open(FINETUNE.steps)


def test_hours_are_those_of_audio_and_of_a_store_without_its_copies(make_codec, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        save_audio(tmp_path / f"audio/{number}.wav", 0.1 * rng.standard_normal(8000), 8000)
    codeclm.data.prepare(tmp_path / "audio", tmp_path / "tokens", make_codec(), copies=3)
    store = TokenStore(tmp_path / "tokens")
    assert len(store) == 9
    for data in (tmp_path / "audio", store, str(tmp_path / "tokens")):
        assert hours_of(data) * 3600 == pytest.approx(3.0, abs=0.02)
    assert hours_of(tmp_path / "audio/1.wav") * 3600 == pytest.approx(1.0)
    assert hours_of(tmp_path / "missing") == 0


def test_the_verb_compares_both_models_on_new_and_other_voices(make_model, make_codec, tmp_path, capsys):
    codec, rng = make_codec(), np.random.default_rng(0)
    save_model(make_model((0, 0, 0), codec=codec), codec, tmp_path / "base")
    for number in range(4):
        save_audio(tmp_path / f"voice/{number}.wav", 0.1 * rng.standard_normal(4000), 8000)
    save_audio(tmp_path / "other.wav", 0.1 * rng.standard_normal(8000), 8000)
    command = ["finetune", tmp_path / "voice", "--from", tmp_path / "base", "--out", tmp_path / "run", "--steps", "2"]
    main([*map(str, command), "--no-bf16", "--compare", f"somebody else={tmp_path / 'other.wav'}"])
    rows = read(tmp_path / "run")
    assert [row.name for row in rows] == ["new voice, held out", "somebody else"]
    out = capsys.readouterr().out
    assert table(rows) in out and f"{rows[1].after / rows[1].before - 1:+.1%}" in table(rows)
    for name, model in (("before", tmp_path / "base"), ("after", tmp_path / "run")):
        lm = codeclm.load(model, device="cpu")
        report = lm.evaluate(tmp_path / "other.wav", baseline_data=tmp_path / "voice", progress=False)
        assert getattr(rows[1], name) == pytest.approx(report.model.bits_per_second, rel=1e-6)
    written = (tmp_path / "run/comparison.json").stat().st_mtime_ns
    main([*map(str, command), "--no-bf16", "--compare", f"somebody else={tmp_path / 'other.wav'}"])
    assert (tmp_path / "run/comparison.json").stat().st_mtime_ns == written
    assert json.loads((tmp_path / "run/comparison.json").read_text())["identity"]["speech"].keys() == {
        "new voice, held out",
        "somebody else",
    }
