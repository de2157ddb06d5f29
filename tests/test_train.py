"""train/loop.py: it learns what is there to learn, and resumes bit for bit.

The codes come from a source of known entropy (training.py).
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from codeclm.data.split import split_heldout
from codeclm.data.token_store import TokenStore
from codeclm.inference.config import EvaluateConfig
from codeclm.inference.evaluate.score import score_store
from codeclm.inference.loading import load, load_speech_lm
from codeclm.model.files import file_sha256
from codeclm.model.shapes import DepthConfig
from codeclm.model.transformer import Block
from codeclm.train.checkpoint import latest_checkpoint
from codeclm.train.config import BatchConfig, OptimizerConfig, TrainConfig
from codeclm.train.loop import Trainer, train
from codeclm.train.new_model import new_model
from codeclm.train.optim import make_optimizer
from codeclm.train.schedule import learning_rate

from .training import SHAPE, SHORT, SIZE, SOURCE, Source, assert_same_bits, draw, metrics, program, run

pytestmark = pytest.mark.usefixtures("one_thread")

# --- learning ---

LONG = replace(
    SHORT,
    steps=240,
    depth_fraction=1.0,
    evaluate_every=80,
    save_every=1000,
    batch=BatchConfig(frames_per_batch=1024, max_frames=64, heldout_share=0.1),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=10, weight_decay=0.0),
)


@pytest.fixture(scope="module")
def trained(make_store, codec, tmp_path_factory) -> Path:
    """A run that has seen enough of SOURCE."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    large = make_store(folder / "store", draw(SOURCE, [64] * 600, 1), codec)
    train(new_model(large, LONG), codec, large, folder / "run", LONG)
    return folder / "run"


@pytest.fixture(scope="module")
def fresh(make_store, codec, tmp_path_factory) -> tuple[TokenStore, list[np.ndarray]]:
    """Codes of SOURCE that no run has seen."""
    codes = draw(SOURCE, [64] * 300, 2)
    return make_store(tmp_path_factory.mktemp("fresh"), codes, codec), codes


@pytest.mark.slow
def test_training_lowers_the_loss_and_the_heldout_bits_and_keeps_the_best_weights(trained, codec):
    loss, heldout = metrics(trained, "loss"), metrics(trained, "heldout_bits_per_second")
    assert loss[240] < 0.7 * loss[10]
    assert list(heldout) == [0, 80, 160, 240] and heldout[240] < 0.7 * heldout[0]
    generator = load(trained)
    assert generator.codec.fingerprint == codec.fingerprint
    store = TokenStore(trained.parent / "store")
    _, indices = split_heldout(store, *LONG.batch.split)
    scores = score_store(generator.model, store, indices=indices, progress=False)
    bits = store.codec.frame_rate * scores.nll.sum() / scores.num_frames.sum() / math.log(2)
    assert bits == pytest.approx(min(heldout.values()), rel=1e-5)


@pytest.mark.slow
def test_a_model_reaches_the_entropy_of_its_source_and_never_goes_below(trained, fresh):
    store, codes = fresh
    scores = score_store(load_speech_lm(trained / "model"), store, progress=False)
    per_utterance = scores.nll.sum(axis=1) / math.log(2)
    possible = np.array([SOURCE.bits(row) for row in codes])
    frames = scores.num_frames.sum()
    assert possible.sum() / frames == pytest.approx(SOURCE.bits_per_frame, rel=0.03)  # the source is as it says
    excess = per_utterance - possible  # of the same codes: the noise of the source falls out
    standard_error = excess.std() * math.sqrt(len(excess))
    assert -4 * standard_error < excess.sum() < 0.05 * possible.sum()


def test_both_the_frame_and_its_past_are_used(trained, fresh):
    """Codebook 0 alone costs what its moves cost, codebook 1 given codebook 0 what its noise costs."""
    store, _ = fresh
    scores = score_store(load_speech_lm(trained / "model"), store, progress=False)
    coarse, finer = scores.nll.sum(axis=0) / scores.num_frames.sum() / math.log(2)
    moves = replace(SOURCE, faithful=1 - 1e-12).bits_per_frame
    assert coarse == pytest.approx(moves, rel=0.1) and finer == pytest.approx(SOURCE.bits_per_frame - moves, rel=0.1)


