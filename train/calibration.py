"""The first steps of a run that has not begun: the frames, the operations and the time of one."""

import time

from ..model.cost import forward_flops_per_frame
from .trainer import Trainer

CALIBRATION_STEPS = 6  # whose mean is taken; for their time two more warm up


def operations_per_step(trainer: Trainer) -> float:
    """Forward operations of a batch, the mean over some."""
    total = 0.0
    for step in range(CALIBRATION_STEPS):
        for length in trainer.batches.rows(step).lengths():  # attention costs what the pieces of a row cost alone
            per_frame = forward_flops_per_frame(trainer.raw_model.config, length, trainer.config.depth_fraction)
            total += per_frame * length
    return total / CALIBRATION_STEPS


def seconds_per_step(trainer: Trainer) -> float:
    """Wall time of a training step; spoils the trainer's weights."""
    trainer.raw_model.train()
    for _ in range(2):
        trainer.train_step()
    started = time.monotonic()
    for _ in range(CALIBRATION_STEPS):
        trainer.train_step()
    return (time.monotonic() - started) / CALIBRATION_STEPS


def frames_per_step(trainer: Trainer) -> float:
    """Frames of speech in a batch, without padding, the mean over some."""
    codes = sum(int((trainer.batches.rows(step).codes >= 0).sum()) for step in range(CALIBRATION_STEPS))
    return codes / trainer.batches.num_codebooks / CALIBRATION_STEPS
