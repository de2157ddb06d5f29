"""The optimizer of a run, as a function of the model and a config; the rate of each step is schedule.py's.

Matrices learn at the rate x `rate_scale`, which falls with the width of the model (muP, arXiv:2203.03466), and decay;
embeddings, norms and biases do neither. With "muon" the matrices of the blocks take its orthogonal steps, all else
AdamW's.
"""

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..model.lm import SpeechLM
from ..model.transformer import Block
from .config import OptimizerConfig


def make_optimizer(model: SpeechLM, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of all parameters that require a gradient; each group's "rate_scale" multiplies its rate."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [p for p in learning if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in learning if p.ndim < 2 or id(p) in embeddings]
    scale = rate_scale(config, model.config.backbone.dim)
    # one kernel for all of them on a GPU; None: torch's choice
    settings = {"lr": config.learning_rate, "betas": config.betas, "fused": all(p.is_cuda for p in learning) or None}
    rest = {"params": others, "weight_decay": 0.0, "rate_scale": 1.0}
    if config.kind == "adamw":
        matrices = {"params": decayed, "weight_decay": config.weight_decay, "rate_scale": scale}
        return torch.optim.AdamW([matrices, rest], **settings)
    inner = {id(p) for block in model.modules() if isinstance(block, Block) for p in block.parameters() if p.ndim == 2}
    muon = {"params": [p for p in decayed if id(p) in inner], "rate_scale": scale}
    outer = {"params": [p for p in decayed if id(p) not in inner], "rate_scale": scale}
    return Joined(
        torch.optim.Muon([muon], lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn=AS_ADAMW),
        torch.optim.AdamW([outer | {"weight_decay": config.weight_decay}, rest], **settings),
    )


AS_ADAMW = "match_rms_adamw"  # steps as large as AdamW's, so that one learning rate does for both


def rate_scale(config: OptimizerConfig, width: int) -> float:
    """The rate of a matrix, as a share of the learning rate, in a model of this width."""
    return min(1.0, config.rate_width / width) if config.rate_width else 1.0


class Joined(torch.optim.Optimizer):
    """Several optimizers that act as one; groups and state are theirs, in their order."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return list(chain.from_iterable(part.param_groups for part in self.parts))

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self, closure: Callable[[], float] | None = None) -> Tensor | None:  # pyright: ignore
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Parameters are numbered through all parts."""
        state, groups, first = {}, [], 0
        for part in self.parts:
            found = part.state_dict()
            state |= {first + number: values for number, values in found["state"].items()}
            groups += found["param_groups"]
            first += sum(len(group["params"]) for group in part.param_groups)
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        first = 0
        for part in self.parts:
            last = first + sum(len(group["params"]) for group in part.param_groups)
            state = {n - first: values for n, values in state_dict["state"].items() if first <= n < last}
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})
            first = last
