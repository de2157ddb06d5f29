"""A run folder belongs to one run, of one kind, and to one process at a time; what it says of the run is true."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from codeclm.inference.evaluate.score import score_store
from codeclm.inference.loading import load, load_speech_lm, save_model
from codeclm.train import codec_trainer
from codeclm.train.checkpoint import latest_checkpoint
from codeclm.train.cli import main
from codeclm.train.codec import train_codec
from codeclm.train.config import LossConfig, OptimizerConfig, RunConfig, TrainConfig
from codeclm.train.finetune_config import FINETUNE
from codeclm.train.loop import Trainer, for_small_data, train
from codeclm.train.new_model import new_model

from .test_codec_training import TINY
from .test_train_interrupted import Killed, die_at
from .training import SHAPE, SHORT, SOURCE, draw, metrics, run

RATE = 16_000


@pytest.fixture(autouse=True)
def few_batches_to_fit(one_thread, monkeypatch):
    monkeypatch.setattr(codec_trainer, "FITTING_BATCHES", 2)


@pytest.fixture(scope="module")
def codec_folder(codec, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("codec") / "codec"
    codec.save(folder)
    return folder


@pytest.fixture(scope="module")
def trained(store, codec, tmp_path_factory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("trained")
    train(new_model(store, SHORT), codec, store, out, SHORT)
    return out


@pytest.fixture(scope="module")
def codec_run(tmp_path_factory) -> Path:
    """A finished run of a codec."""
    torch.set_num_threads(1)
    data, out = tmp_path_factory.mktemp("audio"), tmp_path_factory.mktemp("codec_run")
    for index in range(2):
        soundfile.write(data / f"{index}.wav", np.random.default_rng(index).uniform(-0.3, 0.3, 16_000), 8000)
    before, codec_trainer.FITTING_BATCHES = codec_trainer.FITTING_BATCHES, 2
    train_codec(data, out, replace(TINY, steps=1, save_every=1))
    codec_trainer.FITTING_BATCHES = before
    return out


def listing(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(args: list, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command -> the last line that it leaves on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(arg) for arg in args])
    assert caught.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


# --- model/ holds what was learned ---


def test_a_run_has_no_weights_before_it_has_learned_any_and_says_so(
    trained, store, codec, tmp_path, monkeypatch, capsys
):
    def killed(**changes: int) -> Path:
        out = tmp_path / f"run{changes}"
        with monkeypatch.context() as patch, pytest.raises(Killed):
            die_at(patch, 5)
            train(load_speech_lm(trained / "model"), codec, store, out, replace(SHORT, **changes))
        return out

    early = killed(evaluate_every=6, save_every=4)
    assert latest_checkpoint(early) == early / "step-00000004" and not (early / "model").exists()
    with pytest.raises(FileNotFoundError, match="this run has no weights yet"):
        load(early)
    line = refused(["generate", "--model", early, "--out", tmp_path / "a.wav", "--duration", "0.1"], capsys)
    assert line.startswith(f"codeclm: {early}: this run has no weights yet") and not (tmp_path / "a.wav").exists()
    later = killed(evaluate_every=2, save_every=4)
    found, start = (load_speech_lm(folder / "model").state_dict() for folder in (later, trained))
    assert any(not torch.equal(found[name], start[name]) for name in found)


def test_a_run_that_only_made_it_worse_keeps_its_best_step_and_says_so(trained, store, codec, tmp_path, caplog):
    caplog.set_level("INFO", "codeclm")
    config = replace(
        SHORT, steps=6, evaluate_every=2, optimizer=OptimizerConfig(learning_rate=0.5, warmup_steps=6, clip_norm=1e9)
    )
    out = train(load_speech_lm(trained / "model"), codec, store, tmp_path / "run", config)
    bits = metrics(tmp_path / "run", "heldout_bits_per_second")
    learned = {step: value for step, value in bits.items() if step}
    assert min(learned.values()) > bits[0]  # it did make it worse
    best = min(learned, key=lambda step: learned[step])
    scores = score_store(load_speech_lm(out), store, indices=heldout_of(store, codec, tmp_path), progress=False)
    found = store.codec.frame_rate * scores.nll.sum() / scores.num_frames.sum() / np.log(2)
    assert found == pytest.approx(learned[best], rel=1e-5)
    says = f"held-out speech: {bits[0]:.1f} bits/s before, {learned[best]:.1f} at step {best}: no step"
    assert says in caplog.text and "is better than the start" in caplog.text


def heldout_of(store, codec, tmp_path) -> list[int]:
    with Trainer(new_model(store, SHORT), codec, store, tmp_path / "look", SHORT) as trainer:
        return trainer.corpora[0].heldout


def test_a_run_ends_with_what_it_did_to_the_heldout_speech(store, codec, tmp_path, caplog):
    caplog.set_level("INFO", "codeclm")
    run(store, codec, tmp_path, SHORT)
    bits = metrics(tmp_path, "heldout_bits_per_second")
    says = (
        f"held-out speech: {bits[0]:.1f} bits/s before, {bits[12]:.1f} at step 12 ({1 - bits[12] / bits[0]:.1%} less)"
    )
    assert caplog.messages[-1] == says
    caplog.clear()
    run(store, codec, tmp_path, SHORT)  # nothing is left to do: the same is known from the checkpoint
    assert caplog.messages[-1] == says


# --- one run ---


@pytest.mark.parametrize(
    "what, detail, change",
    [
        ("optimizer", "learning_rate was 0.01, is 0.02", {"optimizer": replace(SHORT.optimizer, learning_rate=0.02)}),
        ("optimizer", "betas", {"optimizer": replace(SHORT.optimizer, betas=(0.8, 0.95))}),
        ("loss", "z_loss was 0.0, is 0.001", {"loss": LossConfig(z_loss=1e-3)}),
        ("dropout", "was 0.0, is 0.1", {"dropout": 0.1}),
        ("input_dropout", "was 0.0, is 0.1", {"input_dropout": 0.1}),
        ("frame_dropout", "was 0.0, is 0.1", {"frame_dropout": 0.1}),
        ("depth_fraction", "was 0.5, is 1.0", {"depth_fraction": 1.0}),
        ("batch", "frames_per_batch was 128, is 64", {"batch": replace(SHORT.batch, frames_per_batch=64)}),
    ],
)
def test_going_on_with_other_settings_is_refused_by_name(trained, store, codec, what, detail, change):
    before = listing(trained)
    with pytest.raises(ValueError, match=f"was made with another {what}; give another --out, or the same") as caught:
        run(store, codec, trained, replace(SHORT, steps=16, **change))
    assert detail in str(caught.value) and "\n" not in str(caught.value)
    assert listing(trained) == before


def test_going_on_from_other_weights_is_refused(trained, store, codec, tmp_path):
    config = replace(SHORT, steps=4)
    train(load_speech_lm(trained / "model"), codec, store, tmp_path, config)
    other = new_model(store, replace(SHORT, seed=5))
    with pytest.raises(ValueError, match="was made with another start"):
        train(other, codec, store, tmp_path, config)


def test_going_on_with_the_model_that_the_run_itself_has_trained_is_fine(trained, store, codec, tmp_path, caplog):
    """In a notebook: the same cell again, with the object that learned."""
    caplog.set_level("INFO", "codeclm")
    model = load_speech_lm(trained / "model")
    train(model, codec, store, tmp_path, replace(SHORT, steps=4))
    train(model, codec, store, tmp_path, replace(SHORT, steps=8, evaluate_every=3, save_every=2))
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000008"
    assert "resumed at step 4" in caplog.text
    assert "steps was 4 and is 8: from here the learning rate follows another cosine" in caplog.text
    train(load_speech_lm(trained / "model"), codec, store, tmp_path, replace(SHORT, steps=9))  # what it began with


def test_config_json_says_what_the_model_is_and_what_it_began_with(trained, store, codec, tmp_path):
    train(load_speech_lm(trained / "model"), codec, store, tmp_path, replace(FINETUNE, steps=1, bf16=False))
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["run"] == "the training of a language model" and written["data"] == store.data_hash
    assert written["model"]["backbone"]["dim"] == SHAPE.backbone.dim and written["model"]["num_codebooks"] == 2
    assert written["input_dropout"] == 0.1 and len(written["start"]) == 64


# --- one process ---

LOCKED = """
import sys, time
from codeclm.train.cli import main
from codeclm.train.loop import Trainer
step = Trainer.train_step
def slow(self):
    time.sleep(0.2)
    return step(self)
