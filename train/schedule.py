"""The learning rate of each step: a linear warm-up, and then one of two shapes.

    wsd     constant, and in the last `decay_share` of the steps down to `final_share` as 1 - sqrt (arXiv:2405.18392)
    cosine  down to `final_share` from the warm-up on

Until its decay begins, wsd does not depend on the number of steps: a run that is extended goes on from there.
"""

import math

from .config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of step 0, 1, .. of a run of `steps`."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    first = decay_start(config, steps)
    progress = min(1.0, max(0.0, (step - first) / max(1, steps - first)))
    left = 1 - math.sqrt(progress) if config.schedule == "wsd" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * warm * (config.final_share + (1 - config.final_share) * left)


def decay_start(config: OptimizerConfig, steps: int) -> int:
    """The last step at the full rate."""
    if config.schedule == "cosine":
        return config.warmup_steps
    return max(config.warmup_steps, steps - round(config.decay_share * steps))
