"""Causal attention through transformers' attention interface: sdpa, flash_attention_2, flex_attention or eager.

B batch, S query positions, P positions of keys and values (the last S of them are the queries'), H heads,
G key/value heads, E head width.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


@dataclass
class AttentionChoice:
    """Which implementation a transformer uses, under the name that transformers' functions look for."""

    _attn_implementation: str = "sdpa"


@dataclass(frozen=True)
class Visibility:
    """Which positions a query sees: those before it, within `window`, within its own document."""

    num_queries: int
    num_positions: int
    window: int = 0  # positions, the query's own included; 0: all
    documents: Tensor | None = field(default=None, compare=False)  # [B, P]; None: one document in every row

    @property
    def is_plain(self) -> bool:
        """Whether "causal" says it all, from an empty cache or for a single query."""
        reaches = not self.window or self.num_positions <= self.window
        return reaches and self.documents is None and self.num_queries in (1, self.num_positions)

    def mask(self, device: torch.device) -> Tensor:
        """[1 or B, 1, S, P] bool, true where the query sees the position."""
        position = torch.arange(self.num_positions, device=device)
        query = position[-self.num_queries :, None]
        seen = position <= query
        if self.window:
            seen = seen & (position > query - self.window)
        seen = seen[None]
        if self.documents is not None:
            own = self.documents[:, -self.num_queries :, None]
            seen = seen & (own == self.documents[:, None])
        return seen[:, None]

    def spans(self) -> "Spans":
        """The documents one by one."""
        assert self.documents is not None
        starts = torch.ones_like(self.documents, dtype=torch.bool)
        starts[:, 1:] = self.documents[:, 1:] != self.documents[:, :-1]
        edges = starts.flatten().nonzero().flatten().tolist()
        lengths = [stop - start for start, stop in zip(edges, [*edges[1:], starts.numel()], strict=True)]
        masks = {n: Visibility(n, n, self.window) for n in lengths}
        device = self.documents.device
        return Spans(lengths, {n: None if seen.is_plain else seen.mask(device) for n, seen in masks.items()})

    def flex_mask(self, batch: int, device: torch.device) -> Any:
        """The same as a BlockMask of torch's flex_attention."""
        from torch.nn.attention.flex_attention import create_block_mask

        offset, window, documents = self.num_positions - self.num_queries, self.window, self.documents

        def sees(b: Tensor, _: Tensor, q: Tensor, position: Tensor) -> Tensor:
            query = q + offset
            seen = position <= query
            if window:
                seen = seen & (position > query - window)
            return seen if documents is None else seen & (documents[b, query] == documents[b, position])

        return create_block_mask(sees, batch, None, self.num_queries, self.num_positions, device)


@dataclass(frozen=True)
class Spans:
    """Packed rows as their documents, each attended by itself: nothing is computed and then masked.

    For a CPU, where this takes a third of a mask's time; a GPU would wait for many small calls.
    """

    lengths: list[int]  # of all documents, row by row
    masks: dict[int, Tensor | None]  # of a document by its length; None where "causal" is enough


def prepare_mask(implementation: str, seen: Visibility, like: Tensor) -> Any:
    """What `implementation` wants as a mask, made once for all layers; None where "causal" is enough.

    Raises ValueError for documents with flash attention, which takes them in another form.
    """
    if "flash" in implementation:
        if seen.documents is not None:
            raise ValueError(
                f"attn_implementation '{implementation}' cannot keep packed documents apart; "
                "use sdpa or flex_attention, or one document for each row"
            )
        return None
    if implementation == "flex_attention":
        return seen.flex_mask(like.shape[0], like.device)
    if implementation == "sdpa" and seen.is_plain:
        return None
    if implementation == "sdpa" and seen.documents is not None and like.device.type == "cpu":
        return seen.spans()
    return seen.mask(like.device)


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, window: int) -> Tensor:
    """query [B, H, S, E], key and value [B, G, P, E] -> [B, S, H * E]. The module says which implementation."""
    if isinstance(mask, Spans):
        return attend_spans(module, query, key, value, mask, window)  # pyright: ignore[reportCallIssue]
    choice: Any = module.config
    function = ALL_ATTENTION_FUNCTIONS.get_interface(choice._attn_implementation, eager_attention)
    scaling = query.shape[-1] ** -0.5
    mixed, _ = function(module, query, key, value, mask, dropout=0.0, scaling=scaling, sliding_window=window or None)
    return mixed.flatten(2)


@torch.compiler.disable  # the lengths change with every batch
def attend_spans(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, spans: Spans, window: int) -> Tensor:
    """`attend` for every document by itself."""
    # split, not slices: the gradient of a slice is as large as the whole
    parts = (x.transpose(1, 2).flatten(0, 1).split(spans.lengths) for x in (query, key, value))  # [L, H, E] each
    mixed = []
    for document in zip(spans.lengths, *parts, strict=True):
        length, q, k, v = document[0], *(x.transpose(0, 1)[None] for x in document[1:])
        mixed.append(attend(module, q, k, v, spans.masks[length], window))
    return torch.cat(mixed, dim=1).view(len(query), query.shape[2], -1)


def eager_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """The definition, written out: softmax in float32 at least. mask: bool, as `Visibility.mask` makes it."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~mask, float("-inf"))
    wide = torch.promote_types(scores.dtype, torch.float32)
    return (scores.softmax(dim=-1, dtype=wide).to(value.dtype) @ value).transpose(1, 2), None
