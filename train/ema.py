"""A running average of a model's weights, which is evaluated and kept instead of those that learn."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .sharding import part_of


class Ema:
    """average <- decay * average + (1 - decay) * weights, with a smaller decay in the first steps.

    `tensors` has the average of each parameter by name, in float32 or better.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        wide = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
        self.tensors: dict[str, Tensor] = {
            name: weight.detach().to(wide.get(weight.dtype, weight.dtype), copy=True)
            for name, weight in self._weights.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step 1, 2, ..: so early that the average still holds the first weights, it forgets faster."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [self._weights[name].detach().to(average) for name, average in self.tensors.items()]
        averages = list(self.tensors.values())
        torch._foreach_lerp_(averages, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, average in self.tensors.items():
            average.copy_(part_of(tensors[name], average))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average as its weights while the block lasts."""
        with torch.no_grad():
            learned = {name: weight.detach().clone() for name, weight in self._weights.items()}
            for name, weight in self._weights.items():
                weight.copy_(self.tensors[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self._weights.items():
                    weight.copy_(learned[name])
