"""Classifier-free guidance: a walk of twice the rows, each with its text and, below, the same without.

A code is drawn from the logits without text + weight x what the text changes in them, and both rows go on from it.
The first half of each step's logits is the model's own: what is recorded. B rows.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..model.delay_pattern import ABSENT
from ..model.flatten import TEXT
from ..model.walk import Walk
from .frame_step import FrameStep
from .sampling import BatchSampling

if TYPE_CHECKING:
    from .grid import Request

# (slot, the model's own logits [B, C], those to draw from [B, C]) -> [B]
GuidedChoose = Callable[[int, Tensor, Tensor], Tensor]


class GuidedWalk:
    """In place of a `Walk` or a `FrameStep`, with their methods; `walk` is one of 2 B rows."""

    def __init__(self, walk: Walk | FrameStep, weight: float | Tensor):
        """weight: 0 draws as if there were no text, 1 as the model does; [B, 1] where rows differ."""
        self.walk = walk
        self.weight = weight

    @property
    def position(self) -> int:
        return self.walk.position

    def prefill(self, codes: Tensor, text: Tensor | None = None, user: Tensor | None = None) -> Tensor | None:
        """As `Walk.prefill`; the contexts are those with the text."""
        text = None if text is None else with_and_without(text)
        contexts = self.walk.prefill(twice(codes), text, None if user is None else twice(user))
        return None if contexts is None else contexts[: len(codes)]

    def step(self, choose: GuidedChoose, known: Mapping[int, Tensor] | None = None, user: Tensor | None = None) -> None:
        def choose_for_both(slot: int, logits: Tensor) -> Tensor:
            own, without = logits.chunk(2)
            return for_both(slot, choose(slot, own, weighed(own, without, self.weight)))

        self.walk.step(
            choose_for_both,
            {slot: for_both(slot, value) for slot, value in (known or {}).items()},
            None if user is None else twice(user),
        )


def weighed(own: Tensor, without: Tensor, weight: float | Tensor) -> Tensor:
    """The logits [B, C] to draw from, of a row's own and of those without its text. weight: see `GuidedWalk`."""
    return torch.lerp(without, own, weight.to(own.dtype) if isinstance(weight, Tensor) else weight)


def check_guided(request: "Request", sampling: BatchSampling) -> None:
    """Raise ValueError for a weight of the text where there is none."""
    has_text = request.text is not None or request.new_text is not None or request.draw_text
    if sampling.is_guided and not has_text:
        raise ValueError("guidance weighs the text, and none is given")


def for_both(slot: int, values: Tensor) -> Tensor:
    return with_and_without(values) if slot == TEXT else twice(values)


def twice(values: Tensor) -> Tensor:
    return torch.cat([values, values])


def with_and_without(text: Tensor) -> Tensor:
    return torch.cat([text, torch.full_like(text, ABSENT)])
