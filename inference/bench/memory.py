"""The memory that one engine takes, model and all, in a process of its own."""

import gc

import torch

from ..config import WeightPrecision
from ..fresh_process import in_fresh_process
from ..resources import PeakMemory
from ..threads import torch_threads
from .engines import make_engine
from .subjects import Subject

SMALL = Subject("tiny", True)


def peak_mb(
    name: str,
    subject: Subject,
    batch: int,
    prompt_frames: int,
    frames: int,
    device: str,
    weights: WeightPrecision = "float32",
) -> float:
    """MB (10^6 bytes) that making the model and drawing `frames` frames adds at most: resident, or of the GPU.

    Python and the libraries are not counted. NaN: the system does not tell.
    """
    work = subject, batch, prompt_frames, frames, device, weights
    return in_fresh_process(f"{name} of {subject.title}, batch {batch}", _peak_mb, name, torch.get_num_threads(), *work)


def _peak_mb(
    name: str,
    threads: int,
    subject: Subject,
    batch: int,
    prompt_frames: int,
    frames: int,
    device: str,
    weights: WeightPrecision,
) -> float:
    with torch_threads(threads):
        # code that is loaded on first use is not counted
        make_engine(name, SMALL, batch, prompt_frames, device, weights).run(2, lambda: None)
        gc.collect()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        memory = PeakMemory()
        make_engine(name, subject, batch, prompt_frames, device, weights).run(frames, lambda: None)
        return torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else memory.growth_mb()
