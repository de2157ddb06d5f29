"""A text that is said token by token: the model draws when the next one begins, never which it is.

In the layout "timed" each token stands beside its sound (data/align.py). Where the text is given, a step may draw PAD
or the token that comes next, so that none is skipped or said twice, and codes may not end before all are said.
B rows, L tokens, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.text_tokenizer import PAD


@dataclass
class Pacing:
    """Texts of the rows of a batch, and how far each is."""

    tokens: Tensor  # [B, L + 1] PAD after the last one
    num_tokens: Tensor  # [B] 0 for rows whose text is not paced
    longest_pause: Tensor  # [B] steps after which the next token begins in any case
    num_said: Tensor  # [B]
    waited: Tensor  # [B] steps since the last one

    @classmethod
    def of(cls, batch: int, device: torch.device) -> "Pacing":
        """Without a text."""
        nothing = torch.zeros(batch, dtype=torch.int64, device=device)
        return cls(torch.full((batch, 1), PAD, device=device), nothing, nothing, nothing, nothing)

    def set_rows(self, rows: Sequence[int], tokens: Sequence[int], longest_pause: int) -> None:
        """Let rows begin this text; none: they are not paced."""
        width = max(len(tokens) + 1, self.tokens.shape[1])
        self.tokens = F.pad(self.tokens, (0, width - self.tokens.shape[1]), value=PAD)
        chosen = torch.tensor(list(rows), device=self.tokens.device)
        text = torch.tensor([*tokens, *[PAD] * (width - len(tokens))], device=self.tokens.device)
        self.tokens = self.tokens.index_put((chosen,), text)
        new = {"num_tokens": len(tokens), "longest_pause": longest_pause, "num_said": 0, "waited": 0}
        for name, value in new.items():
            setattr(self, name, getattr(self, name).index_fill(0, chosen, value))

    def select(self, rows: Tensor) -> None:
        """Let row b be what row rows[b] was."""
        for name, values in vars(self).items():
            setattr(self, name, values[rows])

    @property
    def is_left(self) -> Tensor:
        """[B] bool, rows that have not said all."""
        return self.num_said < self.num_tokens

    def allowed(self, logits: Tensor) -> Tensor:
        """logits [B, C] of the text, but of PAD and the next token alone where a row is paced."""
        following = self.tokens.gather(1, self.num_said[:, None])  # [B, 1] PAD after the last
        choices = torch.full_like(logits, float("-inf"))
        choices.scatter_(1, following, logits.gather(1, following))
        may_wait = ~self.is_left | (self.waited < self.longest_pause)
        choices[:, PAD] = torch.where(may_wait, logits[:, PAD], choices[:, PAD])
        return torch.where((self.num_tokens > 0)[:, None], choices, logits)

    def take(self, drawn: Tensor) -> None:
        """Go on by what was drawn [B], ABSENT in rows that have ended."""
        is_said = (drawn > PAD) & self.is_left
        self.num_said = self.num_said + is_said
        self.waited = torch.where(is_said, 0, self.waited + 1)
