"""Pattern "flatten": every token is a position of the backbone of its own. Whatever this pattern alone needs.

    slots of a step      text (where there is a text stream), codebook 0, ..., codebook K - 1
    position of a slot   takes the token of the slot before it, at the first slot that of the step before

B batch, K codebooks, S steps, J slots of a step, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .delay_pattern import ABSENT
from .layout import Steps
from .transformer import KVCache, Transformer

TEXT = -1  # the slot of the text token; the others are codebooks


@dataclass(frozen=True)
class SlotEmbedding:
    """Tokens -> inputs of the backbone, from the tables that frames are embedded with in other patterns."""

    codes: nn.Embedding  # codebook k has rows k * (V + 1) and on; row V is BOS
    text: nn.Embedding | None  # the last row is BOS
    num_codebooks: int
    codebook_size: int

    @property
    def num_slots(self) -> int:
        return self.num_codebooks + (self.text is not None)

    @property
    def start(self) -> Tensor:
        """[D]: stands before the first slot of a row."""
        return self.codes.weight[self.codebook_size] if self.text is None else self.text.weight[-1]

    def one(self, slot: int, tokens: Tensor) -> Tensor:
        """Tokens [...] of one slot, ABSENT allowed -> [..., D]."""
        if slot == TEXT:
            assert self.text is not None
            return embed(tokens, self.text)
        return embed(tokens + (tokens != ABSENT) * slot * (self.codebook_size + 1), self.codes)

    def step(self, codes: Tensor, text: Tensor | None) -> Tensor:
        """Steps [B, K, S] and text [B, S], ABSENT allowed -> [B, S, J, D], each token by itself."""
        parts = [self.one(k, codes[:, k]) for k in range(self.num_codebooks)]
        if self.text is not None:
            parts = [self.one(TEXT, torch.full_like(codes[:, 0], ABSENT) if text is None else text), *parts]
        return torch.stack(parts, dim=2)

    def inputs(self, steps: Steps) -> Tensor:
        """The token before each slot of each step -> [B, S * J, D]."""
        is_end = steps.targets == self.codebook_size
        x = self.step(steps.targets.masked_fill(is_end, ABSENT), steps.text_targets)
        starts = steps.inputs[:, 0] == self.codebook_size  # [B, S]
        before = F.pad(x.flatten(1, 2)[:, :-1], (0, 0, 1, 0)).view(x.shape)  # [B, S, J, D]
        first = torch.where(starts[..., None], self.start, before[:, :, 0])
        return torch.cat([first[:, :, None], before[:, :, 1:]], dim=2).flatten(1, 2)


def embed(tokens: Tensor, table: nn.Embedding) -> Tensor:
    """Rows of a table [..., D], zero where the token is ABSENT."""
    return F.embedding(tokens.clamp_min(0), table.weight) * (tokens != ABSENT)[..., None]


def slot_contexts(
    backbone: Transformer, embedding: SlotEmbedding, steps: Steps, cache: KVCache | None = None, seen: int = 0
) -> Tensor:
    """Steps through the backbone -> the context of each slot [B, S, J, D]. seen: steps that are in the cache."""
    documents = steps.documents
    if documents is not None:
        documents = documents.repeat_interleave(embedding.num_slots, dim=1)
    x = embedding.inputs(steps)[:, seen * embedding.num_slots :]
    return backbone(x, cache, documents, steps.keys).unflatten(1, (-1, embedding.num_slots))


class SlotFeed:
    """The backbone's side of a walk (walk.py): tokens are fed one by one, when the next context is asked for."""

    def __init__(self, backbone: Transformer, embedding: SlotEmbedding, batch: int, capacity: int):
        self.backbone, self.embedding = backbone, embedding
        self.cache = KVCache(backbone.config, batch, capacity * embedding.num_slots, embedding.codes.weight)
        self.pending = [embedding.start.expand(batch, 1, -1)]  # [B, n, D] that the backbone has yet to see
        self.num_fed = 0  # slots of the step that is being taken
        self.last: Tensor | None = None

    def prefill(self, codes: Tensor, text: Tensor | None, user: Tensor | None) -> None:
        """Known steps: codes [B, K, S], text [B, S]; there is no other speaker here."""
        self.pending.append(self.embedding.step(codes, text).flatten(1, 2))

    def context(self, values: Mapping[int, Tensor]) -> Tensor:
        """[B, D] for the slot that comes after those whose values [B] are known."""
        self.feed(values)
        if self.pending:
            x = torch.cat(self.pending, dim=1)
            self.pending = []
            self.last = self.backbone(x, self.cache)[:, -1]
        assert self.last is not None
        return self.last

    def select(self, rows: Tensor) -> None:
        """Let row b be what row rows[b] was."""
        self.cache.select(rows)
        self.pending = [x[rows] for x in self.pending]
        self.last = None if self.last is None else self.last[rows]

    def finish(self, values: Mapping[int, Tensor], user: Tensor | None) -> None:
        """A step is complete: what of it was not fed waits for the next one."""
        self.feed(values)
        self.num_fed = 0

    def feed(self, values: Mapping[int, Tensor]) -> None:
        new = list(values)[self.num_fed :]
        self.pending += [self.embedding.one(slot, values[slot])[:, None] for slot in new]
        self.num_fed = len(values)


class Contexts(NamedTuple):
    """The backbone's output for each head: the same for all, but for "flatten"."""

    text: Tensor  # [B, S, D]
    first: Tensor  # [B, S, D] for codebook 0, and for the depth decoder
    others: Tensor  # [B, S, 1 or K - 1, D] for the heads of the other codebooks

    @classmethod
    def of_slots(cls, x: Tensor, has_text: bool) -> "Contexts":
        """x: [B, S, J, D], one for each slot."""
        return cls(x[:, :, 0], x[:, :, int(has_text)], x[:, :, 1 + has_text :])