@torch.no_grad()
def test_wrong_shifts_between_the_codebooks_lose_to_the_right_one(trained, fresh):
    model, codes = load_speech_lm(trained / "model"), torch.from_numpy(np.stack(fresh[1])).transpose(1, 2)
    middle = range(2, 62)
    bits = {}
    for shift in range(-2, 3):
        finer = codes[:, 1, middle.start + shift : middle.stop + shift]
        shifted = torch.stack([codes[:, 0, middle.start : middle.stop], finer], dim=1)
        bits[shift] = float(model(shifted).nll.sum(dim=1).mean()) / math.log(2)
    assert min(bits, key=lambda shift: bits[shift]) == 0
    assert all(bits[shift] > bits[0] + 0.3 for shift in bits if shift)


def test_finetuning_on_another_source_lowers_its_heldout_bits(trained, make_store, codec, tmp_path):
    other = Source(moves=(0.3, 0.1, 0.5, 0.1), faithful=0.6)
    store = make_store(tmp_path / "store", draw(other, [64] * 80, 3), codec)
    config = replace(LONG, steps=60, evaluate_every=30, optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=5))
    train(load_speech_lm(trained / "model"), codec, store, tmp_path / "run", config)
    heldout = metrics(tmp_path / "run", "heldout_bits_per_second")
    assert heldout[60] < 0.85 * heldout[0]
    assert heldout[60] / store.codec.frame_rate < 1.1 * other.bits_per_frame


def test_codes_of_another_codec_are_refused(trained, store, make_codec, make_store, tmp_path):
    other = make_codec(num_codebooks=2, codebook_size=SIZE, seed=1)
    foreign = make_store(tmp_path / "foreign", draw(SOURCE, [9] * 9, 0), other)
    with pytest.raises(ValueError, match="foreign: holds tokens of codec"):
        Trainer(load_speech_lm(trained / "model"), other, foreign, tmp_path / "run", SHORT)


# --- resuming ---

KILL = """
step = loop.Trainer.train_step
def stop(self):
    if self.step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self)
loop.Trainer.train_step = stop
"""


@pytest.fixture(scope="module")
def uninterrupted(store, codec, tmp_path_factory) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    return run(store, codec, tmp_path_factory.mktemp("uninterrupted"))


@pytest.mark.slow
def test_a_run_killed_and_resumed_equals_an_uninterrupted_one_bit_for_bit(store, codec, uninterrupted, tmp_path):
    script = program(store, codec, tmp_path / "run", SHORT, KILL)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in sorted((tmp_path / "run").glob("step-*"))] == ["step-00000004"]
    assert_same_bits(run(store, codec, tmp_path / "run"), uninterrupted)


def test_a_half_written_newest_checkpoint_is_passed_over(store, codec, uninterrupted, tmp_path, caplog):
    caplog.set_level("INFO", "codeclm")
    run(store, codec, tmp_path)
    newest = tmp_path / "step-00000012"
    (newest / "model.safetensors").write_bytes((newest / "model.safetensors").read_bytes()[:-8])
    assert_same_bits(run(store, codec, tmp_path), uninterrupted)
    assert "step-00000012: passed over" in caplog.text and "resumed at step 8" in caplog.text


