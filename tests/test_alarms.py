"""train/alarms.py: a healthy run passes; every planted fault is found by the check that is there for it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from codeclm.model.lm import SpeechLM
from codeclm.train import alarms
from codeclm.train.alarms import CheckFailed, check
from codeclm.train.loop import train
from codeclm.train.new_model import new_model
from codeclm.train.trainer import Trainer

from .training import SHORT, SOURCE, assert_same_bits, draw

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = replace(SHORT, depth_fraction=1.0, batch=replace(SHORT.batch, frames_per_batch=256, max_frames=128))


@pytest.fixture(scope="module")
def speech(make_store, codec, tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("speech") / "store", draw(SOURCE, [60] * 20, 3), codec)


@pytest.fixture
def rings(speech, codec, tmp_path):
    """-> the names of the checks that fail, of a model."""

    def rings(model: SpeechLM | None = None, store=speech, plant=lambda trainer: None) -> list[str]:
        with Trainer(model or new_model(store, CONFIG), codec, store, tmp_path / "run", CONFIG) as trainer:
            plant(trainer)
            return [alarm.name for alarm in alarms.alarms(trainer) if alarm.problem]

    return rings


def test_a_healthy_run_passes_and_nothing_is_learned_or_written(speech, codec, tmp_path, caplog):
    caplog.set_level("INFO", "codeclm")
    model = new_model(speech, CONFIG)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    train(model, codec, speech, tmp_path / "run", replace(CONFIG, check=True))
    assert_same_bits(dict(model.state_dict()), before)
    assert sum(" pass " in f" {message}" for message in caplog.messages) == 6
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shift", [-1, 2])
def test_shifted_labels_are_found(rings, monkeypatch, shift):
    score = SpeechLM.score

    def shifted(self, contexts, steps, *options):
        return score(self, contexts, replace(steps, targets=torch.roll(steps.targets, -shift, dims=2)), *options)

    monkeypatch.setattr(SpeechLM, "score", shifted)
    assert "alignment" in rings()


def test_a_frozen_tensor_is_found(rings, speech):
    model = new_model(speech, CONFIG)
    model.backbone.blocks[0].down.weight.requires_grad_(False)
    assert rings(model) == ["gradients"]


def test_a_learning_rate_of_0_is_found(rings):
    def plant(trainer: Trainer) -> None:
        trainer.optimizer.param_groups[0]["rate_scale"] = trainer.optimizer.param_groups[1]["rate_scale"] = 0.0

    assert rings(plant=plant) == ["step"]


def test_a_first_loss_above_equal_probabilities_is_found(rings, speech):
    model = new_model(speech, CONFIG)
    model.head_0.weight.data.normal_(std=30.0)
    assert "first loss" in rings(model)


def test_held_out_speech_that_is_trained_on_is_found(rings, make_store, codec, tmp_path):
    codes = draw(SOURCE, [60] * 10, 3)
    assert rings(store=make_store(tmp_path / "twice", codes * 2, codec)) == ["duplicates"]


def test_codes_without_order_are_found(rings, make_store, codec, tmp_path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 4, (60, 2)) for _ in range(20)]
    assert rings(store=make_store(tmp_path / "noise", noise, codec)) == ["bigram"]


def test_a_failing_check_is_one_line(speech, codec, tmp_path):
    with Trainer(new_model(speech, CONFIG), codec, speech, tmp_path / "run", CONFIG) as trainer:
        trainer.raw_model.head_0.weight.data.normal_(std=30.0)
        with pytest.raises(CheckFailed, match=r"--check: \d of 6 checks fail \(first loss") as caught:
            check(trainer)
    assert "\n" not in str(caught.value)