Trainer.train_step = slow
main(sys.argv[1:])
"""


def wait_for(path: Path, process: subprocess.Popen) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < until, process.stderr and process.stderr.read()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused_and_the_first_goes_on(
    trained, store, codec_folder, tmp_path, capsys
):
    (tmp_path / "script.py").write_text(LOCKED)
    out = tmp_path / "run"
    sizes = ["--model.preset", "tiny", "--batch.frames-per-batch", "64", "--batch.max-frames", "32", "--no-bf16"]
    command = ["train", store.folder, "--codec", codec_folder, "--out", out, *sizes]
    first = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", *map(str, command), "--steps", "500", "--save-every", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        wait_for(out / "step-00000002", first)
        config = (out / "config.json").read_bytes()
        line = refused([*command, "--steps", "3", "--seed", "7"], capsys)
        assert line == f"codeclm: {out}: another run is writing here; wait for it or choose another folder"
        line = refused(["finetune", store.folder, "--from", trained, "--out", out], capsys)
        assert "another run is writing here" in line
        assert (out / "config.json").read_bytes() == config
        assert first.poll() is None
        first.send_signal(signal.SIGTERM)
        _, err = first.communicate(timeout=200)
    finally:
        first.kill()
    assert first.returncode == 143 and "stopped and saved at step" in err
    main([str(arg) for arg in [*command, "--steps", "1"]])  # and then it is free again


def test_a_command_that_fails_before_it_wrote_anything_leaves_no_folder(store, tmp_path, capsys):
    refused(["train", store.folder, "--codec", tmp_path / "nothing", "--out", tmp_path / "new/run"], capsys)
    assert not (tmp_path / "new/run").exists()


# --- one kind ---


def test_a_folder_of_another_kind_is_refused_by_name_both_ways_round(trained, codec_run, store, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.3, 0.3, RATE), RATE)
    before = listing(trained), listing(codec_run)
    line = refused(["codec", "train", tmp_path / "a.wav", "--out", trained, "--steps", "1"], capsys)
    assert f"{trained}: holds the training of a language model (config.json), not the training of a codec" in line
    for verb in (["train", store.folder], ["finetune", store.folder, "--from", trained]):
        line = refused([*verb, "--out", codec_run, "--steps", "1"], capsys)
        assert f"{codec_run}: holds the training of a codec (config.json), not the training of a language model" in line
    line = refused(["patterns", store.folder, "--out", trained], capsys)
    assert "holds the training of a language model (config.json), not a pattern comparison" in line
    assert (listing(trained), listing(codec_run)) == before


def test_a_folder_that_holds_a_model_is_no_place_for_a_run(trained, codec, store, tmp_path, capsys):
    save_model(load_speech_lm(trained / "model"), codec, tmp_path / "model")
    before = listing(tmp_path)
    for place in (tmp_path / "model", tmp_path / "model/codec"):
        line = refused(["finetune", store.folder, "--from", tmp_path / "model", "--out", place], capsys)
        assert f"{place}: holds something that is no run (config.json)" in line
    assert listing(tmp_path) == before


def test_a_codec_run_goes_on_with_its_own_settings_only(codec_run, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.3, 0.3, 16_000), 8000)
    for change in ({"steps": 5}, {"learning_rate": 1e-3}, {"codec": replace(TINY.codec, dim=32)}):
        config = replace(TINY, **{"steps": 1, "save_every": 1, **change})
        with pytest.raises(ValueError, match="was made with other settings .*; give another --out, or the same ones"):
            train_codec(tmp_path / "a.wav", codec_run, config)
    train_codec(tmp_path / "a.wav", codec_run, replace(TINY, steps=1, save_every=7, log_every=3))


# --- settings ---


@pytest.mark.parametrize("verb", [["train"], ["finetune"], ["codec", "train"]], ids=" ".join)
def test_no_step_at_all_is_refused(verb, tmp_path, capsys):
    line = refused([*verb, tmp_path, "--out", tmp_path / "run", "--steps", "0"], capsys)
    assert "steps 0" in line and "must be at least 1" in line and not (tmp_path / "run").exists()


def test_finetune_has_no_option_for_a_shape_that_the_model_already_has(store, tmp_path, capsys):
    for option in ("--model.preset", "--model.text.layout"):
        with pytest.raises(SystemExit) as caught:
            main(["finetune", str(store.folder), "--out", str(tmp_path / "run"), option, "first"])
        assert caught.value.code == 2 and option in capsys.readouterr().err
    assert not hasattr(FINETUNE, "model") and issubclass(TrainConfig, RunConfig)


@pytest.mark.parametrize(
    "verb", [["train"], ["finetune"], ["codec", "train"], ["patterns"], ["tokenizers"]], ids=" ".join
)
def test_every_verb_that_trains_has_a_device(verb, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*verb, "--help"])
    assert "--device" in capsys.readouterr().out
    line = refused([*verb, tmp_path, "--out", tmp_path / "run", "--device", "gpu"], capsys)
    assert "device 'gpu' is unknown; choose one of auto, cpu, cuda, mps, or cuda:N" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused_and_the_processor_can_be_asked_for(store, codec, tmp_path):
    with pytest.raises(ValueError, match="device 'cuda' is not there on this machine"):
        run(store, codec, tmp_path / "run", replace(SHORT, device="cuda"))
    run(store, codec, tmp_path / "run", replace(SHORT, steps=1, device="cpu"))
    assert latest_checkpoint(tmp_path / "run") == tmp_path / "run/step-00000001"


def test_small_data_holds_out_recordings_whatever_their_copies(make_store, codec, tmp_path):
    def share(names: list[str]) -> float:
        store = make_store(tmp_path / str(len(names)), [np.zeros((3, 2), int)] * len(names), codec, names)
        return for_small_data(FINETUNE, store).batch.heldout_share

    assert share([f"voice/{i}~{copy}" for i in range(12) for copy in range(8)]) == 0.25  # three of twelve
    assert share([f"voice/{i}" for i in range(12)]) == 0.25
    assert share([f"long#{i}~{copy}" for i in range(6) for copy in range(8)]) == 0.5  # one recording, in pieces
    assert share([f"{i}" for i in range(1000)]) == FINETUNE.batch.heldout_share


def test_the_module_runs_as_a_program_for_accelerate_launch():
    found = subprocess.run([sys.executable, "-m", "codeclm.train.cli", "--help"], capture_output=True, text=True)
    assert found.returncode == 0 and "usage: codeclm" in found.stdout and "finetune" in found.stdout


def test_a_comparison_of_other_data_or_settings_is_not_shown_as_if_it_were_this_one(
    make_store, store, codec, tmp_path, monkeypatch
):
    from codeclm.train.compare_patterns import compare_patterns

    from .test_patterns import CONFIG

    monkeypatch.setattr("codeclm.train.compare_patterns.seconds_per_step", lambda trainer: 1.0)
    config = replace(CONFIG, patterns=("parallel",))
    first = compare_patterns(store, codec, tmp_path / "out", config)
    other = make_store(tmp_path / "other", draw(SOURCE, [20] * 20, 9), codec)
    before = listing(tmp_path / "out")
    for data, settings, what in (
        (other, config, "data"),
        (store, replace(config, minutes=2.5), "minutes"),
        (store, replace(config, patterns=("depth", "parallel")), "first pattern"),
        (store, replace(config, optimizer=OptimizerConfig(learning_rate=0.5)), "settings"),
    ):
        with pytest.raises(ValueError, match=f"results.json: is of another {what}; give another --out, or the same"):
            compare_patterns(data, codec, tmp_path / "out", settings)
    assert listing(tmp_path / "out") == before
    results = tmp_path / "out/results.json"
    content = json.loads(results.read_text())
    del content["identity"]["settings"]["batch"]["heldout_frames"]  # as before there was such a setting
    results.write_text(json.dumps(content))
    more = compare_patterns(store, codec, tmp_path / "out", replace(config, patterns=("parallel", "delay")))
    assert [row for row in more if row.pattern == "parallel"] == first and len(more) == 4
    shutil.copy(tmp_path / "other/store.json", tmp_path / "out/results.json")
    with pytest.raises(ValueError, match="results.json: is not what codeclm patterns writes"):
        compare_patterns(store, codec, tmp_path / "out", config)