def test_a_finished_run_does_nothing_when_started_again(store, codec, uninterrupted, tmp_path):
    assert_same_bits(run(store, codec, tmp_path), uninterrupted)  # and the seed alone decides
    before = (tmp_path / "step-00000012" / "COMPLETE").stat().st_mtime_ns
    assert_same_bits(run(store, codec, tmp_path), uninterrupted)
    assert (tmp_path / "step-00000012" / "COMPLETE").stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def resumable(store, codec, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("resumable")
    run(store, codec, out, replace(SHORT, steps=4))
    return out


@pytest.mark.parametrize(
    "what, change",
    [
        ("model", {"model": replace(SHAPE, delays=(0, 1))}),
        ("batch", {"batch": replace(SHORT.batch, frames_per_batch=64)}),
        ("seed", {"seed": 1}),
    ],
)
def test_resuming_with_another_setting_is_refused_by_name(store, codec, resumable, what, change):
    with pytest.raises(ValueError, match=f"step-00000004: was made with another {what}; give another --out"):
        run(store, codec, resumable, replace(SHORT, **change))


def without_newer_settings(out: Path, forget: Callable[[dict], None]) -> None:
    """Change the newest checkpoint's record of its run into one of an earlier version."""
    checkpoint = latest_checkpoint(out)
    state = json.loads((checkpoint / "state.json").read_text())
    forget(state["run"])
    (checkpoint / "state.json").write_text(json.dumps(state))
    hashes = json.loads((checkpoint / "COMPLETE").read_text())
    hashes["state.json"] = file_sha256(checkpoint / "state.json")
    (checkpoint / "COMPLETE").write_text(json.dumps(hashes))


@pytest.mark.parametrize("group_size", [1, 2])
def test_a_run_that_an_earlier_version_began_goes_on_if_newer_settings_have_their_defaults(
    store, codec, resumable, tmp_path, group_size
):
    out = tmp_path / "run"
    shutil.copytree(resumable, out)

    def forget(run: dict) -> None:
        for name in ("codebook_dropout", "heldout_seed", "heldout_frames"):
            del run["batch"][name]
        del run["model"]["depth"]["group_size"]

    without_newer_settings(out, forget)
    depth = DepthConfig(**asdict(SHAPE.depth), group_size=group_size)
    config = replace(SHORT, steps=6, model=replace(SHAPE, depth=depth))
    if group_size == 1:
        run(store, codec, out, config)
        assert latest_checkpoint(out) == out / "step-00000006"
    else:
        with pytest.raises(ValueError, match=r"another model;.*depth.group_size was 1, is 2"):
            run(store, codec, out, config)


def test_what_is_held_out_does_not_depend_on_the_seed_of_the_run(store, codec, resumable, tmp_path):
    held = []
    for seed in (0, 1):
        config = replace(SHORT, seed=seed)
        with Trainer(new_model(store, config), codec, store, tmp_path / "run", config) as trainer:
            held.append(trainer.corpora[0].heldout)
    assert held[0] == held[1]


def test_a_run_that_held_out_by_an_earlier_rule_cannot_go_on(store, codec, resumable, tmp_path):
    """Its training would see what it was measured on."""
    shutil.copytree(resumable, tmp_path / "run")
    without_newer_settings(tmp_path / "run", lambda run: run["batch"].pop("heldout_by"))
    with pytest.raises(ValueError, match="heldout_by was utterance, is recording"):
        run(store, codec, tmp_path / "run", replace(SHORT, steps=6))


def test_an_evaluation_scores_no_more_frames_than_were_asked_for(store, codec, tmp_path):
    few = replace(SHORT, batch=replace(SHORT.batch, heldout_frames=60))
    with Trainer(new_model(store, few), codec, store, tmp_path / "run", few) as trainer:
        (corpus,) = trainer.corpora
        assert store.num_frames[corpus.heldout].sum() > 60 >= store.num_frames[corpus.scored].sum()
        bits, scored = trainer.evaluate(), corpus.scored
        scores = score_store(trainer.raw_model, store, EvaluateConfig(), scored)
    nats = float(scores.nll.sum() / store.num_frames[scored].sum())
    assert bits == pytest.approx(store.codec.frame_rate * nats / math.log(2))
    assert set(scored) < set(corpus.heldout)


def test_resuming_with_other_data_is_refused_by_name(make_store, codec, resumable, tmp_path):
    other = make_store(tmp_path / "other", draw(SOURCE, [20] * 20, 9), codec)
    with pytest.raises(ValueError, match="was made with another data; give another --out"):
        run(other, codec, resumable)


def test_broken_weights_stop_the_run_before_the_step(store, codec, resumable):
    trainer = Trainer(new_model(store, SHORT), codec, store, resumable, SHORT)
    assert trainer.restore() and trainer.step == 4
    trainer.raw_model.head_0.weight.data[0, 0] = float("nan")
    before = {name: tensor.clone() for name, tensor in trainer.raw_model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="step 4: the loss is nan.*step-00000004 is intact") as caught:
        trainer.train_step()
    assert "\n" not in str(caught.value) and trainer.step == 4
    for name, tensor in trainer.raw_model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(7.0), before[name].nan_to_num(7.0)), name
    assert latest_checkpoint(resumable) == resumable / "step-00000004"


# --- optimizer ---


