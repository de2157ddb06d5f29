"""Classifier-free guidance: each row walks twice, with its text and without.

A code is drawn from the logits without text + weight x what the text changes in them, and both walks go on from it.
Where a voice comes before the text, the walk without begins after it, so that the weight is that of both.
What is recorded are the logits with the text: the model's own. B rows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..model.delay_pattern import ABSENT
from ..model.flatten import TEXT
from ..model.walk import Walk
from .frame_step import FrameStep, Steps
from .sampling import BatchSampling

if TYPE_CHECKING:
    from .grid import Request

# (slot, the model's own logits [B, C], those to draw from [B, C]) -> [B]
GuidedChoose = Callable[[int, Tensor, Tensor], Tensor]


class GuidedWalk:
    """Two walks in place of one, with the methods of a `Walk`."""

    def __init__(self, own: Walk, without: Walk, weight: float | Tensor):
        """weight: 0 draws as if there were no text, 1 as the model does; [B, 1] where rows differ."""
        self.own, self.without, self.weight = own, without, weight

    @property
    def position(self) -> int:
        return self.own.position

    def prefill(
        self, codes: Tensor, text: Tensor | None = None, user: Tensor | None = None, num_voice: int = 0
    ) -> Tensor | None:
        """As `Walk.prefill`; the contexts are those with the text. num_voice: the first steps are a voice's."""
        self.without.prefill(*after_voice(self.own.model.config.delays, num_voice, codes, text, user))
        return self.own.prefill(codes, text, user)

    def step(self, choose: GuidedChoose, known: Mapping[int, Tensor] | None = None, user: Tensor | None = None) -> None:
        known = known or {}
        for walk in (self.own, self.without):
            walk.begin()
        for slot in self.own.slots:
            if slot in known:
                value = known[slot]
            else:
                own, without = (walk.logits(slot) for walk in (self.own, self.without))
                value = choose(slot, own, weighed(own, without, self.weight))
            self.own.take(slot, value)
            self.without.take(slot, torch.full_like(value, ABSENT) if slot == TEXT else value)
        for walk in (self.own, self.without):
            walk.finish(user)


class GuidedStep:
    """The same in one frame step of 2 B rows, those without their text below the others."""

    def __init__(self, walk: FrameStep, weight: float | Tensor):
        self.walk, self.weight = walk, weight

    @property
    def position(self) -> int:
        return self.walk.position

    def prefill(
        self, codes: Tensor, text: Tensor | None = None, user: Tensor | None = None, num_voice: int = 0
    ) -> Tensor | None:
        """As `GuidedWalk.prefill`."""
        without = after_voice(self.walk.model.config.delays, num_voice, codes, text, user)
        return self.walk.prefill_parts([(codes, text, user), without])

    def step(self, choose: GuidedChoose, known: Mapping[int, Tensor] | None = None, user: Tensor | None = None) -> None:
        def choose_for_both(slot: int, logits: Tensor) -> Tensor:
            own, without = logits.chunk(2)
            return for_both(slot, choose(slot, own, weighed(own, without, self.weight)))

        self.walk.step(
            choose_for_both,
            {slot: for_both(slot, value) for slot, value in (known or {}).items()},
            None if user is None else twice(user),
        )


def after_voice(
    delays: Sequence[int], num_voice: int, codes: Tensor, text: Tensor | None, user: Tensor | None
) -> Steps:
    """Steps [B, ..., S] without their text and the first ones, a voice's, whose last codes lag."""
    codes = codes[..., num_voice:]
    if num_voice:
        codes = codes.clone()
        for k, lag in enumerate(delays):
            codes[:, k, :lag] = ABSENT
    return (
        codes,
        None if text is None else torch.full_like(text[..., num_voice:], ABSENT),
        None if user is None else user[..., num_voice:],
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
    return torch.cat([values, torch.full_like(values, ABSENT) if slot == TEXT else values])


def twice(values: Tensor) -> Tensor:
    return torch.cat([values, values])
