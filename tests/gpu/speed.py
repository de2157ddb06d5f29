"""How fast models train and generate on the device. Measurements: nothing depends on them."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from codeclm.inference.engine import generate
from codeclm.inference.grid import Request
from codeclm.model.cost import forward_flops_per_frame
from codeclm.model.presets import SHAPE_S
from codeclm.train.config import BatchConfig, ModelConfig, TrainConfig
from codeclm.train.new_model import new_model
from codeclm.train.trainer import Trainer

from .harness import Reading
from .launches import COPIES, LAUNCHES, WAITS, CountOperations, total
from .machine import limits
from .setting import Setting


def seconds(setting: Setting, work: Callable[[], object], repeats: int) -> float:
    """Median of `repeats`, by the host's clock, from when the device has nothing to do until it has nothing again."""
    taken = []
    for _ in range(repeats):
        setting.synchronize()
        started = time.perf_counter()
        work()
        setting.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


# --- training ---

SHAPES = {
    "tiny": ModelConfig(preset="tiny"),
    "S": ModelConfig(backbone=SHAPE_S[0], depth=SHAPE_S[1]),
    "small": ModelConfig(preset="small"),
}
CHUNKS = 256, 2048, 8192, 16_384  # frames that the depth decoder takes at a time
WAYS = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH
MOST = 15  # kernels, and operations, that a profile names


def training(setting: Setting) -> Iterator[Reading]:
    for shape in ("S", "small") if setting.is_cuda else ("tiny",):
        with trained(setting, shape) as trainer:
            yield from steps(setting, trainer, f"shape {shape}")
    shape = first_shape(setting)
    with trained(setting, shape, ragged=True) as trainer:
        yield from steps(setting, trainer, f"shape {shape}, pieces of all lengths, half of the depth decoder's frames")


def training_compiled(setting: Setting) -> Iterator[Reading]:
    shape = first_shape(setting)
    with trained(setting, shape, compile=True) as trainer:
        yield from steps(setting, trainer, f"shape {shape}, compiled blocks")
        yield from profiled(setting, trainer, "compiled")


def training_profile(setting: Setting) -> Iterator[Reading]:
    """What a step takes by the size of a chunk, and what the automatic one spends it on."""
    shape = first_shape(setting)
    with trained(setting, shape) as trainer:
        config = trainer.config
        for chunk in CHUNKS if setting.is_cuda else (8, 256):
            trainer.config = replace(config, depth_chunk=chunk)
            yield from steps(setting, trainer, f"shape {shape}, depth_chunk {chunk}", warm=1, timed=3)
        trainer.config = config
        yield from profiled(setting, trainer, "plain")
    yield from depth_attention(setting)


def first_shape(setting: Setting) -> str:
    return "S" if setting.is_cuda else "tiny"


