"""The trainer on the device: the CPU's losses in float32; bfloat16 and compiled blocks near them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from codeclm.model.lm import SpeechLM
from codeclm.train.config import BatchConfig, ModelConfig, OptimizerConfig, TrainConfig
from codeclm.train.new_model import new_model
from codeclm.train.trainer import Trainer

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


@dataclass
class Trained:
    model: SpeechLM
    losses: list[float]
    heldout: float  # bits/s
    bf16: bool


def train(setting: Setting, name: str, config: TrainConfig) -> Trained:
    """A new model on a store of its own, on `config.device`."""
    store = setting.store(name, 24, 64)
    model = new_model(store, config)
    with Trainer(model, setting.codec, store, setting.scratch / f"{name}-run", config) as trainer:
        assert trainer.accelerator.device.type == config.device
        losses = [trainer.train_step()["loss"] for _ in range(config.steps)]
        return Trained(model, losses, trainer.evaluate(), trainer.bf16)


def steps_as_cpu(setting: Setting) -> Iterator[Reading]:
    """Float32: loss by loss, and every weight afterwards."""
    config = replace(CONFIG, steps=setting.amount("steps", 20, 4))
    here = train(setting, "float32-cpu", replace(config, device="cpu"))
    there = train(setting, "float32-there", replace(config, device=setting.device.type))
    for step in (0, config.steps - 1):
        yield Reading(f"loss of step {step}", abs(there.losses[step] / here.losses[step] - 1), 1e-3, "relative")
    yield Reading("largest difference of all steps", furthest(there, here), 1e-3, "relative")
    yield Reading("held-out speech afterwards", abs(there.heldout / here.heldout - 1), 1e-3, "relative")
    pairs = zip(here.model.parameters(), there.model.parameters(), strict=True)
    # AdamW moves a weight whose gradient is nearly 0 by the learning rate, whichever sign rounding gives it
    yield Reading("largest difference of a weight", max(difference(b, a) for a, b in pairs))


def furthest(one: Trained, other: Trained) -> float:
    """Of the losses of each step, relative; infinite for NaN."""
    apart = [abs(a / b - 1) for a, b in zip(one.losses, other.losses, strict=True)]
    return max(value if math.isfinite(value) else math.inf for value in apart)


def near_float32(setting: Setting, compile: bool) -> Iterator[Reading]:
    kind = "compiled" if compile else "plain"
    config = replace(CONFIG, steps=setting.amount("steps", 20, 4), device=setting.device.type)
    single = train(setting, f"float32-for-{kind}", config)
    half = train(setting, f"bfloat16-{kind}", replace(config, bf16=True, compile=compile))
    yield Reading("largest difference to float32", furthest(half, single), HALF, "relative")
    if setting.is_cuda:
        yield Reading("computed in float32", float(not half.bf16), 0)
    if config.steps >= 20:
        yield Reading("last 5 losses / first 5", sum(half.losses[-5:]) / sum(half.losses[:5]), FALL)
    yield Reading("held-out speech afterwards", half.heldout, unit="bits/s")


def bfloat16(setting: Setting) -> Iterator[Reading]:
    return near_float32(setting, compile=False)


def bfloat16_compiled(setting: Setting) -> Iterator[Reading]:
    return near_float32(setting, compile=True)
