"""Ctrl-C and SIGTERM: what was learned is saved, one line says where, and the same command goes on from there."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from codeclm.data.audio_out import save_audio
from codeclm.train import checkpoint, codec_trainer
from codeclm.train.checkpoint import latest_checkpoint, load_tensors
from codeclm.train.codec import train_codec
from codeclm.train.codec_trainer import CodecTrainer
from codeclm.train.compare_patterns import compare_patterns
from codeclm.train.interruption import Interrupted, Interruption
from codeclm.train.loop import Trainer, train
from codeclm.train.new_model import new_model

from .test_codec_training import RATE, TINY, voice
from .test_patterns import CONFIG as PATTERNS
from .training import SHORT, SIZE, SOURCE, assert_same_bits, draw, metrics, run, state_of

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def a_shell_in_the_foreground(one_thread, monkeypatch):
    monkeypatch.setattr(codec_trainer, "FITTING_BATCHES", 2)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # training left none of its own
    assert signal.getsignal(signal.SIGTERM) == before[1]
    signal.signal(signal.SIGINT, before[0])


def raise_at(monkeypatch, step: int, number: int, trainer: type = Trainer) -> None:
    """The process sends itself a signal while it takes a step."""
    original = trainer.train_step

    def take(self, *batch):
        if self.step == step:
            os.kill(os.getpid(), number)
        return original(self, *batch)

    monkeypatch.setattr(trainer, "train_step", take)


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_bit_for_bit(store, codec, tmp_path, monkeypatch, number, status):
    whole = run(store, codec, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as caught:
        raise_at(patch, 6, number)
        run(store, codec, tmp_path / "run")
    assert caught.value.status == status
    assert str(caught.value) == (
        f"{tmp_path / 'run'}: stopped and saved at step 7 of 12; the same command goes on from there"
    )
    assert latest_checkpoint(tmp_path / "run") == tmp_path / "run/step-00000007"
    assert_same_bits(run(store, codec, tmp_path / "run"), whole)


COMMAND = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from codeclm.train.cli import main
from codeclm.train.loop import Trainer
step = Trainer.train_step
def stop(self):
    if self.step == 2:
        {signals}
    return step(self)
Trainer.train_step = stop
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "signals, status, says, saved",
    [
        (["SIGINT"], 130, "stopped and saved at step 3 of 4; the same command goes on from there", "step-00000003"),
        (["SIGTERM"], 143, "stopped and saved at step 3 of 4; the same command goes on from there", "step-00000003"),
        (["SIGINT", "SIGINT"], 130, "interrupted; run the same command again to go on", None),
    ],
    ids=str,
)
def test_the_command_says_in_its_last_line_where_it_stopped(store, codec, tmp_path, signals, status, says, saved):
    codec.save(tmp_path / "codec")
    sends = "; ".join(f"os.kill(os.getpid(), signal.{name})" for name in signals)
    (tmp_path / "script.py").write_text(COMMAND.format(signals=sends))
    sizes = ["--model.preset", "tiny", "--batch.frames-per-batch", "64", "--batch.max-frames", "32", "--no-bf16"]
    places = ["--codec", tmp_path / "codec", "--out", tmp_path / "run"]
    arguments = [tmp_path / "script.py", "train", store.folder, *places, "--steps", "4", *sizes]
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == status, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("codeclm: ") and last.endswith(says) and "Traceback" not in result.stderr
    found = latest_checkpoint(tmp_path / "run")
    assert (found and found.name) == saved
    assert not list((tmp_path / "run").glob(".*.partial"))


def test_a_run_stops_at_its_deadline_and_without_its_codec_keeps_the_model_alone(store, codec, tmp_path):
    whole, quiet = run(store, codec, tmp_path / "whole"), replace(SHORT, canary=0)
    with pytest.raises(Interrupted, match="stopped and saved at step 1 of 12"):
        train(new_model(store, quiet), None, store, tmp_path / "run", quiet, deadline=time.monotonic())
    train(new_model(store, quiet), None, store, tmp_path / "run", quiet)
    assert_same_bits(state_of(tmp_path / "run", 12), whole)
    assert (tmp_path / "whole/model/codec").is_dir() and not (tmp_path / "run/model/codec").exists()
    with pytest.raises(ValueError, match="without its codec cannot be heard: give canary 0"):
        train(new_model(store, SHORT), None, store, tmp_path / "heard", SHORT)


def test_a_thread_that_cannot_have_handlers_trains_all_the_same(store, codec, tmp_path):
    failed = []

    def work() -> None:
        try:
            run(store, codec, tmp_path / "run", replace(SHORT, steps=2))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed and latest_checkpoint(tmp_path / "run") == tmp_path / "run/step-00000002"


def test_a_signal_that_was_ignored_before_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGTERM)
            assert interruption.number == 0
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.number == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


# --- what is lost without a signal ---


class Killed(Exception):
    pass


def die_at(monkeypatch, step: int, trainer: type = Trainer) -> None:
    original = trainer.train_step

    def take(self, *batch):
        if self.step == step:
            raise Killed
        return original(self, *batch)

    monkeypatch.setattr(trainer, "train_step", take)


def test_slow_runs_are_saved_by_the_clock(store, codec, tmp_path, monkeypatch):
    config = replace(SHORT, save_every=1000, save_minutes=1e-9)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at(patch, 3)
        run(store, codec, tmp_path / "often", config)
    assert latest_checkpoint(tmp_path / "often") == tmp_path / "often/step-00000003"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at(patch, 3)
        run(store, codec, tmp_path / "never", replace(config, save_minutes=60.0))
    assert latest_checkpoint(tmp_path / "never") is None


def test_a_checkpoint_that_could_not_be_written_stops_the_run_at_a_later_step(store, codec, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("codeclm.train.trainer.save_checkpoint", fail)
    with pytest.raises(OSError, match="disk full"):
        run(store, codec, tmp_path / "run")
    assert latest_checkpoint(tmp_path / "run") is None


def test_a_checkpoint_holds_the_step_at_which_it_was_begun(store, codec, tmp_path, monkeypatch):
    """However many steps are taken before it is written."""
    slow = checkpoint.save_checkpoint

    def late(*arguments: object) -> Path:
        time.sleep(0.5)
        return slow(*arguments)

    monkeypatch.setattr("codeclm.train.trainer.save_checkpoint", late)
    run(store, codec, tmp_path / "run", replace(SHORT, steps=8, evaluate_every=100))
    fourth = load_tensors(tmp_path / "run/step-00000004", "model")
    monkeypatch.undo()
    with Trainer(new_model(store, SHORT), codec, store, tmp_path / "four", replace(SHORT, steps=8)) as trainer:
        for _ in range(4):
            trainer.train_step()
        four = trainer.raw_model.state_dict()
        assert all(torch.equal(four[name], tensor) for name, tensor in fourth.items())


def test_a_resumed_run_writes_no_step_down_twice(store, codec, tmp_path, monkeypatch):
    config = replace(SHORT, steps=40, evaluate_every=10, save_every=15)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at(patch, 25)
        run(store, codec, tmp_path / "run", config)
    log = tmp_path / "run" / "metrics.jsonl"
    assert list(metrics(tmp_path / "run", "loss")) == [10, 20]
    log.write_text(log.read_text() + '{"step": 1')  # killed while it wrote
    run(store, codec, tmp_path / "run", config)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [10, 20, 30, 40]
    assert [line["step"] for line in lines if "loss" not in line] == [0, 10, 20, 30, 40]
    run(store, codec, tmp_path / "whole", config)
    resumed, whole = (metrics(tmp_path / name, "loss") for name in ("run", "whole"))
    assert resumed.pop(20) != whole.pop(20)  # the mean since the line before, or since the process began
    assert resumed == whole


def test_a_run_without_a_checkpoint_starts_its_record_anew(store, codec, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at(patch, 3)
        run(store, codec, tmp_path / "run", SHORT)
    run(store, codec, tmp_path / "run", SHORT)
    assert list(metrics(tmp_path / "run", "heldout_bits_per_second")) == [0, 6, 12]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 5


# --- the codec, and the patterns ---


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("voices")
    for index in range(2):
        save_audio(folder / "low" / f"{index}.wav", voice(110.0, 2.0, index), RATE)
    return folder


@pytest.mark.slow
def test_a_codec_that_is_asked_to_stop_saves_and_goes_on_bit_for_bit(speech, tmp_path, monkeypatch):
    config = replace(TINY, steps=12, save_every=100, log_every=4)
    train_codec(speech, tmp_path / "whole", config)
    with (
        monkeypatch.context() as patch,
        pytest.raises(Interrupted, match="stopped and saved at step 9 of 12") as caught,
    ):
        raise_at(patch, 8, signal.SIGTERM, CodecTrainer)
        train_codec(speech, tmp_path / "run", config)
    assert caught.value.status == 143
    assert latest_checkpoint(tmp_path / "run") == tmp_path / "run/step-00000009"
    train_codec(speech, tmp_path / "run", config)
    last = [(tmp_path / name / "step-00000012" / "COMPLETE").read_text() for name in ("whole", "run")]
    assert last[0] == last[1]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8, 12]


@pytest.mark.slow
def test_a_slow_codec_is_saved_by_the_clock_and_writes_no_step_down_twice(speech, tmp_path, monkeypatch):
    config = replace(TINY, steps=8, save_every=100, log_every=1, save_minutes=1e-9)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at(patch, 4, CodecTrainer)
        train_codec(speech, tmp_path / "run", config)
    assert latest_checkpoint(tmp_path / "run") == tmp_path / "run/step-00000004"
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.0}\n')  # taken after the last checkpoint
    train_codec(speech, tmp_path / "run", config)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))


@pytest.mark.slow
def test_a_comparison_of_patterns_goes_on_with_the_steps_it_began_with(make_store, make_codec, tmp_path, monkeypatch):
    codec = make_codec(num_codebooks=2, codebook_size=SIZE)
    store = make_store(tmp_path / "store", draw(SOURCE, [20] * 20, 0), codec)
    config = replace(PATTERNS, patterns=("depth", "parallel"))
    with monkeypatch.context() as patch:
        patch.setattr("codeclm.train.compare_patterns.seconds_per_step", lambda trainer: 0.05)  # of 0.6 s: 12 steps
        raise_at(patch, 6, signal.SIGINT)
        with pytest.raises(Interrupted, match="depth-time: stopped and saved at step 7 of 12"):
            compare_patterns(store, codec, tmp_path / "out", config)
    results = compare_patterns(store, codec, tmp_path / "out", config)
    assert results[0].steps == 12
    resumed = load_tensors(tmp_path / "out/depth-time/step-00000012", "model")
    settings = config.training("depth", 12)
    train(new_model(store, settings), codec, store, tmp_path / "whole", settings)
    whole = state_of(tmp_path / "whole", 12)
    assert all(torch.equal(resumed[name], whole[name]) for name in resumed)
