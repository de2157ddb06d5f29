"""One clip through one codec, and what that costs: time with one thread, and memory.

Figures of this machine at this moment, for a table: nothing may depend on them. S samples, K codebooks, T frames.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch

from ...model.codecs import Codec
from ..resources import NAN, PeakMemory
from ..threads import torch_threads


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
    memory, device = PeakMemory(), codec.device
    with torch_threads(1):
        start = time.perf_counter()
        codes = codec.encode(torch.from_numpy(audio)[None, None].to(device))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
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
    """One for several clips: the median speeds, and the largest memory."""
    if not costs:
        return Cost()
    return Cost(
        encode_speed=float(np.median([cost.encode_speed for cost in costs])),
        decode_speed=float(np.median([cost.decode_speed for cost in costs])),
        peak_memory_mb=max(cost.peak_memory_mb for cost in costs),
    )
