"""Times between marks. A GPU's are taken by its own clock, so the host does not wait for it at a mark."""

import time
from typing import Any

import torch

from ..machine import synchronize

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Stopwatch:
    """The first mark is the start. clock: "wall", or "cpu", the processor's time, in which others' work counts less."""

    def __init__(self, device: torch.device, clock: str = "wall"):
        self.device = device
        self.now = CLOCKS[clock]
        self.marks: list[Any] = []
        synchronize(device)
        self.mark()

    def mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(self.now())

    def laps(self) -> list[float]:
        """Seconds from each mark to the next."""
        synchronize(self.device)
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if self.device.type == "cuda":
            return [before.elapsed_time(after) / 1000 for before, after in pairs]
        return [after - before for before, after in pairs]
