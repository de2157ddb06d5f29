"""A run that is given another number of steps: which checkpoint it goes on from, and what is said of that."""

from pathlib import Path

from .checkpoint import latest_checkpoint, load_state
from .config import RunConfig
from .schedule import decay_start

BEFORE_DECAY = "before-decay"  # folder of a run: its checkpoint where the schedule "wsd" began to decay


def resume_from(out: Path, newest: Path, config: RunConfig) -> tuple[Path, str]:
    """-> the checkpoint, and a line to log ("" if the number of steps is the same).

    A run with the schedule "wsd" that has begun to decay goes back to where it did: then it is, step for step, the run
    that was longer from the beginning.
    """
    state = load_state(newest)
    step, steps = state["step"], state.get("steps", config.steps)
    if steps == config.steps:
        return newest, ""
    changed = f"steps was {steps} and is {config.steps}"
    if config.optimizer.schedule == "cosine":
        return newest, f"{changed}: from here the learning rate follows another cosine"
    if config.steps < steps or step <= decay_start(config.optimizer, steps):
        return newest, f"{changed}: the learning rate decays from step {decay_start(config.optimizer, config.steps)}"
    whole = latest_checkpoint(out / BEFORE_DECAY)
    if whole is None or load_state(whole)["step"] > step:
        return newest, f"{changed}: the learning rate had decayed, rises to its peak again, and decays at the new end"
    back = load_state(whole)["step"]
    return whole, f"{changed}: the learning rate had begun to decay, so the run goes on from step {back}, before that"
