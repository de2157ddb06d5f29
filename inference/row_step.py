"""One step of a running batch (row_batch.py): every row in a window of its own, with what is known of it in the grid.

B places, C classes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..model.flatten import TEXT
from .guidance import weighed
from .step import Step

TO_DRAW = -2  # a code or text of the grid that is not known yet


class Pairs(NamedTuple):
    """The places of guided rows, of which each has two; others are their own pair."""

    own: Tensor  # [B] the first of a place's row, that is recorded
    without: Tensor  # [B] the one without text and voice


@dataclass(frozen=True, kw_only=True)
class RowStep(Step):
    draws_all: bool  # whether no code of it is known
    draws_text: bool  # whether some row draws text
    pairs: Pairs | None  # where rows are guided
    text_ends: Tensor | None  # [B] the token with which a row ends, where some may
    first: Tensor | None  # [B] the first frame that may end a row, where zeros do

    def known(self) -> dict[int, Tensor]:
        return {} if self.state.text is None or self.draws_text else {TEXT: self.state.text[:, self.column]}

    def choose(self, slot: int, logits: Tensor, guided: Tensor | None = None) -> Tensor:
        if self.pairs is not None and slot != TEXT:
            guided = weighed(logits, logits[self.pairs.without], self.sampling.guidance)
        return super().choose(slot, logits, guided)

    def draw_code(self, k: int, frame: int, logits: Tensor) -> Tensor:
        code = super().draw_code(k, frame, logits)
        return code if self.pairs is None else code[self.pairs.own]

    def known_or(self, drawn: Tensor, k: int, frame: int) -> Tensor:
        if self.draws_all:
            return drawn
        known = self.state.codes[:, k, frame]
        return torch.where(known == TO_DRAW, drawn, known)

    def ends_at(self, frame: int) -> Tensor:
        ends = super().ends_at(frame)
        return ends if self.first is None else ends & (frame >= self.first)

    def draw_text(self, logits: Tensor) -> Tensor:
        assert self.state.text is not None
        known = self.state.text[:, self.column]
        text = torch.where(known == TO_DRAW, self.new_text(logits), known)
        self.state.text[:, self.column] = text
        if self.text_ends is not None:
            self.state.end = torch.where(text == self.text_ends, self.column + 1, self.state.end)
        return text
