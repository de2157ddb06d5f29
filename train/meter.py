"""How fast a run learns: codes and frames a second of the training alone, the share of the machine's rate, memory.

MFU is the arithmetic of the matrix products and of attention (model/cost.py), three times the forward's, over the
rate of the device: its maker's figure for bfloat16 if it is a GPU that is known, else measured with one large product.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

from ..inference.resources import peak_resident_mb
from ..model.cost import forward_flops_per_frame
from .trainer import Trainer

# dense bfloat16 FLOP/s by a part of the card's name
NOMINAL = {
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "4090": 165e12,
}
SIZE, TRIES = 512, 5  # size of the product that is measured, and how often


class Meter:
    """What was computed since the last `read`, and the seconds that it took."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.started, self.first = trainer, time.monotonic(), trainer.step
        self.flops = flops_per_frame(trainer)
        self.seconds = self.codes = 0.0  # in all steps
        self._loss = self._codes = self._seconds = self._waited = 0.0  # since the last reading

    @contextmanager
    def running(self) -> Iterator[None]:
        """The block is a step; evaluations and checkpoints are outside."""
        started = time.monotonic()
        yield
        self._seconds += time.monotonic() - started
        self.seconds += time.monotonic() - started

    def add(self, metrics: dict[str, float]) -> None:
        """A step's numbers."""
        codes = metrics["codes"]
        self.codes, self._codes = self.codes + codes, self._codes + codes
        self._loss += metrics["loss"] * codes
        self._waited += metrics["waited_s"]

    def read(self) -> dict[str, float]:
        """The mean loss of the codes since the last reading, and the speed."""
        trainer, num_codebooks = self.trainer, self.trainer.store.codec.num_codebooks
        done, spent = trainer.step - self.first, time.monotonic() - self.started
        codes_per_second = self._codes / self._seconds
        ranks, device = trainer.accelerator.num_processes, trainer.accelerator.device
        found = {
            "loss": self._loss / max(1, self._codes),
            "codes_per_second": codes_per_second,
            "frames_per_second": self.codes / num_codebooks / self.seconds,
            "mfu": self.flops * codes_per_second / num_codebooks / (ranks * peak_flops(device, trainer.bf16)),
            "memory_mb": memory_mb(device),
            "waited_s": self._waited,
            "left_s": spent / max(1, done) * (trainer.config.steps - trainer.step),
        }
        self._loss = self._codes = self._seconds = self._waited = 0.0
        return found


def flops_per_frame(trainer: Trainer) -> float:
    """Forward and backward of one frame of a piece of the usual length."""
    usual = sum(corpus.share * corpus.store.num_frames[corpus.training].mean() for corpus in trainer.corpora)
    length = min(trainer.batches.max_frames, max(1, round(float(usual))))
    return 3 * forward_flops_per_frame(trainer.raw_model.config, length, trainer.config.depth_fraction)


@lru_cache
def peak_flops(device: torch.device, bf16: bool) -> float:
    """FLOP/s of matrix products in the precision of the run."""
    if device.type == "cuda" and bf16:
        name = torch.cuda.get_device_name(device)
        for part, rate in NOMINAL.items():
            if part in name:
                return rate
    size = SIZE if device.type == "cpu" else 16 * SIZE
    x = torch.ones(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    seconds = []
    for _ in range(TRIES):
        started = time.monotonic()
        float((x @ x)[0, 0])  # a GPU is waited for
        seconds.append(time.monotonic() - started)
    return 2 * size**3 / min(seconds)


def memory_mb(device: torch.device) -> float:
    """The most so far, in MB (10^6 bytes): of the GPU, or resident. NaN: the system does not tell."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else peak_resident_mb()