@contextmanager
def trained(setting: Setting, shape: str, compile: bool = False, ragged: bool = False) -> Iterator[Trainer]:
    """A trainer in bfloat16, on codes of the embedded codec's shape. ragged: no step has the sizes of another one."""
    frames, long = setting.amount("batch_frames", 16_384, 256), setting.amount("long", 512, 64)
    folder = setting.scratch / f"speed-{time.monotonic_ns()}"
    name, count = f"{folder.name}-store", setting.amount("utterances", 256, 16)
    store = setting.store(name, 4 * count if ragged else count, long // 2 if ragged else long, ragged)
    config = TrainConfig(
        steps=100, batch=BatchConfig(frames_per_batch=frames, max_frames=long, heldout_share=0.05),
        model=SHAPES[shape], device=setting.device.type, compile=compile, depth_fraction=0.5 if ragged else 1.0,
    )  # fmt: skip
    with Trainer(new_model(store, config), setting.codec, store, folder, config) as trainer:
        yield trainer


def steps(setting: Setting, trainer: Trainer, name: str, warm: int = 3, timed: int = 6) -> Iterator[Reading]:
    known, model, longest = limits(setting), trainer.raw_model, int(trainer.store.num_frames.max())
    for _ in range(setting.amount("warm_steps", warm, 1)):
        trainer.train_step()
    if setting.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    codes: list[float] = []
    taken = seconds(
        setting, lambda: codes.append(trainer.train_step()["codes"]), setting.amount("timed_steps", timed, 2)
    )
    frames = statistics.mean(codes) / model.num_codebooks
    tflops = 3 * forward_flops_per_frame(model.config, longest) * frames / taken / 1e12
    note = f"{1000 * taken:.1f} ms for {frames:.0f} frames"
    if known:
        note += f"; {tflops / known.tflops:.1%} of the card's limit {known.tflops:.0f} TFLOP/s (MFU)"
    if setting.is_cuda:
        note += f"; {torch.cuda.max_memory_allocated() / 1e9:.1f} GB at most"
    yield Reading(name, frames / taken, unit="frames/s", note=note)


def profiled(setting: Setting, trainer: Trainer, name: str) -> Iterator[Reading]:
    """One step: operations, launches, waits of the host, and what takes longest on the device and on the host."""
    with CountOperations() as counted:
        trainer.train_step()
    yield Reading(f"{name}: operations of torch", counted.count, unit="a step")
    setting.synchronize()
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * setting.is_cuda]
    with profile(activities=activities) as found:
        trainer.train_step()
        setting.synchronize()
    events = found.events() or []
    calls = Counter(event.name for event in events)
    for kind, prefixes in (("kernel launches", LAUNCHES), ("copies and fills", COPIES), ("waits of the host", WAITS)):
        yield Reading(f"{name}: {kind}", total(calls, prefixes), unit="a step")
    kernels, times = Counter(), Counter()
    for event in events:
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            kernels[event.name] += 1
            times[event.name] += event.device_time_total / 1000
    yield Reading(f"{name}: all kernels", times.total(), unit="ms")
    for kernel, taken in times.most_common(MOST):
        yield Reading(f"{name}: kernel {short(kernel)}", taken, unit="ms", note=f"{kernels[kernel]} times")
    ours = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    for event in ours[:MOST]:
        taken, note = event.self_cpu_time_total / 1000, f"{event.count} times"
        yield Reading(f"{name}: host {short(event.key)}", taken, unit="ms", note=note)


def short(name: str) -> str:
    """The name of a kernel without its templates' first words."""
    return name.replace("void ", "").replace("at::native::", "").replace("(anonymous namespace)::", "")[:100]


def depth_attention(setting: Setting) -> Iterator[Reading]:
    """There and back, in each way that torch has, at the shape of a chunk of the depth decoder."""
    shape = SHAPES[first_shape(setting)].parts[1]
    rows = setting.amount("attention_rows", 8192, 8)
    size = rows, shape.num_heads, 7, shape.size_of_head
    query, key, value = (torch.randn(size, device=setting.device, dtype=torch.bfloat16) for _ in range(3))
    query.requires_grad_()
    for way in WAYS:
        try:
            with sdpa_kernel(way):
                work = partial(there_and_back, query, key, value)
                work()
                taken = seconds(setting, work, 3)
        except RuntimeError:  # this device does not have it
            continue
        yield Reading(f"depth attention, {rows} rows, {way.name.lower()}", 1000 * taken, unit="ms")


def there_and_back(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.autograd.grad(mixed, query, mixed.detach())


# --- generation ---


def generation(setting: Setting) -> Iterator[Reading]:
    """Frames of the embedded model, all rows together."""
    model, rate = setting.there(setting.model), setting.codec.frame_rate
    warm, timed = setting.amount("warm_frames", 16, 2), setting.amount("timed_frames", 100, 6)
    for batch in (1, 16):
        states = generate(model, Request(warm + timed, setting.codes[0, :, :10]), range(batch))
        for _ in range(warm):
            next(states)
        taken = seconds(setting, lambda states=states: [next(states) for _ in range(timed)], 1)
        speed = batch * timed / taken
        note = f"{timed / taken / rate:.2f} times real time for each row"
        yield Reading(f"{batch} rows", speed, unit="frames/s", note=note)
