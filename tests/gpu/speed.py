"""How fast models train and generate on the device. Measurements: nothing depends on them."""

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from codeclm.inference.engine import Request, generate
from codeclm.model.cost import forward_flops_per_frame
from codeclm.model.presets import SHAPE_S
from codeclm.train.config import BatchConfig, ModelConfig, TrainConfig
from codeclm.train.new_model import new_model
from codeclm.train.trainer import Trainer

from .harness import Reading
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


SHAPES = {
    "tiny": ModelConfig(preset="tiny"),
    "S": ModelConfig(backbone=SHAPE_S[0], depth=SHAPE_S[1]),
    "small": ModelConfig(preset="small"),
}


def training(setting: Setting) -> Iterator[Reading]:
    for shape in ("S", "small") if setting.is_cuda else ("tiny",):
        yield from steps(setting, shape, compile=False)


def training_compiled(setting: Setting) -> Iterator[Reading]:
    return steps(setting, "S" if setting.is_cuda else "tiny", compile=True)


def steps(setting: Setting, shape: str, compile: bool) -> Iterator[Reading]:
    """Steps of the trainer in bfloat16, on codes of the embedded codec's shape."""
    known, frames, long = limits(setting), setting.amount("batch_frames", 16_384, 256), setting.amount("long", 512, 64)
    name = f"shape {shape}" + ", compiled blocks" * compile
    store = setting.store(f"speed {name}", setting.amount("utterances", 256, 16), long)
    config = TrainConfig(
        steps=20, batch=BatchConfig(frames_per_batch=frames, max_frames=long, heldout_share=0.05),
        model=SHAPES[shape], device=setting.device.type, compile=compile,
    )  # fmt: skip
    model = new_model(store, config)
    with Trainer(model, setting.codec, store, setting.scratch / name, config) as trainer:
        for _ in range(setting.amount("warm_steps", 4, 1)):
            trainer.train_step()
        if setting.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        taken = seconds(setting, trainer.train_step, setting.amount("timed_steps", 8, 2))
    rate = frames / taken
    yield Reading(f"{name}, {frames} frames a step", rate, unit="frames/s")
    tflops = 3 * forward_flops_per_frame(model.config, long) * rate / 1e12
    note = f"{tflops / known.tflops:.1%} of the card's limit {known.tflops:.0f} (MFU)" if known else ""
    yield Reading(f"{name}, by model/cost.py", tflops, unit="TFLOP/s", note=note)
    if setting.is_cuda:
        yield Reading(f"{name}, memory at most", torch.cuda.max_memory_allocated() / 1e9, unit="GB")


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
