"""Kernels and graphs of kernels that the host launches for a frame on a GPU, by the profiler."""

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from .counts import COUNTED, WARM
from .engines import Engine

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaLaunchCooperativeKernel")


def count_launches(engine: Engine) -> float:
    """A frame's average: a longer run less a shorter one, so that the prompt is not counted."""
    return (launches(engine, WARM + COUNTED) - launches(engine, WARM)) / COUNTED


def launches(engine: Engine, num_frames: int) -> int:
    """All launches of a whole run."""
    gpu = [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *gpu]) as found:
        engine.run(num_frames, lambda: None)
    events: Any = found.events() or []
    return sum(event.name.startswith(LAUNCHES) for event in events)
