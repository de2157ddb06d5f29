"""The next tokens of a text that is being said: what a column of a "timed" model is told beside the token it is at.

    text         SAY  a  b  c  EOS  PAD  a  a  b  b  c
    lookahead 1   .   .  .  .   a    a   b  b  c  c  .
    lookahead 2   .   .  .  .   b    b   c  c  .  .  .

A text is given between SAY and EOS, and each of its tokens is held beside the audio until the next one (data/align.py).
So a column's next tokens follow from the columns up to it: a model need not find in the given text where it stands.
B rows, S columns, A tokens ahead, L tokens of a text.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .delay_pattern import ABSENT
from .text_tokens import EOS, PAD, SAY, WRITE

OUTSIDE, GIVEN, SAID = 0, 1, 2  # where a row is: in no text, in one that is being given, or beside its audio


def next_tokens(text: Tensor, count: int, start: int) -> Tensor:
    """text [B, S] from the start of its rows on -> [B, A, S], ABSENT where nothing is being said or no more is left.

    count: A. start: the token that stands at the start of a row, or of a document in it, which ends a text.
    """
    return Lookahead(len(text), count, start, text.device).first(text)


class Lookahead:
    """Where the rows of a batch are in the texts that they are given."""

    def __init__(self, batch: int, count: int, start: int, device: torch.device):
        """count, start: as `next_tokens` takes them."""
        nothing = torch.zeros(batch, dtype=torch.int64, device=device)
        self.count, self.start = count, start
        self.tokens = torch.full((batch, 1), ABSENT, device=device)  # [B, L]
        self.num_tokens = nothing  # [B] that have been given
        self.num_begun = nothing  # [B] of these
        self.place = nothing  # [B] OUTSIDE, GIVEN or SAID
        self.before = torch.full_like(nothing, ABSENT)  # [B] the column before
        self.most_tokens = 0  # of any row, as far as is known without asking the device; 0: no column was taken

    def extend(self, text: Tensor) -> Tensor:
        """The next columns of all rows, text [B, S] -> [B, A, S]."""
        if not self.most_tokens:
            return self.first(text)
        return torch.stack([self.take(column) for column in text.unbind(1)], dim=2)

    def first(self, text: Tensor) -> Tensor:
        """The first columns of all rows, text [B, S] -> [B, A, S]."""
        columns = torch.arange(text.shape[1], device=text.device).expand_as(text)
        before = F.pad(text[:, :-1], (1, 0), value=ABSENT)

        def last(mask: Tensor) -> Tensor:
            """[B, S] the last column up to each in which it is so; -1: none."""
            return torch.where(mask, columns, -1).cummax(dim=1).values

        def since(mask: Tensor, column: Tensor) -> Tensor:
            """[B, S] how often it was so after a column [B, S]."""
            total = F.pad(mask.cumsum(dim=1), (1, 0))
            return total[:, 1:] - total.gather(1, column + 1)

        say, eos = last(text == SAY), last(text == EOS)
        num_ends = since(text == EOS, say)
        inside = (say >= 0) & (say > last((text == WRITE) | (text == self.start))) & (num_ends < 2)
        place = torch.where(inside, 1 + num_ends, OUTSIDE)
        num_tokens = torch.where(num_ends == 0, columns, eos) - say - (num_ends > 0).long()
        begun = since((text > PAD) & (text != before), eos)
        index = (say + 1 + begun)[:, None] + torch.arange(self.count, device=text.device)[:, None]
        found = text[:, None].expand(-1, self.count, -1).gather(2, index.clamp(max=text.shape[1] - 1))
        is_there = (place == SAID)[:, None] & (index < eos[:, None])
        self.tokens = text.gather(1, (say[:, -1:] + 1 + columns).clamp(max=text.shape[1] - 1))
        self.num_tokens, self.num_begun = num_tokens[:, -1], begun[:, -1]
        self.place, self.before, self.most_tokens = place[:, -1], text[:, -1], text.shape[1]
        return torch.where(is_there, found, ABSENT)

    def take(self, text: Tensor) -> Tensor:
        """The next column of all rows, text [B] -> [B, A]."""
        if self.most_tokens == self.tokens.shape[1]:
            self.tokens = F.pad(self.tokens, (0, max(64, self.most_tokens)), value=ABSENT)
        self.most_tokens += 1
        begins, is_eos = text == SAY, text == EOS
        stops = (text == WRITE) | (text == self.start)
        adds = (self.place == GIVEN) & ~(begins | is_eos | stops)
        slot = self.num_tokens[:, None]
        self.tokens = self.tokens.scatter(
            1, slot, torch.where(adds[:, None], text[:, None], self.tokens.gather(1, slot))
        )
        new = (self.place == SAID) & (text > PAD) & (text != self.before)
        self.num_tokens = torch.where(begins, 0, self.num_tokens + adds)
        self.num_begun = torch.where(begins | is_eos, 0, self.num_begun + new)
        after = torch.where(self.place == GIVEN, SAID, OUTSIDE)  # an EOS
        place = torch.where(is_eos, after, torch.where(stops, OUTSIDE, self.place))
        self.place, self.before = torch.where(begins, GIVEN, place), text
        index = self.num_begun[:, None] + torch.arange(self.count, device=text.device)
        is_there = (self.place == SAID)[:, None] & (index < self.num_tokens[:, None])
        return torch.where(is_there, self.tokens.gather(1, index.clamp(max=self.tokens.shape[1] - 1)), ABSENT)

    def put(self, rows: slice, other: "Lookahead", index: Tensor | slice = slice(None)) -> None:
        """Let rows be where those of another one are."""
        width = max(self.tokens.shape[1], other.tokens.shape[1])
        mine, theirs = (F.pad(x, (0, width - x.shape[1]), value=ABSENT) for x in (self.tokens, other.tokens))
        mine[rows] = theirs[index]
        self.tokens = mine
        for name in ("num_tokens", "num_begun", "place", "before"):
            values = getattr(self, name).clone()
            values[rows] = getattr(other, name)[index]
            setattr(self, name, values)
        self.most_tokens = max(self.most_tokens, other.most_tokens)
