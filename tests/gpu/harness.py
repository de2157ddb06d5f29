"""Running checks so that one that fails stops no other: `run_checks` turns each into a `Result`.

A check is a function of a `Setting` that yields `Reading`s. A reading with a bound is a comparison and can fail; one
without is a measurement.
"""

import math
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .setting import Setting

NO_GPU = "needs a CUDA GPU"
LIMIT_S = 75.0  # that one check may take of a GPU


class Skip(Exception):
    """The check cannot be made here; the message says why."""


@dataclass(frozen=True)
class Reading:
    """One number: how far two things are apart, or how fast something is."""

    name: str
    value: float
    bound: float | None = None  # the most that it may be; None: nothing depends on it
    unit: str = ""
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.bound is None or self.value <= self.bound  # false for NaN


Run = Callable[[Setting], Iterator[Reading]]


@dataclass(frozen=True)
class Check:
    name: str
    claim: str  # what holds, or what is measured
    run: Run
    needs_cuda: bool = False


@dataclass
class Result:
    check: str
    claim: str
    outcome: str  # "ok", "failed" or "skipped"
    seconds: float
    reason: str = ""  # why it was skipped, or which reading or error failed it
    readings: list[Reading] = field(default_factory=list)


def run_checks(
    checks: Sequence[Check], setting: Setting, log: Callable[[str], Any] = print, budget_s: float = math.inf
) -> list[Result]:
    """Each check in turn, and a line about it as soon as it is over; none is begun when `budget_s` is used up."""
    results, started = [], time.perf_counter()
    for check in checks:
        left = budget_s - (time.perf_counter() - started)
        results.append(run_check(check, setting, min(left, LIMIT_S if setting.is_cuda else math.inf)))
        result = results[-1]
        reason = f": {result.reason}" if result.reason else ""
        log(f"{result.outcome:<8}{result.seconds:7.1f} s  {check.name}{reason}")
    return results


def run_check(check: Check, setting: Setting, limit_s: float = math.inf) -> Result:
    result, started = Result(check.name, check.claim, "ok", 0.0), time.perf_counter()
    try:
        if check.needs_cuda and not setting.is_cuda:
            raise Skip(NO_GPU)
        if limit_s <= 0:
            raise Skip("no time was left")
        with time_limit(limit_s):
            for reading in check.run(setting):
                result.readings.append(reading)
        if not result.readings:
            raise AssertionError("the check compared nothing")
        wrong = [reading for reading in result.readings if not reading.ok]
        if wrong:
            first = wrong[0]
            result.outcome = "failed"
            result.reason = f"{first.name}: {first.value:.3g} where at most {first.bound:.3g} is allowed"
            result.reason += f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    except Skip as reason:
        result.outcome, result.reason = "skipped", str(reason)
    except Exception as error:
        result.outcome, result.reason = "failed", last_line(error)
    result.seconds = time.perf_counter() - started
    return result


@contextmanager
def time_limit(limit_s: float) -> Iterator[None]:
    """Raises TimeoutError when the block takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"it took longer than {limit_s:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s if limit_s < math.inf else 0)  # 0: never
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def last_line(error: Exception) -> str:
    """Its kind, its message in one line, and where in our code it was raised."""
    message = " ".join("".join(traceback.format_exception_only(error)).split())
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    return f"{message[:500]} ({places[-1].filename.rpartition('/')[2]}:{places[-1].lineno})" if places else message


# --- comparing ---


def difference(got: Tensor, expected: Tensor) -> float:
    """The largest absolute difference; infinite for NaN, other shapes, or nothing to compare."""
    if got.shape != expected.shape or not got.numel():
        return math.inf
    distance = (got.detach().cpu().double() - expected.detach().cpu().double()).abs()
    return float(torch.nan_to_num(distance, nan=math.inf).max())


def relative(got: Tensor, expected: Tensor) -> float:
    """|got - expected| / |expected|, of the whole tensors; infinite for NaN, other shapes, or an expected zero."""
    if got.shape != expected.shape or not got.numel():
        return math.inf
    wanted = expected.detach().cpu().double()
    ratio = float((got.detach().cpu().double() - wanted).norm() / wanted.norm())
    return ratio if math.isfinite(ratio) else math.inf


def num_different(got: Tensor, expected: Tensor) -> float:
    """How many codes differ; infinite for other shapes, or nothing to compare."""
    if got.shape != expected.shape or not got.numel():
        return math.inf
    return float((got.cpu() != expected.cpu()).sum())
