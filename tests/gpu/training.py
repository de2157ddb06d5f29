"""The trainer on the device: the CPU's losses in float32; bfloat16 and compiled blocks near them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState

from codeclm.train.config import BatchConfig, ModelConfig, OptimizerConfig, TrainConfig
from codeclm.train.loop import Trainer, new_model

from .harness import Reading, difference
from .setting import Setting

CONFIG = TrainConfig(
    steps=20,
    bf16=False,
    batch=BatchConfig(frames_per_batch=512, max_frames=64, heldout_share=0.1),
    optimizer=OptimizerConfig(warmup_steps=5),
    model=ModelConfig(preset="tiny"),
)
HALF = 0.02  # by how much of it the loss may change in bfloat16
FALL = 0.97  # of the first losses that the last ones are at most


@contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """accelerate chooses its device once for a process: let it choose again, with no GPU to be seen for the CPU."""
    AcceleratorState._reset_state(True)
    with ExitStack() as stack:
        if device.type == "cpu":
            stack.enter_context(patch("torch.cuda.is_available", lambda: False))
        yield


def trained(setting: Setting, name: str, device: torch.device, config: TrainConfig) -> tuple[list[float], Trainer]:
    """The loss of each step, of a new model on a store of its own."""
    store = setting.store(name, 24, 64)
    with computing_on(device):
        model = new_model(store, config)
        trainer = Trainer(model, setting.codec, store, setting.scratch / f"{name}-run", config)
        if trainer.accelerator.device.type != device.type:
            raise AssertionError(f"the trainer runs on {trainer.accelerator.device}, not on {device}")
        trainer.raw_model.train()
        losses = [trainer.train_step()["loss"] for _ in range(config.steps)]
    return losses, trainer


def steps_as_cpu(setting: Setting) -> Iterator[Reading]:
    """Float32: loss by loss, and every weight afterwards."""
    config = replace(CONFIG, steps=setting.amount("steps", 20, 4))
    expected, here = trained(setting, "float32-cpu", torch.device("cpu"), config)
    losses, there = trained(setting, "float32-there", setting.device, config)
    for step in (0, len(losses) - 1):
        yield Reading(f"loss of step {step}", abs(losses[step] / expected[step] - 1), 1e-3, "relative")
    worst = max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True))
    yield Reading("largest difference of all steps", worst, 1e-3, "relative")
    pairs = zip(here.raw_model.parameters(), there.raw_model.parameters(), strict=True)
    # AdamW moves a weight whose gradient is nearly 0 by the learning rate, whichever sign rounding gives it
    yield Reading("largest difference of a weight", max(difference(b, a) for a, b in pairs))


def near_float32(setting: Setting, compile: bool) -> Iterator[Reading]:
    config, kind = replace(CONFIG, steps=setting.amount("steps", 20, 4)), "compiled" if compile else "plain"
    expected, _ = trained(setting, f"float32-for-{kind}", setting.device, config)
    losses, trainer = trained(setting, f"bfloat16-{kind}", setting.device, replace(config, bf16=True, compile=compile))
    worst = max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True))
    precision = "bf16" if trainer.bf16 else "float32"
    yield Reading("largest difference to float32", worst, HALF, "relative", f"precision {precision}")
    if setting.is_cuda:
        yield Reading("precision is not bf16", float(precision != "bf16"), 0)
    if len(losses) >= 20:
        yield Reading("last 5 losses / first 5", sum(losses[-5:]) / sum(losses[:5]), FALL)
    rate = trainer.evaluate()
    yield Reading("held-out speech afterwards", rate, unit="bits/s")


def bfloat16(setting: Setting) -> Iterator[Reading]:
    return near_float32(setting, compile=False)


def bfloat16_compiled(setting: Setting) -> Iterator[Reading]:
    return near_float32(setting, compile=True)
