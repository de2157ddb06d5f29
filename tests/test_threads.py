"""Decoding takes one thread unless it is told otherwise, and threads that wait do not keep a core busy."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import soundfile
import torch

from codeclm import load
from codeclm.data.audio_out import save_audio
from codeclm.inference.engine import Request, generate
from codeclm.inference.frame_step import FrameStep
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.threads import check_threads, decoding_threads, torch_threads
from codeclm.model.pretrained import PROMPT
from codeclm.train.cli import main


@pytest.fixture
def seen() -> Iterator[set[int]]:
    """The numbers of threads with which modules of torch were computed."""
    found: set[int] = set()
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: found.add(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # what the caller had chosen
    yield found
    hook.remove()
    torch.set_num_threads(before)


@pytest.fixture
def lm(make_model, make_codec, monkeypatch) -> SpeechGenerator:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    codec = make_codec()
    return SpeechGenerator(make_model(codec=codec, dtype=torch.float32), codec, "tiny")


def test_decoding_takes_one_thread_and_gives_the_caller_back_his_own(lm, seen):
    lm.generate(duration_s=0.05)
    assert seen == {1} and torch.get_num_threads() == 2


def test_omp_num_threads_wins_over_the_rule(lm, seen, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    lm.generate(duration_s=0.05)
    assert seen == {2}


def test_threads_win_over_omp_num_threads(lm, seen, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    lm.threads = 2
    lm.generate(duration_s=0.05)
    assert seen == {2}


def test_threads_are_given_back_after_an_error(seen):
    with pytest.raises(KeyError), decoding_threads(1):
        raise KeyError
    assert torch.get_num_threads() == 2


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3])
def test_the_embedded_model_draws_the_same_codes_with_any_number_of_threads(rows):
    model = load(device="cpu").model
    states = []
    for number in (1, 2):
        with torch_threads(number):
            *_, state = generate(model, Request(20), range(rows))
        assert isinstance(state.walk, FrameStep)
        states.append(state)
    one, two = states
    assert torch.equal(one.codes, two.codes)
    torch.testing.assert_close(two.nll, one.nll, rtol=0, atol=1e-4)  # sums are in another order


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="this machine has one core")
def test_the_option_threads_reaches_every_verb_that_decodes(seen, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    out = tmp_path / "out.wav"
    main(["generate", "--duration", "0.2", "--out", str(out)])
    assert seen == {1}
    seen.clear()
    speech, rate = soundfile.read(PROMPT, dtype="float32")
    save_audio(out, speech[: rate // 2], rate)  # what comes from nothing may be silent
    main(["generate", str(out), "--duration", "0.1", "--out", str(tmp_path / "b.wav"), "--threads", "2"])
    assert seen == {2}
    seen.clear()
    main(["codec", "compress", str(out), str(tmp_path / "out.clm"), "--threads", "1"])
    assert seen == {1}


@pytest.mark.parametrize("number", [0, -1, 10**6])
def test_threads_that_the_machine_does_not_have_are_refused(number):
    with pytest.raises(ValueError, match=f"--threads is {number}; it must be 1 to"):
        check_threads(number)


@pytest.mark.slow
@pytest.mark.skipif(not torch.backends.openmp.is_available() or sys.platform != "linux", reason="no GNU OpenMP here")
@pytest.mark.parametrize("asked, policy", [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_of_the_command_sleep_while_they_wait_unless_the_user_wants_otherwise(asked, policy, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-m", "codeclm", "generate", "--duration", "0.1", "--out", str(tmp_path / "a.wav")]
    done = subprocess.run(
        command, env=environment | asked | {"OMP_DISPLAY_ENV": "TRUE"}, capture_output=True, text=True, check=True
    )
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr  # what the library says of itself
