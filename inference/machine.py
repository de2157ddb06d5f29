"""This machine: its name, how busy it is, and how fast it multiplies and reads at most. Knows no model and no codec."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .resources import NAN
from .text_table import number

MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}  # side of the matrices whose product shows the peak rate
ROW = 1024  # columns of the matrix that is read
LEAST_READ = {"cpu": 1 << 20, "cuda": 1 << 30}  # bytes; fewer would measure how long a call takes


@dataclass(frozen=True)
class Machine:
    processor: str  # the CPU's name, or the GPU's
    cores: int  # that the machine has
    threads: int  # that torch used
    torch: str  # version
    device: str
    load_average: float  # processes that ran or waited in the minute before; NaN: unknown
    peak_gflops: float  # GFLOP/s of the fastest float32 matrix product

    def describe(self) -> str:
        """A sentence below a table of speeds."""
        return (
            f"Machine: {self.processor}, device {self.device}, {self.threads} of {self.cores} cores, torch "
            f"{self.torch}; load average at the start {number(self.load_average, '.1f')}: what else runs slows this."
        )


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall clock of `work`, from when the device has nothing to do until it has nothing to do again."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def matmul_rate(device: torch.device) -> float:
    """FLOP/s of a float32 matrix product, the fastest of three."""
    size = MATRIX_SIZE[device.type]
    a, b, out = torch.rand(3, size, size, device=device)
    torch.mm(a, b, out=out)
    return 2 * size**3 / min(seconds(lambda: torch.mm(a, b, out=out), device) for _ in range(3))


def read_rate(device: torch.device, num_bytes: int) -> float:
    """Bytes/s at which that much memory is read again and again, the fastest of five: a cache may hold it."""
    num_rows = max(num_bytes, LEAST_READ[device.type]) // (4 * ROW)
    matrix, vector = torch.rand(num_rows, ROW, device=device), torch.rand(ROW, device=device)
    ways: list[Callable[[], Any]] = [matrix.sum, lambda: torch.mv(matrix, vector)]
    best = min(seconds(work, device) for _ in range(6) for work in ways)  # the first time warms up
    return 4 * ROW * num_rows / best


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def load_average() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else NAN


def processor_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
