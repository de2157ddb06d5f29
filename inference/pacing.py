"""A text that is said token by token: the model draws when the next one is told, never which it is.

In the layout "timed" a token stands beside the codes where it is told, and PAD elsewhere (data/align.py). Where the
text is given, a step may be PAD or tell the next token, which has the probability of all others together: so none is
skipped or told twice, and codes may not end before all are said.
B rows, L tokens, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.recent_tokens import is_told, of_any_token
from ..model.text_tokens import PAD


@dataclass
class Pacing:
    """Texts of the rows of a batch, and how far each is."""

    tokens: Tensor  # [B, L + 1] PAD up to the end
    num_tokens: Tensor  # [B] 0 for rows whose text is not paced
    longest_pause: Tensor  # [B] steps after which the next token begins in any case
    num_said: Tensor  # [B]
    waited: Tensor  # [B] steps since the last one

    @classmethod
    def of(cls, batch: int, device: torch.device) -> "Pacing":
        """Without a text."""
        nothing = torch.zeros(batch, dtype=torch.int64, device=device)
        return cls(torch.full((batch, 1), PAD, device=device), nothing, nothing, nothing, nothing)

    def set_rows(self, rows: Sequence[int], text: Sequence[int], longest_pause: int) -> None:
        """Let rows begin this text; none: they are not paced."""
        width = max(len(text) + 1, self.tokens.shape[1])
        self.tokens = F.pad(self.tokens, (0, width - self.tokens.shape[1]), value=PAD)
        chosen = torch.tensor(list(rows), device=self.tokens.device)
        padded = torch.tensor([*text, *[PAD] * (width - len(text))], device=self.tokens.device)
        self.tokens = self.tokens.index_put((chosen,), padded)
        new = {"num_tokens": len(text), "longest_pause": longest_pause, "num_said": 0, "waited": 0}
        for name, value in new.items():
            setattr(self, name, getattr(self, name).index_fill(0, chosen, value))

    def num_left(self, row: int) -> int:
        """Tokens that a row is still to tell; the host waits for it."""
        return int(self.num_tokens[row] - self.num_said[row])

    def add(self, row: int, tokens: Sequence[int]) -> None:
        """More of the text that a row tells; what it has told is forgotten."""
        left = self.tokens[row, int(self.num_said[row]) : int(self.num_tokens[row])].tolist()
        waited = self.waited[row]
        self.set_rows([row], [*left, *tokens], int(self.longest_pause[row]))
        self.waited = self.waited.index_put((torch.tensor([row], device=waited.device),), waited)

    def select(self, rows: Tensor) -> None:
        """Let row b be what row rows[b] was."""
        for name, values in vars(self).items():
            setattr(self, name, values[rows])

    @property
    def is_left(self) -> Tensor:
        """[B] bool, rows that have not said all."""
        return self.num_said < self.num_tokens

    @property
    def is_saying(self) -> Tensor:
        """[B] bool, rows whose codes may not end in this step: the last token has a frame of its own, too."""
        return self.is_left | (self.num_tokens > 0) & (self.waited == 0)

    def allowed(self, logits: Tensor) -> Tensor:
        """logits [B, C] of the text, but where a row is paced of PAD and the next token alone."""
        following, pad = self.tokens.gather(1, self.num_said[:, None]), logits[:, PAD : PAD + 1]  # [B, 1]
        other = of_any_token(logits)[:, None]
        is_left, may_wait = self.is_left[:, None], (self.waited < self.longest_pause)[:, None]
        choices = torch.full_like(logits, float("-inf")).scatter(1, following, other)
        choices[:, PAD : PAD + 1] = torch.where(may_wait | ~is_left, pad, float("-inf"))
        return torch.where((self.num_tokens > 0)[:, None], choices, logits)

    def take(self, drawn: Tensor) -> None:
        """Go on by what was drawn [B], ABSENT in rows that have ended."""
        begins = self.is_left & is_told(drawn)
        self.num_said = self.num_said + begins
        self.waited = torch.where(begins, 0, self.waited + 1)
