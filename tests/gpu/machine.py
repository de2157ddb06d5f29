"""What the card can do, measured: kernels in a graph, clocks, copies, matrix products; beside its datasheet's rates."""

import statistics
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from .harness import Reading, Skip, relative
from .setting import Setting

KERNELS = 1000  # in a graph
COPY_BYTES = 2 * 2**30  # many times the L2
PINNED_BYTES = 2**28
MATRIX = 8192


@dataclass(frozen=True)
class Limits:
    """Datasheet rates."""

    tflops: float  # dense bfloat16
    terabytes: float  # of memory, a second


LIMITS = {  # the first whose name is in the card's
    "H200": Limits(989, 4.8),
    "H100 PCIe": Limits(756, 2.0),
    "H100 NVL": Limits(835, 3.9),
    "H100": Limits(989, 3.35),
    "A100": Limits(312, 2.04),
}


def limits(setting: Setting) -> Limits | None:
    """Of this card; None for one that is not in the table."""
    if not setting.is_cuda:
        return None
    card = torch.cuda.get_device_name(setting.device)
    return next((values for name, values in LIMITS.items() if name in card), None)


def milliseconds(work: Callable[[], object], repeats: int, warm: int = 3) -> float:
    """Median of `repeats`, by the device's own clock."""
    for _ in range(warm):
        work()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, stop in marks:
        start.record()
        work()
        stop.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(stop) for start, stop in marks)


def graph_kernels(setting: Setting) -> Iterator[Reading]:
    """A chain of tiny kernels, each waiting for the one before; captured once and replayed."""
    for name, size in (("1 block", 256), ("132 blocks", 132 * 1024)):
        x, factor = torch.randn(size, device=setting.device), 1.0001
        expected = x.double()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                x.mul_(factor)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(KERNELS):
                x.mul_(factor)
        yield Reading(f"a kernel in a graph, {name}", 1000 * milliseconds(graph.replay, 20) / KERNELS, unit="us")
        # 3 to warm up, then 3 replays to warm up and 20 that were timed
        expected = expected * float(torch.tensor(factor)) ** (3 + 23 * KERNELS)
        yield Reading(f"what the replays computed, {name}", relative(x, expected), 1e-2, "relative")

        def eagerly(x: torch.Tensor = x, factor: float = factor) -> None:
            for _ in range(KERNELS):
                x.mul_(factor)

        yield Reading(f"a kernel launched alone, {name}", 1000 * milliseconds(eagerly, 5) / KERNELS, unit="us")


def clocks(setting: Setting) -> Iterator[Reading]:
    """While matrix products run."""
    a = torch.randn(MATRIX, MATRIX, device=setting.device, dtype=torch.bfloat16)
    out = torch.empty_like(a)
    for _ in range(1500):  # about two seconds; a thousand of them wait in the queue
        torch.mm(a, a, out=out)
    names = ("clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "temperature.gpu")
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise Skip(f"nvidia-smi does not answer ({error})") from None
    finally:
        setting.synchronize()
    for name, value in zip(names, printed.splitlines()[0].split(", "), strict=True):
        try:
            yield Reading(name, float(value))
        except ValueError:
            continue  # "[N/A]"


def copies(setting: Setting) -> Iterator[Reading]:
    known = limits(setting)
    note = f"the card's limit: {known.terabytes * 1000:.0f}" if known else ""
    a, b = (torch.randn(COPY_BYTES // 4, device=setting.device) for _ in range(2))
    rate = 2 * COPY_BYTES / milliseconds(lambda: b.copy_(a), 10) / 1e6
    yield Reading("device to device, bytes read and written", rate, unit="GB/s", note=note)
    yield Reading("elements that were not copied", float((a != b).sum()), 0)
    here = torch.randn(PINNED_BYTES // 4).pin_memory()
    there = torch.empty(PINNED_BYTES // 4, device=setting.device)
    for name, work in (
        ("pinned host to device", lambda: there.copy_(here, non_blocking=True)),
        ("device to pinned host", lambda: here.copy_(there, non_blocking=True)),
    ):
        yield Reading(name, PINNED_BYTES / milliseconds(work, 10) / 1e6, unit="GB/s")


def matrix_products(setting: Setting) -> Iterator[Reading]:
    """Random data: zeros are multiplied faster."""
    known = limits(setting)
    for size in (2048, MATRIX):
        pairs = [torch.randn(2, size, size, device=setting.device, dtype=torch.bfloat16) for _ in range(2)]
        out = torch.empty_like(pairs[0][0])
        turn = iter(range(10**6))
        rate = 2 * size**3 / milliseconds(lambda: torch.mm(*pairs[next(turn) % 2], out=out), 20) / 1e9  # noqa: B023
        note = f"the card's limit: {known.tflops:.0f}; {rate / known.tflops:.0%} of it" if known else ""
        yield Reading(f"bfloat16 {size} x {size} x {size}", rate, unit="TFLOP/s", note=note)
        row = pairs[0][0][:1].double() @ pairs[0][1].double()
        torch.mm(*pairs[0], out=out)
        yield Reading(f"its error, {size}", float((out[:1].double() - row).norm() / row.norm()), 1e-2, "relative")
