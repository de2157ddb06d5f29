"""The optimizer and its schedule, as functions of a config and a step."""

import math

import torch
from torch import nn

from .config import OptimizerConfig


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only (not on embeddings, norms or anything with one dimension)."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [p for p in learning if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in learning if p.ndim < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    fused = all(parameter.is_cuda for parameter in learning) or None  # one kernel for all of them; None: torch's choice
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine from the full rate to final_share of it at `steps`."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    progress = min(1.0, max(0.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps)))
    share = config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * warm * share
