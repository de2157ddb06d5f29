"""What a run writes down: means, speed, the bits of each codebook, curves; and when it stops early."""

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from codeclm.model.cost import forward_flops_per_frame
from codeclm.model.shapes import DepthConfig
from codeclm.train import trackers
from codeclm.train.checkpoint import latest_checkpoint, load_state
from codeclm.train.cli import main
from codeclm.train.config import TrainConfig
from codeclm.train.config_file import read_config
from codeclm.train.corpora import Corpus
from codeclm.train.finetune_config import FINETUNE
from codeclm.train.loop import train
from codeclm.train.meter import flops_per_frame, peak_flops
from codeclm.train.new_model import new_model
from codeclm.train.normal import outside, unigram_bits
from codeclm.train.trainer import Trainer

from .training import SHAPE, SHORT, SIZE, assert_same_bits, metrics, run, state_of

pytestmark = pytest.mark.usefixtures("one_thread")
WHOLE = replace(SHAPE, depth=DepthConfig(**asdict(SHAPE.depth)))
LONGER = replace(SHORT, steps=25, evaluate_every=25, save_every=100, depth_fraction=1.0, track="none", model=WHOLE)


@pytest.fixture(scope="module")
def logged(store, codec, tmp_path_factory):
    """A finished run, and the numbers of each of its steps."""
    out, seen = tmp_path_factory.mktemp("logged"), []
    original = Trainer.train_step

    def take(self):
        seen.append(original(self))
        return dict(seen[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", take)
        run(store, codec, out, LONGER)
    return out, seen


def test_the_loss_that_is_logged_is_the_mean_of_the_codes_since_the_last_line(logged):
    out, seen = logged
    loss = metrics(out, "loss")
    assert list(loss) == [10, 20, 25]
    for first, last in ((0, 10), (10, 20), (20, 25)):
        codes = [step["codes"] for step in seen[first:last]]
        expected = np.average([step["loss"] for step in seen[first:last]], weights=codes)
        assert loss[last] == pytest.approx(expected, abs=1e-6)
    assert metrics(out, "bits_per_code")[25] == pytest.approx(loss[25] / math.log(2), abs=2e-6)


def test_a_line_says_how_fast_the_training_is_and_how_long_it_takes(logged):
    out, seen = logged
    names = ("frames_per_second", "codes_per_second", "mfu", "memory_mb", "waited_s", "left_s")
    values = {name: metrics(out, name) for name in names}
    assert all(list(found) == [10, 20, 25] for found in values.values())
    assert all(value > 0 for name in names[:4] for value in values[name].values())
    assert values["left_s"][25] == 0 < values["left_s"][20] < values["left_s"][10] * 3
    assert values["waited_s"][25] >= sum(step["waited_s"] for step in seen[20:]) - 1e-5


def test_the_arithmetic_of_a_frame_is_three_times_its_forward(store, codec, tmp_path):
    with Trainer(new_model(store, SHORT), codec, store, tmp_path / "run", SHORT) as trainer:
        length = min(32, round(float(store.num_frames[trainer.batches.indices].mean())))
        assert flops_per_frame(trainer) == 3 * forward_flops_per_frame(trainer.raw_model.config, length, 0.5)
    assert 1e8 < peak_flops(torch.device("cpu"), False) < 1e14


def test_the_bits_of_each_codebook_add_up_and_stand_beside_what_is_normal(logged, store):
    out, _ = logged
    bits, parts = metrics(out, "heldout_bits_per_second"), metrics(out, "heldout_bits_per_codebook")
    for step in (0, 25):
        assert store.codec.frame_rate * sum(parts[step]) == pytest.approx(bits[step], rel=1e-5)
    uniform, unigram = (metrics(out, f"{name}_bits_per_codebook") for name in ("uniform", "unigram"))
    assert list(uniform) == list(unigram) == [0] and uniform[0] == [math.log2(SIZE)] * 2
    assert parts[0] == pytest.approx(uniform[0], rel=0.2)


def test_the_unigram_is_what_counting_gives(store):
    training, heldout = list(range(10)), [10, 11]
    codes, targets = (np.concatenate([store.codes(i) for i in part]) for part in (training, heldout))
    for k, bits in enumerate(unigram_bits(Corpus(store, np.array(training), heldout, heldout, 1.0))):
        shares = [(np.sum(codes[:, k] == v) + 0.5) / (len(codes) + 0.5 * SIZE) for v in range(SIZE)]
        assert bits == pytest.approx(-np.mean(np.log2(shares)[targets[:, k]]))


def test_codebooks_outside_the_normal_band_are_named():
    assert outside([5.0, 8.0], [8.0, 8.0]) == ""
    assert (
        outside([9.0, 2.0], [8.0, 8.0]) == "above the unigram in codebook 0 and under 0.4 of the unigram in codebook 1"
    )


# --- trackers ---


def test_curves_are_drawn_in_tensorboard_where_it_is_installed(store, codec, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(store, codec, tmp_path / "run", replace(LONGER, track="auto", steps=20, evaluate_every=10))
    board = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert {"train/loss", "train/mfu", "heldout/heldout_bits_per_codebook/1"} <= set(board.Tags()["scalars"])
    drawn = {event.step: event.value for event in board.Scalars("train/loss")}
    assert drawn == pytest.approx(metrics(tmp_path / "run", "loss"), rel=1e-5)


def test_a_finished_run_that_is_started_again_draws_nothing(logged, store, codec, tmp_path):
    out = Path(shutil.copytree(logged[0], tmp_path / "run"))
    run(store, codec, out, replace(LONGER, track="auto"))
    assert not (out / "tensorboard").exists()


@pytest.mark.parametrize("track, package", [("wandb", "pip install wandb"), ("trackio", "pip install trackio")])
def test_a_tracker_that_is_not_installed_is_named_in_one_line(track, package, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=package):
        trackers.check_tracker(track)


# --- early stop ---

STILL = replace(
    SHORT, steps=40, evaluate_every=2, save_every=4, patience=3, track="none",
    optimizer=replace(SHORT.optimizer, learning_rate=1e-12),
)  # fmt: skip


def test_a_run_stops_after_as_many_evaluations_without_a_better_one_and_says_so(store, codec, tmp_path, caplog):
    caplog.set_level("INFO", "codeclm")
    train(new_model(store, STILL), codec, store, tmp_path / "run", STILL)
    state = load_state(latest_checkpoint(tmp_path / "run"))
    assert state["step"] == state["best_step"] + 3 * 2 == 8
    assert f"stopped at step {state['step']}, 3 evaluations after the best (--patience)" in caplog.messages[-1]
    before = metrics(tmp_path / "run", "heldout_bits_per_second")
    train(new_model(store, STILL), codec, store, tmp_path / "run", STILL)
    assert metrics(tmp_path / "run", "heldout_bits_per_second") == before
    train(new_model(store, STILL), codec, store, tmp_path / "run", replace(STILL, patience=4))
    assert load_state(latest_checkpoint(tmp_path / "run"))["step"] > state["step"]


def test_a_run_that_is_killed_stops_at_the_same_step(store, codec, tmp_path, monkeypatch):
    from .test_train_interrupted import Killed, die_at

    train(new_model(store, STILL), codec, store, tmp_path / "whole", STILL)
    last = load_state(latest_checkpoint(tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at(patch, last["step"] - 1)
        train(new_model(store, STILL), codec, store, tmp_path / "killed", STILL)
    train(new_model(store, STILL), codec, store, tmp_path / "killed", STILL)
    assert_same_bits(*(state_of(tmp_path / name, last["step"]) for name in ("whole", "killed")))
    assert load_state(latest_checkpoint(tmp_path / "killed"))["since_best"] == 3


def test_fine_tunes_stop_early_by_default_and_new_models_do_not():
    assert FINETUNE.patience > 0 == TrainConfig().patience


# --- config.json ---


def test_config_json_can_be_given_back_to_a_run(logged, store, codec, tmp_path):
    out, _ = logged
    assert read_config(out / "config.json", TrainConfig) == LONGER
    config = replace(read_config(out / "config.json", TrainConfig), steps=10)
    assert_same_bits(
        run(store, codec, tmp_path / "one", config), run(store, codec, tmp_path / "two", replace(LONGER, steps=10))
    )


def test_config_json_names_the_data_the_versions_and_the_command(logged, store):
    written = json.loads((logged[0] / "config.json").read_text())
    assert written["data"] == store.data_hash and written["versions"]["torch"] == torch.__version__
    assert written["command"]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c.update(stepz=3), "unknown setting 'stepz'; did you mean 'steps'?"),
        (lambda c: c["optimizer"].update(kind="sgd"), "choose one of adamw, muon"),
        (lambda c: c.update(steps=0), "each must be at least 1"),
        (lambda c: c["batch"].pop("heldout_seed"), "does not say batch.heldout_seed"),
        (
            lambda c: c.update(run="the training of a codec"),
            "is not the config.json of the training of a language model",
        ),
    ],
)
def test_a_config_that_is_not_whole_is_refused_in_one_line(logged, tmp_path, capsys, change, words):
    content = json.loads((logged[0] / "config.json").read_text())
    change(content)
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        main(["train", "store", "--out", str(tmp_path / "run"), "--config", str(tmp_path / "c.json")])
    line = capsys.readouterr().err.strip()
    assert words in line and "c.json" in line and "\n" not in line


def test_flags_count_for_more_than_the_config_file(logged, tmp_path, monkeypatch):
    from codeclm.train import cli

    calls = []
    monkeypatch.setitem(cli.VERBS, "train", recorded(cli.train, calls))
    main(["train", "store", "--out", "run", f"--config={logged[0] / 'config.json'}", "--steps", "7"])
    assert calls[0] == replace(LONGER, steps=7)


def recorded(verb, calls):
    from .test_readme import recorder

    found: list = []
    note = recorder(verb, found)

    def keep(*args, **kwargs):
        note(*args, **kwargs)
        calls.append(found[-1][1]["config"])

    keep.__signature__, keep.__annotations__, keep.__doc__ = note.__signature__, note.__annotations__, note.__doc__
    return keep
