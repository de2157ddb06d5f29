"""The tokens of a text that were told last: what a step of a "timed" model hears beside its own, and predicts of them.

    text           BOS  SAY  a    b    PAD  c    PAD  EOS
    newest          .   SAY  a    b    b    c    c    EOS
    1 before it     .    .   SAY  a    a    b    b    c
    2 before it     .    .    .   SAY  SAY  a    a    b

A text that is said runs some tokens ahead of its sound (data/align.py). So the oldest of these is the one that is being
said, and what comes next stands beside it: a model need not find its place in the text.
B rows, S columns, A tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .delay_pattern import ABSENT
from .text_tokens import PAD, SAY, UNNAMED, WRITE


def is_told(text: Tensor) -> Tensor:
    """Text tokens of any shape -> bool, those that are tokens: neither PAD nor ABSENT."""
    return (text != ABSENT) & (text != PAD)


def of_any_token(logits: Tensor) -> Tensor:
    """Logits [..., C] of a step's text -> that of all tokens but PAD together [...]: of any being told."""
    return torch.cat([logits[..., :PAD], logits[..., PAD + 1 :]], dim=-1).logsumexp(dim=-1)


def only_timed(text: Tensor) -> Tensor:
    """Text [B, S] of a "timed" model -> what it is to predict of it: where a text is to be said, that a token is told.

    Which one is given, and nobody ever draws it (inference/pacing.py).
    """
    tag, is_after = last_tags(text)
    return torch.where((tag == SAY) & is_after & is_told(text), UNNAMED, text)


def is_heard_beside(text: Tensor) -> Tensor:
    """Text [B, S] of a "timed" model -> bool, the columns whose audio is written down."""
    return (last_tags(text)[0] == WRITE) & (text != ABSENT)


def last_tags(text: Tensor) -> tuple[Tensor, Tensor]:
    """Text [B, S] -> the tag in or before each column, the first column's token where there is none, and whether the
    tag is before it. Columns without a text may have one of another document."""
    place = torch.arange(text.shape[1], device=text.device)
    tag = torch.where((text == SAY) | (text == WRITE), place, 0).cummax(dim=1).values
    return text.gather(1, tag), tag < place


def recent_tokens(text: Tensor, count: int, start: int) -> Tensor:
    """text [B, S] from the start of its rows on -> [B, A, S], oldest first; ABSENT where fewer were told.

    count: A. start: the token that stands at the start of a row, or of a document in it:
    what came before is forgotten.
    """
    is_start = text == start
    is_token = is_told(text) & ~is_start
    number = is_token.cumsum(dim=1)  # [B, S] tokens so far
    forgotten = torch.where(is_start, number, 0).cummax(dim=1).values
    in_order = F.pad(torch.full_like(text, ABSENT), (1, 0)).scatter(1, torch.where(is_token, number, 0), text)
    index = number[:, None] - torch.arange(count - 1, -1, -1, device=text.device)[:, None]
    found = in_order[:, None].expand(-1, count, -1).gather(2, index.clamp_min(0))
    return torch.where(index > forgotten[:, None], found, ABSENT)


class RecentTokens:
    """The same as columns come."""

    def __init__(self, batch: int, count: int, start: int, device: torch.device):
        """count, start: as `recent_tokens` takes them."""
        self.start = start
        self.tokens = torch.full((batch, count), ABSENT, device=device)  # [B, A]

    def extend(self, text: Tensor) -> Tensor:
        """The next columns of all rows, text [B, S] -> [B, A, S]."""
        count = self.tokens.shape[1]
        recent = recent_tokens(torch.cat([self.tokens, text], dim=1), count, self.start)
        self.tokens = recent[:, :, -1]
        return recent[:, :, count:]

    def take(self, text: Tensor) -> Tensor:
        """The next column of all rows, text [B] -> [B, A]."""
        tokens = torch.where(is_told(text)[:, None], torch.cat([self.tokens[:, 1:], text[:, None]], dim=1), self.tokens)
        self.tokens = torch.where((text == self.start)[:, None], ABSENT, tokens)
        return self.tokens

    def put(self, rows: slice, other: "RecentTokens", index: Tensor | slice = slice(None)) -> None:
        """Let rows be where those of another one are."""
        self.tokens = self.tokens.clone()
        self.tokens[rows] = other.tokens[index]

    def select(self, rows: Tensor) -> None:
        """Let row b be what row rows[b] was."""
        self.tokens = self.tokens[rows]
