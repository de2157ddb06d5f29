"""Times between marks, on the device's own clock where it has one: the host does not wait for the device at a mark."""

import time
from typing import Any

import torch

from ..machine import synchronize


class Stopwatch:
    """The first mark is the start."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: list[Any] = []
        synchronize(device)
        self.mark()

    def mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def laps(self) -> list[float]:
        """Seconds from each mark to the next."""
        synchronize(self.device)
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if self.device.type == "cuda":
            return [before.elapsed_time(after) / 1000 for before, after in pairs]
        return [after - before for before, after in pairs]
