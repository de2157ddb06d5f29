"""tests/gpu: what it compares does fail when something is wrong, and one failure hides no other check."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from codeclm.inference.verify.checks import CHECKS as VERIFY
from codeclm.inference.verify.options import PLAIN, tiny_model
from codeclm.model.depth import DepthDecoder

from .fake_device import ELSEWHERE, elsewhere
from .gpu import attention, codec, frames, generation, likelihood, training
from .gpu.catalogue import CHECKS
from .gpu.harness import (
    NO_GPU,
    Check,
    Reading,
    Result,
    Skip,
    difference,
    num_different,
    relative,
    run_check,
    run_checks,
)
from .gpu.report import machine_facts, summary, write_report
from .gpu.setting import Module, Setting

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
ON_EVERY_MACHINE = [
    "verify-tiny-float64", "verify-tiny-float32", "verify-tiny-bfloat16", "codec-contract", "train-bfloat16",
    "generate-codes", "generate-audio", "frames-as-cpu", "score", "compress", "attention-eager", "operations",
    "launches", "speed-generation", "speed-frames", "first-audible", "speed-peer", "attention-flex", "speed-training",
    "training-profile",
]  # fmt: skip
ON_A_GPU = [
    "verify-float32", "verify-bfloat16", "codec-codes", "codec-audio", "train-float32", "memory", "graph-kernels",
    "clocks", "copies", "matrix-products", "train-compiled", "speed-compiled", "codec-kinds", "attention-flash",
]  # fmt: skip
SMALL = {"steps": 2, "frames": 2, "score_frames": 8, "coded_frames": 3, "noise_s": 1, "positions": 12}


class Broken(Setting):
    """A device that computes with weights which are 2 % off, the first and the last ones of each module."""

    def there(self, module: Module) -> Module:
        copy = super().there(module)
        matrices = [parameter for parameter in copy.parameters() if parameter.ndim > 1]
        with torch.no_grad():
            for matrix in (matrices[0], matrices[-1]):
                matrix.mul_(1.02)
        return copy


@pytest.fixture
def setting(tmp_path) -> Setting:
    return Setting(torch.device("cpu"), tmp_path, SMALL)


# --- comparing ---


def test_nan_and_other_shapes_and_nothing_are_infinitely_far():
    one, nan, none = torch.ones(3), torch.tensor([1.0, math.nan, 1.0]), torch.ones(0)
    for compare in (difference, relative, num_different):
        assert compare(one, one) == 0
        for got, expected in ((torch.ones(4), one), (torch.ones(1, 3), one), (none, none)):
            assert compare(got, expected) == math.inf
    for compare in (difference, relative):
        assert compare(nan, one) == compare(one, nan) == compare(nan, nan) == math.inf
    assert difference(one, one + 2) == 2 and relative(one * 1.5, one) == pytest.approx(0.5)
    assert num_different(torch.tensor([1, 2, 3]), torch.tensor([1, 3, 4])) == 2


def test_a_reading_holds_up_to_its_bound_and_nan_never_does():
    assert Reading("", 1.0, 1.0).ok and Reading("", 5.0).ok
    assert not Reading("", 1.1, 1.0).ok and not Reading("", math.nan, 1.0).ok and not Reading("", math.inf, 1.0).ok


# --- running ---


def good(setting: Setting) -> Iterator[Reading]:
    yield Reading("near", 0.5, 1.0)


def far(setting: Setting) -> Iterator[Reading]:
    yield Reading("near", 0.5, 1.0)
    yield Reading("far", 3.0, 1.0)


def breaks(setting: Setting) -> Iterator[Reading]:
    yield Reading("near", 0.5, 1.0)
    raise RuntimeError("no kernel\nimage")


def compares_nothing(setting: Setting) -> Iterator[Reading]:
    yield from ()


def lacks_something(setting: Setting) -> Iterator[Reading]:
    raise Skip("flash_attn is not installed")
    yield


def loops(setting: Setting) -> Iterator[Reading]:
    while True:
        pass
    yield


RUNS = far, breaks, compares_nothing, good, lacks_something
MADE = [Check(run.__name__, f"{run.__name__} holds", run) for run in RUNS]


def outcomes(results: list[Result]) -> list[str]:
    return [result.outcome for result in results]


def test_a_check_that_fails_stops_no_other_and_is_told_in_a_line(setting):
    lines: list[str] = []
    results = run_checks([*MADE, Check("on a GPU", "", good, needs_cuda=True)], setting, lines.append)
    assert outcomes(results) == ["failed", "failed", "failed", "ok", "skipped", "skipped"]
    assert results[0].reason == "far: 3 where at most 1 is allowed"
    assert results[1].reason.startswith("RuntimeError: no kernel image (test_gpu_check.py:")
    assert [len(result.readings) for result in results] == [2, 1, 0, 1, 0, 0]
    assert [result.reason for result in results[2:]] == [
        "AssertionError: the check compared nothing" + results[2].reason.partition("nothing")[2], "",
        "flash_attn is not installed", NO_GPU,
    ]  # fmt: skip
    assert len(lines) == 6 and all("\n" not in line for line in lines)


def test_a_check_that_takes_too_long_is_stopped_and_none_is_begun_when_the_time_is_over(setting):
    assert run_check(Check("loops", "", loops), setting, 0.2).reason.startswith("TimeoutError: it took longer than 0 s")
    assert [result.reason for result in run_checks(MADE[3:4], setting, str, budget_s=0.0)] == ["no time was left"]


def test_the_report_holds_every_reading_in_both_forms(setting, tmp_path):
    results = run_checks(MADE, setting, str)
    results[3].readings.append(Reading("broken", math.inf, 1.0, "nats", "it | stopped\nhere"))
    path, page = write_report(tmp_path / "report", results, machine_facts(setting))
    stored = json.loads(path.read_text())
    assert [check["check"] for check in stored["checks"]] == [check.name for check in MADE]
    assert stored["summary"] == summary(results) and stored["facts"]["torch"].startswith(torch.__version__)
    assert stored["checks"][0]["readings"][1] == {"name": "far", "value": 3.0, "bound": 1.0, "unit": "", "note": ""}
    assert stored["checks"][3]["readings"][1]["value"] == "inf"
    text = page.read_text()
    assert all(check.name in text and check.claim in text for check in MADE)
    assert (
        "| far | 3 | 1 | **FAILED**  |" in text and "| broken | inf | 1 | **FAILED** nats; it / stopped here |" in text
    )


# --- what is checked ---


def test_every_check_is_known_and_says_whether_it_needs_a_gpu():
    assert [check.name for check in CHECKS if not check.needs_cuda] == ON_EVERY_MACHINE
    assert [check.name for check in CHECKS if check.needs_cuda] == ON_A_GPU


COMPARED: list[Callable[[Setting], Iterator[Reading]]] = [
    codec.codes_as_cpu, codec.audio_as_cpu, generation.from_codes, generation.from_audio, generation.scored,
    generation.compressed, frames.as_cpu,
]  # fmt: skip


def like_moshi(setting: Setting) -> Iterator[Reading]:
    """`verify` on the model with the most options: two of the checks, which take long there."""
    model = tiny_model(PLAIN | likelihood.MOSHI).make().double()
    checks = tuple(check for check in VERIFY if check.name in ("steps", "gradients"))
    return likelihood.verified(setting.there(model), "like Moshi", checks)


@pytest.mark.parametrize("run", COMPARED)
def test_what_is_compared_with_the_cpu_holds_there_and_fails_where_weights_are_off(setting, run):
    check = Check("", "", run)
    result = run_check(check, setting)
    assert result.outcome == "ok", result.reason
    broken = run_check(check, Broken(setting.device, setting.scratch / "broken", SMALL))
    assert broken.outcome == "failed", broken.readings


@pytest.mark.slow
@pytest.mark.parametrize("run", [*(run for run in COMPARED if run != generation.scored), like_moshi, attention.eager])
def test_nothing_is_left_on_the_cpu(setting, run):
    """On a device made in Python, as tests/test_devices.py has it (which has no autocast)."""
    there = Setting(ELSEWHERE, setting.scratch, SMALL)
    with elsewhere():
        result = run_check(Check("", "", run), there)
    assert result.outcome == "ok", result.reason


@pytest.mark.slow
def test_steps_of_training_are_compared_loss_by_loss(setting, monkeypatch):
    assert run_check(Check("", "", training.steps_as_cpu), setting).outcome == "ok"
    real, made = training.new_model, []

    def new_model(*arguments):
        made.append(real(*arguments))
        with torch.no_grad():
            made[-1].head_0.weight.mul_(1 + (len(made) - 1))
        return made[-1]

    monkeypatch.setattr(training, "new_model", new_model)
    result = run_check(Check("", "", training.steps_as_cpu), replace(setting, scratch=setting.scratch / "broken"))
    assert len(made) == 2 and result.outcome == "failed", result.readings


def test_attention_of_other_weights_is_not_the_same(setting, monkeypatch):
    real = attention.made

    def made(setting, implementation, *rest):
        model = real(setting, implementation, *rest)
        with torch.no_grad():
            model.blocks[0].attention.query.weight.mul_(1.5 if implementation == "eager" else 1.0)
        return model

    monkeypatch.setattr(attention, "made", made)
    assert run_check(Check("", "", attention.eager), setting).outcome == "failed"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_verify_finds_a_leak_in_every_precision(setting, monkeypatch, dtype):
    """The bounds in bfloat16 are wide, and what is broken is wider: each position is given the code it predicts."""
    real = DepthDecoder.codes_in
    monkeypatch.setattr(DepthDecoder, "codes_in", lambda self, codes: real(self, codes.roll(-1, dims=1)))
    monkeypatch.setattr(likelihood, "TINY", {"delays": likelihood.TINY["delays"]})
    failed = {reading.name for reading in likelihood.verify_tiny(setting, dtype) if not reading.ok}
    assert {"delays: distribution", "delays: steps", "delays: windows"} <= failed


@pytest.mark.slow
def test_the_script_runs_in_a_checkout_that_is_not_installed(tmp_path):
    """With a python that knows nothing of the package, in another folder; exit status 0, both reports."""
    names = ["attention-eager", "codec-codes", "score"]
    start = tmp_path / "start.py"
    lines = [
        "import runpy, sys",
        "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in repr(finder)]",
        f"runpy.run_path({str(ROOT / 'tests/gpu')!r}, run_name='__main__')",
    ]
    start.write_text("\n".join(lines))
    command = [sys.executable, str(start), "--only", *names, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "out/gpu.json").read_text())
    found = {check["check"]: check["outcome"] for check in stored["checks"]}
    there = "ok" if torch.cuda.is_available() else "skipped"
    assert found == {"attention-eager": "ok", "codec-codes": there, "score": "ok"}
    assert (tmp_path / "out/gpu.md").is_file() and "3 checks" in done.stdout
