"""What a generated frame asks of the device: operations, kernel launches, copies, waits of the host, memory."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from codeclm.inference.engine import generate
from codeclm.inference.grid import Request
from codeclm.model.lm import SpeechLM

from .harness import Reading
from .setting import Setting

WARM = 4  # frames
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaLaunchCooperativeKernel")
COPIES = ("cudaMemcpy", "cudaMemset")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


class CountOperations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def num_frames(setting: Setting) -> int:
    return setting.amount("profiled_frames", 4, 3)


def frames(setting: Setting, model: SpeechLM, batch: int = 1) -> Callable[[], None]:
    """Generates some more frames at each of three calls, from one generation whose first WARM are made at once."""
    count = num_frames(setting)
    states = generate(model, Request(WARM + 3 * count, setting.codes[0, :, :10]), range(batch))
    for _ in range(WARM):
        next(states)

    def go() -> None:
        for _ in range(count):
            next(states)
        setting.synchronize()

    return go


def operations(setting: Setting) -> Iterator[Reading]:
    go = frames(setting, setting.there(setting.model))
    with CountOperations() as mode:
        go()
    yield Reading("operations of torch", mode.count / num_frames(setting), unit="a frame")


def launches(setting: Setting) -> Iterator[Reading]:
    """By the profiler: calls of CUDA's runtime, by kind; and where it may wait, by torch's own warnings."""
    go, per_frame = frames(setting, setting.there(setting.model)), 1 / num_frames(setting)
    go()
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * setting.is_cuda]
    with profile(activities=activities) as found:
        go()
    calls = Counter(event.name for event in found.events() or [])
    yield Reading("operations of torch, nested ones too", total(calls, ("aten::",)) * per_frame, unit="a frame")
    if setting.is_cuda:
        yield Reading("kernel launches", total(calls, LAUNCHES) * per_frame, unit="a frame")
        yield Reading("copies and fills", total(calls, COPIES) * per_frame, unit="a frame")
        yield Reading("waits of the host", total(calls, WAITS) * per_frame, unit="a frame")
        kernels = sum(event.self_device_time_total for event in found.key_averages() if event.key.startswith("aten::"))
        yield Reading("time in kernels", kernels * per_frame, unit="us a frame")
        yield Reading("warnings of synchronisation", num_warnings(go) * per_frame, unit="a frame")


def num_warnings(go: Callable[[], None]) -> int:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            go()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message).lower() for warning in caught)


def total(calls: Counter[str], prefixes: tuple[str, ...]) -> int:
    return sum(number for name, number in calls.items() if name.startswith(prefixes))


def memory(setting: Setting) -> Iterator[Reading]:
    """Of the card, at most, in generating a window's frames, 1 and 16 rows."""
    for batch in (1, 16):
        model = setting.there(setting.model)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        frames(setting, model, batch)()
        size = (torch.cuda.max_memory_allocated() - before) / 1e6
        yield Reading(f"generation, {batch} rows, beyond the weights", size, unit="MB")
