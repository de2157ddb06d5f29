"""train/optim.py and ema.py: which parameters learn how, and the average that is kept."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from codeclm.inference.loading import load_speech_lm
from codeclm.train.checkpoint import latest_checkpoint, load_tensors
from codeclm.train.config import OptimizerConfig
from codeclm.train.ema import Ema
from codeclm.train.identity import identity
from codeclm.train.new_model import new_model
from codeclm.train.optim import make_optimizer, rate_scale
from codeclm.train.trainer import Trainer

from .test_train_interrupted import Killed, die_at
from .training import SHAPE, SHORT, assert_same_bits, run

pytestmark = pytest.mark.usefixtures("one_thread")
WIDE = replace(
    SHORT,
    model=replace(SHAPE, backbone=replace(SHAPE.backbone, dim=32)),
)
MUON = replace(SHORT, ema_decay=0.9, optimizer=replace(SHORT.optimizer, kind="muon"))


def test_matrices_of_a_model_twice_as_wide_learn_half_as_fast_and_no_model_faster_than_the_rate(store, codec, tmp_path):
    assert rate_scale(OptimizerConfig(), 768) == pytest.approx(1 / 3)
    assert rate_scale(OptimizerConfig(), 64) == rate_scale(OptimizerConfig(rate_width=0), 768) == 1
    config = replace(WIDE, optimizer=replace(SHORT.optimizer, rate_width=16))
    with Trainer(new_model(store, config), codec, store, tmp_path / "run", config) as trainer:
        rate = trainer.train_step()["learning_rate"]
        matrices, rest = trainer.optimizer.param_groups
        assert matrices["lr"] == pytest.approx(rate / 2) and rest["lr"] == rate
        assert identity(trainer)["optimizer"]["rate_width"] == 16


def test_where_the_width_changes_nothing_a_run_of_an_earlier_version_is_the_same_run(store, codec, tmp_path):
    for width in (0, 256):
        config = replace(SHORT, optimizer=replace(SHORT.optimizer, rate_width=width))
        with Trainer(new_model(store, config), codec, store, tmp_path / "run", config) as trainer:
            assert identity(trainer)["optimizer"]["rate_width"] == 0


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_all_else(store):
    model = new_model(store, SHORT)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon, adamw = make_optimizer(model, OptimizerConfig(kind="muon", weight_decay=0.3)).parts
    by_muon, by_adamw = ({names[id(p)] for g in part.param_groups for p in g["params"]} for part in (muon, adamw))
    assert by_muon | by_adamw == set(names.values()) and not by_muon & by_adamw
    assert all(".blocks." in name and "norm" not in name for name in by_muon)
    assert {"backbone.blocks.0.down.weight", "depth_decoder.transformer.blocks.0.gate.weight"} <= by_muon
    assert {"head_0.weight", "depth_decoder.heads", "frame_embedding.weight"} <= by_adamw
    assert {group["weight_decay"] for group in muon.param_groups} == {0.3}


def test_a_run_with_muon_and_an_average_resumes_bit_for_bit(store, codec, tmp_path, monkeypatch):
    whole = run(store, codec, tmp_path / "whole", MUON)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at(patch, 7)
        run(store, codec, tmp_path / "killed", MUON)
    assert_same_bits(run(store, codec, tmp_path / "killed", MUON), whole)
    averages = [load_tensors(latest_checkpoint(tmp_path / name), "ema") for name in ("whole", "killed")]
    assert_same_bits(*averages)
    kinds = {key.split(".")[-1] for key in whole if key.startswith("optimizer.")}
    assert kinds == {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}


def test_what_is_kept_is_the_average_and_what_learns_is_not(store, codec, tmp_path):
    learned = run(store, codec, tmp_path / "run", replace(MUON, evaluate_every=12))
    average = load_tensors(latest_checkpoint(tmp_path / "run"), "ema")
    kept = load_speech_lm(tmp_path / "run/model").state_dict()
    for name, tensor in average.items():
        assert torch.equal(kept[name], tensor)
        assert not torch.equal(learned[name], tensor), name
    plain = run(store, codec, tmp_path / "plain", replace(MUON, ema_decay=0.0))
    assert_same_bits(learned, plain)  # the average changes nothing about what learns
    state = json.loads((latest_checkpoint(tmp_path / "run") / "state.json").read_text())
    assert state["run"]["ema_decay"] == 0.9


def test_the_average_forgets_the_first_weights_soon_and_then_follows_the_decay():
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    ema, expected = Ema(model, 0.5), model.weight.item()
    for step in range(1, 30):
        model.weight.data.fill_(step)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert float(ema.tensors["weight"]) == pytest.approx(expected, abs=1e-12)
    with ema.applied():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 29 and np.isclose(expected, 28, atol=0.1)
