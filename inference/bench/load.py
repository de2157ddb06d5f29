"""Many listeners at once: requests arrive at random times, whatever the machine manages (an open loop), and are drawn
by a `Scheduler`, with the codec.

Every request asks for some seconds of speech after the same voice prompt, which is kept as a prefix. S samples.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from ...data.progress import progress_bar
from ..config import WeightPrecision
from ..generator import SpeechGenerator
from ..json_safe import json_safe
from ..loading import load
from ..machine import Machine, load_average, matmul_rate, processor_name
from ..playback import AHEAD_S, NEVER, Playback
from ..prefix import Prefix
from ..resources import NAN
from ..scheduler import QueueFull, Scheduler, Ticket
from ..text_table import number
from ..threads import torch_threads
from .first_sound import AUDIBLE, PROMPT_S, spoken_prompt

Rows = list[list[str]]
SEED = 0  # of the times at which requests arrive


@dataclass(frozen=True)
class LoadConfig:
    rates: tuple[float, ...] = (1.0, 6.0, 10.0, 20.0)  # requests a second
    seconds: float = 20.0  # in which requests arrive; those that are open are given as long again
    speech_s: float = 4.0  # that each asks for
    rows: int = 16  # drawn at the same time
    waiting: int = 16  # beyond those; more are refused


@dataclass(frozen=True)
class Load:
    """One model at one rate."""

    model: str
    rate: float  # requests a second
    requests: int
    rejects: int  # refused, because too many waited
    unfinished: int  # were still open at the end
    first_ms: float  # from the arrival to the first sample, median
    audible_ms: float  # from the arrival to the first sample above -50 dBFS, median; NaN: none was heard
    audible_p95_ms: float
    real_time: float  # times real time, of a request from its arrival to its last sample, median of those that ended
    total_real_time: float  # seconds of speech made a second, all requests together
    underruns: int  # chunks that came later than they were to be played
    interrupted: int  # requests with such a chunk


@dataclass
class Listener:
    """A request, and the sound that has come so far."""

    arrival: float  # in seconds, as all times
    ticket: Ticket | None  # None: of a server
    num_samples: int = 0
    first: float = NEVER
    audible: float = NEVER
    playback: Playback = field(default_factory=Playback)
    underruns: int = 0
    end: float = NEVER

    def hear(self, now: float, chunk: np.ndarray, sample_rate: int) -> None:
        """chunk: [S], perhaps empty."""
        if len(chunk):
            self.first = min(self.first, now)
            self.underruns += self.playback.hear(now, len(chunk) / sample_rate)
            self.num_samples += len(chunk)
            if self.audible == NEVER and (np.abs(chunk) > AUDIBLE).any():
                self.audible = now


def bench_load(
    models: Sequence[str],
    config: LoadConfig,
    device: str = "cpu",
    weights: WeightPrecision = "float32",
    threads: int = 1,
) -> "LoadReport":
    """Measure models, rate by rate. Raises what `load` raises."""
    busy, loads = load_average(), []
    with torch_threads(threads), progress_bar(total=len(models) * len(config.rates), desc="load", unit="rate") as bar:
        for name in models:
            lm = load(name, device, weights, config.rows)
            lm.threads = threads
            voice = lm.prefix(spoken_prompt(lm))
            warm_up(lm, voice, config)
            for rate in config.rates:
                loads.append(run_load(lm, voice, config, rate))
                bar.update()
        peak = matmul_rate(torch.device(device)) / 1e9
    machine = Machine(processor_name(device), os.cpu_count() or 1, threads, torch.__version__, device, busy, peak)
    return LoadReport(config, machine, weights, loads)


def warm_up(lm: SpeechGenerator, voice: Prefix, config: LoadConfig) -> None:
    """As many requests at once as there are rows: batches of all sizes are taken, and memory is asked for."""
    scheduler = Scheduler(lm, config.rows, config.rows)
    tickets = [scheduler.submit(voice, 0.2 + 0.05 * row, row) for row in range(config.rows)]
    while scheduler.step():
        for ticket in tickets:
            ticket.next_chunk()


def arrivals(rate: float, seconds: float) -> deque[float]:
    """The times of a Poisson process: equal for equal arguments, and one at least."""
    gaps = np.random.default_rng(SEED).exponential(1 / rate, round(2 * rate * seconds) + 20)
    times = np.cumsum(gaps) - gaps[0]
    return deque(times[times < seconds].tolist())


def run_load(lm: SpeechGenerator, voice: Prefix, config: LoadConfig, rate: float) -> Load:
    """One rate."""
    scheduler, due = Scheduler(lm, config.rows, config.waiting), arrivals(rate, config.seconds)
    listeners: list[Listener] = []
    asked = rejects = 0
    start = time.perf_counter()

    def now() -> float:
        return time.perf_counter() - start

    while (due or scheduler.num_open) and now() < 2 * config.seconds:
        while due and due[0] <= now():
            arrival = due.popleft()
            asked += 1
            try:
                listeners.append(Listener(arrival, scheduler.submit(voice, config.speech_s, asked)))
            except QueueFull:
                rejects += 1
        if not scheduler.num_open:
            time.sleep(max(0.0, due[0] - now()) if due else 0.0)
            continue
        scheduler.step()
        for listener in listeners:
            if listener.end == NEVER and listener.ticket is not None:
                done = listener.ticket.is_done
                chunk = listener.ticket.next_chunk()
                listener.hear(now(), chunk, lm.codec.sample_rate)
                if done:
                    listener.end = now()
    return summary(lm.name, lm.codec.sample_rate, rate, rejects, listeners, now())


def summary(model: str, sample_rate: int, rate: float, rejects: int, listeners: list[Listener], elapsed: float) -> Load:
    """model: its name. elapsed: seconds."""
    heard = [1000 * (listener.audible - listener.arrival) for listener in listeners if listener.audible < NEVER]
    firsts = [1000 * (listener.first - listener.arrival) for listener in listeners if listener.first < NEVER]
    ended = [listener for listener in listeners if listener.end < NEVER]
    speeds = [listener.num_samples / sample_rate / (listener.end - listener.arrival) for listener in ended]
    return Load(
        model=model,
        rate=rate,
        requests=len(listeners) + rejects,
        rejects=rejects,
        unfinished=len(listeners) - len(ended),
        first_ms=float(np.median(firsts)) if firsts else NAN,
        audible_ms=float(np.median(heard)) if heard else NAN,
        audible_p95_ms=float(np.percentile(heard, 95, method="higher")) if heard else NAN,
        real_time=float(np.median(speeds)) if speeds else NAN,
        total_real_time=sum(listener.num_samples for listener in listeners) / max(1, sample_rate) / elapsed,
        underruns=sum(listener.underruns for listener in listeners),
        interrupted=sum(listener.underruns > 0 for listener in listeners),
    )


@dataclass(frozen=True)
class LoadReport:
    config: LoadConfig
    machine: Machine
    weights: str  # their precision
    loads: list[Load]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what is not a finite number is None."""
        return json_safe(asdict(self)) | {"notes": self.notes()}

    def rows(self) -> Rows:
        heading = ["model", "requests/s", "requests", "first sample ms", "audible ms", "p95", "times real"]
        found = [[*heading, "all together", "underruns", "interrupted", "rejects", "unfinished"]]
        for one in self.loads:
            found.append([
                one.model, f"{one.rate:g}", str(one.requests), number(one.first_ms, ".3g"),
                number(one.audible_ms, ".3g"), number(one.audible_p95_ms, ".3g"), number(one.real_time, ".3g"),
                f"{one.total_real_time:.3g}",
                str(one.underruns), str(one.interrupted), str(one.rejects), str(one.unfinished),
            ])  # fmt: skip
        return found

    def notes(self) -> list[str]:
        """How the numbers were made, a sentence each."""
        config = self.config
        return [
            self.machine.describe(),
            f"Requests arrive for {config.seconds:g} s at random times (Poisson, the same in each run), whether those "
            f"before are done or not; each asks for {config.speech_s:g} s of speech after {PROMPT_S:g} s of a voice, "
            f"kept as a prefix; {config.rows} are drawn at the same time, {config.waiting} may wait, more are refused "
            f"(rejects). Weights in {self.weights}.",
            "first sample, audible: from the arrival to samples on the host, and to the first above -50 dBFS; times "
            "real: speech over the time from a request's arrival to its last sample, median; all together: seconds of "
            "speech made a second.",
            f"underruns: chunks that came later than they were to be played, where playing begins once {AHEAD_S:g} s "
            "of sound are there; interrupted: requests that had any; unfinished: still open after as long again.",
        ]


def describe_load(report: LoadReport, columns: Callable[[Rows], list[str]], mark: str = "") -> str:
    """columns: lays out rows of cells. mark: before each note."""
    return "\n".join([*columns(report.rows()), "", *(mark + note for note in report.notes())])
