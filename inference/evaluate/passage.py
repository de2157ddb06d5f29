"""One clip through one codec, and what that costs: time with one thread, and memory.

Figures of this machine at this moment, for a table: nothing may depend on them. S samples, K codebooks, T frames.
"""

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...model.codecs import Codec

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux
RESET_PEAK = "5"  # written into clear_refs: the highest memory so far is forgotten
NAN = float("nan")


@dataclass(frozen=True)
class Cost:
    """NaN: not measured."""

    encode_speed: float = NAN  # seconds of audio in a second of wall clock: how many times real time
    decode_speed: float = NAN
    peak_memory_mb: float = NAN  # what resident memory (RSS) grew by at most, over the codec as it was loaded


@dataclass(frozen=True)
class Passage:
    output: np.ndarray  # [S] float32
    num_bits: float
    codes: np.ndarray | None = None  # [K, T]; of a neural codec
    cost: Cost = Cost()


@torch.no_grad()
def through(codec: Codec, audio: np.ndarray) -> Passage:
    """audio [S] at the codec's rate -> its reconstruction, encoded and decoded whole, by one thread."""
    memory = _PeakMemory()
    with _one_thread():
        start = time.perf_counter()
        codes = codec.encode(torch.from_numpy(audio)[None, None])
        encoded = time.perf_counter()
        output = codec.decode(codes)[0, 0, : len(audio)].float().cpu().numpy()
        decoded = time.perf_counter()
    duration_s = len(audio) / codec.sample_rate
    return Passage(
        output=output,
        num_bits=codec.bitrate / codec.frame_rate * codes.shape[-1],
        codes=codes[0].cpu().numpy(),
        cost=Cost(duration_s / (encoded - start), duration_s / (decoded - encoded), memory.growth_mb()),
    )


def mean_cost(costs: list[Cost]) -> Cost:
    """Of several clips: the median speeds, and the largest memory."""
    if not costs:
        return Cost()
    return Cost(
        encode_speed=float(np.median([cost.encode_speed for cost in costs])),
        decode_speed=float(np.median([cost.decode_speed for cost in costs])),
        peak_memory_mb=max(cost.peak_memory_mb for cost in costs),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch computes with one thread inside the block."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


class _PeakMemory:
    """How much this process's resident memory grows at most from now on; NaN where the system does not tell."""

    def __init__(self) -> None:
        try:
            ctypes.CDLL(None).malloc_trim(0)  # pages that were freed but kept would hide the growth
            CLEAR_REFS.write_text(RESET_PEAK)
            self.before_kb = _status_kb("VmRSS")
        except (OSError, AttributeError, TypeError):  # not Linux, or not glibc
            self.before_kb = NAN

    def growth_mb(self) -> float:
        if np.isnan(self.before_kb):
            return NAN
        return max(0.0, _status_kb("VmHWM") - self.before_kb) * 1024 / 1e6


def _status_kb(key: str) -> float:
    values = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return float(values[key].split()[0]) if key in values else NAN