def test_the_learning_rate_warms_up_and_falls_along_a_cosine():
    config = OptimizerConfig(learning_rate=2.0, final_share=0.1, warmup_steps=10, schedule="cosine")
    rates = [learning_rate(config, step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.2) and rates[4] == pytest.approx(1.0) and rates[9] == rates[10] == 2.0
    assert rates[60] == pytest.approx((2.0 + 0.2) / 2) and rates[110] == pytest.approx(0.2)
    assert all(earlier > later for earlier, later in zip(rates[10:], rates[11:], strict=False))
    assert learning_rate(config, 500, 110) == pytest.approx(0.2)
    assert learning_rate(OptimizerConfig(learning_rate=1.0, warmup_steps=0), 0, 1) == 1.0


def test_only_matrices_that_are_no_embedding_decay(store):
    model = new_model(store, SHORT)
    model.head_0.weight.requires_grad_(False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = make_optimizer(model, OptimizerConfig(weight_decay=0.3)).param_groups
    assert decayed["weight_decay"] == 0.3 and others["weight_decay"] == 0.0
    with_decay, without = ({names[id(p)] for p in group["params"]} for group in (decayed, others))
    assert with_decay | without == set(names.values()) - {"head_0.weight"} and not with_decay & without
    assert all("norm" in name or "embedding" in name for name in without)
    assert not any("norm" in name or "embedding" in name for name in with_decay)
    assert {"depth_decoder.heads", "depth_decoder.project.weight", "backbone.blocks.0.down.weight"} <= with_decay


# --- microbatches, and activations that are computed twice ---

DRAWN = replace(SHORT, dropout=0.2, input_dropout=0.1, steps=6)


def gradients_of_a_step(store, codec, out: Path, config: TrainConfig, step: int = 0) -> tuple[dict, dict]:
    """-> the metrics, and each gradient after clipping."""
    with Trainer(torch.nn.Module.double(new_model(store, config)), codec, store, out, config) as trainer:
        trainer.step = step
        metrics = trainer.train_step()
        return metrics, {n: p.grad.clone() for n, p in trainer.raw_model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("frames", [1, 32, 64, 96])
def test_microbatches_give_the_step_of_the_whole_batch(store, codec, tmp_path, frames):
    """4 rows become 4, 4 or 2 microbatches, or one of 3 rows and one of 1; frames and dropout are drawn."""
    parted = replace(DRAWN, batch=replace(DRAWN.batch, frames_per_microbatch=frames))
    with Trainer(new_model(store, parted), codec, store, tmp_path, parted) as trainer:
        assert [len(part.rows) for part in trainer.read_rows(0)] == {96: [3, 1], 64: [2, 2]}.get(frames, [1] * 4)
    metrics, whole = gradients_of_a_step(store, codec, tmp_path, DRAWN)
    parted_metrics, others = gradients_of_a_step(store, codec, tmp_path, parted)
    for name in ("loss", "gradient_norm", "codes"):
        assert parted_metrics[name] == pytest.approx(metrics[name], abs=1e-6)
    assert whole.keys() == others.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(others[name], gradient, rtol=0, atol=1e-9)


def test_a_run_goes_on_with_other_microbatches(store, codec, tmp_path):
    run(store, codec, tmp_path / "run", replace(DRAWN, steps=4, save_every=4))
    parted = replace(DRAWN, steps=4, batch=replace(DRAWN.batch, frames_per_microbatch=32))
    with Trainer(new_model(store, parted), codec, store, tmp_path / "run", parted) as trainer:
        assert trainer.restore() and trainer.step == 4


def saved_bytes(store, codec, out: Path, config: TrainConfig) -> int:
    """What a step's forward pass keeps for its backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with Trainer(new_model(store, config), codec, store, out, config) as trainer:
        (part,) = trainer.read_rows(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            trainer.loss(part)
    return sum(kept.values())


def test_activation_checkpointing_keeps_less_and_changes_no_gradient(store, codec, tmp_path):
    config = replace(DRAWN, model=replace(SHAPE, backbone=replace(SHAPE.backbone, num_layers=4)))
    twice = replace(config, activation_checkpointing=True)
    metrics, whole = gradients_of_a_step(store, codec, tmp_path, config)
    other_metrics, others = gradients_of_a_step(store, codec, tmp_path, twice)
    assert other_metrics["loss"] == pytest.approx(metrics["loss"], abs=1e-9)
    for name, gradient in whole.items():
        torch.testing.assert_close(others[name], gradient, rtol=0, atol=1e-9)
    assert saved_bytes(store, codec, tmp_path, twice) < 0.5 * saved_bytes(store, codec, tmp_path, config)
    model = new_model(store, twice)
    with Trainer(model, codec, store, tmp_path, twice):
        assert all(block.gradient_checkpointing for block in model.backbone.blocks)
    assert not any(block.gradient_checkpointing for block in model.modules() if isinstance(block, Block))
