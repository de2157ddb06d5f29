"""Causal attention through transformers' attention interface: sdpa, flash_attention_2, flex_attention or eager.

B batch, S query positions, P positions of keys and values (the last S of them are the queries'), H heads,
G key/value heads, E head width.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .flex import flex_mask

WRITTEN_OUT = 1024  # positions at most of which all scores may be in memory
# what is faster on a GPU for few positions, and for many; not cuDNN, which torch would take: it makes a plan for every
# new shape, and batches of speech have new ones all the time
FEW, MANY = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION
FEW_POSITIONS = 64


class Attend(Protocol):
    """(module, query [B, H, S, E], key [B, G, P, E], value [B, G, P, E]) -> ([B, S, H, E], weights or None)."""

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, /
    ) -> tuple[Tensor, Tensor | None]: ...


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

    def lengths(self) -> list[int]:
        """The lengths of all documents, row by row."""
        assert self.documents is not None
        starts = torch.ones_like(self.documents, dtype=torch.bool)
        starts[:, 1:] = self.documents[:, 1:] != self.documents[:, :-1]
        edges = starts.flatten().nonzero().flatten().tolist()
        return [stop - start for start, stop in zip(edges, [*edges[1:], starts.numel()], strict=True)]


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
        parts = seen.num_queries, seen.num_positions, seen.window, seen.documents
        return flex_mask(like.shape[0], *parts, like.device)
    if implementation == "sdpa" and seen.is_plain:
        return None
    return seen.mask(like.device)


def prepare(implementation: str, seen: Visibility, x: Tensor, head_size: int) -> Attend:
    """The attention of all layers over x [B, S, D]: `implementation` with its mask. Raises as `prepare_mask` does."""
    if implementation == "sdpa" and seen.documents is not None and x.device.type == "cpu":
        return EachDocument(seen, x, head_size)  # pyright: ignore[reportReturnType]
    if implementation == "sdpa" and is_faster_written_out(seen, x):
        implementation = "eager"
    if implementation == "sdpa" and x.device.type == "cuda":
        return OnGPU(seen, x, head_size)  # pyright: ignore[reportReturnType]
    return partial(
        ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention),
        attention_mask=prepare_mask(implementation, seen, x),
        dropout=0.0,
        scaling=head_size**-0.5,
        sliding_window=seen.window or None,
    )


def is_faster_written_out(seen: Visibility, x: Tensor) -> bool:
    """In bfloat16 on a CPU, torch's attention and its gradient take two to three times as long as the definition."""
    if x.device.type != "cpu" or not torch.is_grad_enabled() or seen.num_positions > WRITTEN_OUT:
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype == torch.bfloat16


class EachDocument:
    """Attention of packed rows, a document at a time: nothing is computed and then masked.

    For a CPU, where this takes a third of a mask's time; a GPU would wait for many small calls.
    """

    def __init__(self, seen: Visibility, x: Tensor, head_size: int):
        self.lengths = seen.lengths()
        self.attend = {n: prepare("sdpa", Visibility(n, n, seen.window), x, head_size) for n in set(self.lengths)}

    @torch.compiler.disable  # the lengths change with every batch
    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, /) -> tuple[Tensor, None]:
        # split, not slices: the gradient of a slice is as large as the whole
        parts = (x.transpose(1, 2).flatten(0, 1).split(self.lengths) for x in (query, key, value))  # [L, H, E] each
        mixed = []
        for length, *document in zip(self.lengths, *parts, strict=True):
            q, k, v = (x.transpose(0, 1)[None] for x in document)  # [1, H, L, E]
            mixed.append(self.attend[length](module, q, k, v)[0])
        return torch.cat(mixed, dim=1).view(len(query), query.shape[2], *mixed[0].shape[2:]), None


class OnGPU:
    """torch's kernels, whose choice does not depend on whether a shape was seen before."""

    def __init__(self, seen: Visibility, x: Tensor, head_size: int):
        self.mask, self.scaling = prepare_mask("sdpa", seen, x), head_size**-0.5
        self.is_causal = self.mask is None and seen.num_queries > 1
        few = seen.num_positions <= FEW_POSITIONS
        self.kernels = [FEW, MANY, SDPBackend.MATH] if few else [MANY, FEW, SDPBackend.MATH]

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, /) -> tuple[Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        if groups > 1:  # the kernel for few positions, and every one with a mask, wants a key for each query
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        with sdpa_kernel(self.kernels, set_priority=True):
            mixed = F.scaled_dot_product_attention(
                query, key, value, self.mask, is_causal=self.is_causal, scale=self.scaling
            )
        return mixed.transpose(1, 2), None


def eager_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """The definition, written out: softmax in float32 at least. The mask is bool, as `Visibility.mask` makes it."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~attention_mask, float("-inf"))
    wide = torch.promote_types(scores.dtype, torch.float32)
    return (scores.softmax(dim=-1, dtype=wide).to(value.dtype) @ value).transpose(1, 2), None
