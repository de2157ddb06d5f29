"""The tokens of a text that were told last: what a column of a "timed" model hears beside the newest one.

    text           BOS  SAY  a    b    c    c    EOS  PAD
    1 before it     .    .   SAY  a    b    b    c    EOS
    2 before it     .    .    .   SAY  a    a    b    c

A text that is said runs A tokens ahead of its sound (data/align.py). So the oldest of these is the one that is being
said, and what comes next stands beside it: a model need not find its place in the text.
B rows, S columns, A tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .delay_pattern import ABSENT


def recent_tokens(text: Tensor, count: int, start: int) -> Tensor:
    """text [B, S] from the start of its rows on -> [B, A, S], oldest first; ABSENT where fewer began before the newest.

    A token begins where it differs from the one before; ABSENT columns change nothing. count: A. start: the token that
    stands at the start of a row, or of a document in it: what came before is forgotten.
    """
    return _begun(text, count + 1, start)[:, :-1]


def _begun(text: Tensor, count: int, start: int) -> Tensor:
    """[B, count, S] the last tokens that began up to each column, oldest first."""
    columns, is_start = torch.arange(text.shape[1], device=text.device).expand_as(text), text == start
    last = torch.where(text != ABSENT, columns, -1).cummax(dim=1).values
    newest = torch.where(last >= 0, text.gather(1, last.clamp_min(0)), ABSENT)
    begins = (text != F.pad(newest[:, :-1], (1, 0), value=ABSENT)) & (text != ABSENT) & ~is_start
    number = begins.cumsum(dim=1)  # [B, S] tokens that have begun
    forgotten = torch.where(is_start, number, 0).cummax(dim=1).values
    in_order = F.pad(torch.full_like(text, ABSENT), (1, 0)).scatter(1, torch.where(begins, number, 0), text)
    index = number[:, None] - torch.arange(count - 1, -1, -1, device=text.device)[:, None]
    found = in_order[:, None].expand(-1, count, -1).gather(2, index.clamp_min(0))
    return torch.where(index > forgotten[:, None], found, ABSENT)


class RecentTokens:
    """The same as columns come."""

    def __init__(self, batch: int, count: int, start: int, device: torch.device):
        """count, start: as `recent_tokens` takes them."""
        self.start = start
        self.tokens = torch.full((batch, count + 1), ABSENT, device=device)  # [B, A + 1] the newest one last

    def extend(self, text: Tensor) -> Tensor:
        """The next columns of all rows, text [B, S] -> [B, A, S]."""
        count = self.tokens.shape[1]
        begun = _begun(torch.cat([self.tokens, text], dim=1), count, self.start)
        self.tokens = begun[:, :, -1]
        return begun[:, :-1, count:]

    def take(self, text: Tensor) -> Tensor:
        """The next column of all rows, text [B] -> [B, A]."""
        begins = (text != ABSENT) & (text != self.tokens[:, -1])
        tokens = torch.where(begins[:, None], torch.cat([self.tokens[:, 1:], text[:, None]], dim=1), self.tokens)
        self.tokens = torch.where((text == self.start)[:, None], ABSENT, tokens)
        return self.tokens[:, :-1]

    def put(self, rows: slice, other: "RecentTokens", index: Tensor | slice = slice(None)) -> None:
        """Let rows be where those of another one are."""
        self.tokens = self.tokens.clone()
        self.tokens[rows] = other.tokens[index]
