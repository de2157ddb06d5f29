"""A transformer's block with its weights as products: queries, keys and values are one, gate and up another.

The gain of a norm and its sqrt(D) are in the weight that follows it, so a norm is x / |x|. B batch, S positions,
D width, H heads, G key/value heads, E head width, F ff width.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..model.attention import Attend
from ..model.shapes import TransformerConfig
from ..model.transformer import KVCache, Tables
from .products import Packed, Product, make_gate
from .resources import release_memory


class FusedBlock(nn.Module):
    """In place of a Block, once nobody trains it: the same but for rounding. No parameters.

    The two halves of a rotated head are its even and its odd numbers, so a pair is a complex number.
    """

    is_causal = True  # this and others below are what transformers' attention functions look for

    def __init__(self, block: Any, config: TransformerConfig, kind: type[Product], consumes: bool = False):
        """consumes: the block's own weights go as they are fused, so that no more than one product is there twice."""
        super().__init__()
        attention = block.attention
        self.precision = kind.precision
        self.shape, self.layer_idx, self.config = config, attention.layer_idx, attention.config
        heads, groups, root = config.num_heads, config.num_kv_heads, math.sqrt(config.dim)
        self.num_key_value_groups = heads // groups
        query, key, value = attention.query, attention.key, attention.value
        self.floor = block.ff_norm.weight.new_full((), math.sqrt(config.dim * config.norm_eps))  # its epsilon, for |x|
        self.qkv_bias: Tensor | None = None
        with torch.no_grad():
            rows = torch.cat([paired(query.weight, heads), paired(key.weight, groups), value.weight])
            if config.qkv_bias:
                self.qkv_bias = torch.cat([paired(query.bias, heads), paired(key.bias, groups), value.bias])
            del query, key, value
            if consumes:
                attention.query = attention.key = attention.value = None
                release_memory()  # what is freed lies scattered, and what comes next would not fit in
            small = Product if kind is Packed else kind  # a layout would save them less than a copy of the result takes
            self.qkv = small(rows.mul_(root * block.attention_norm.weight).t())  # [D, (H + 2 G) E]
            self.out = small(attention.output.weight.t())  # [H E, D]
            del rows
            gain, gate, up = root * block.ff_norm.weight, block.gate.weight, block.up.weight
            gate, up = (gate.mul_(gain), up.mul_(gain)) if consumes else (gate * gain, up * gain)
            self.gate = make_gate(gate.t(), up.t(), kind)  # [D, F] each
            del gate, up
            if consumes:
                block.gate = block.up = attention.output = None
                release_memory()
            self.down = kind(block.down.weight.t())  # [F, D]

    def forward(
        self,
        x: Tensor,
        tables: Tables,
        attend: Attend,
        cache: KVCache | None,
        sets: tuple[int, ...] = (),
        keys: Tensor | None = None,
    ) -> Tensor:
        """As Block's; nothing is dropped, so keys do not matter. x: [B, S, D]."""
        heads, groups = self.shape.num_heads, self.shape.num_kv_heads
        qkv = self.qkv(self.norm(x))
        qkv = qkv if self.qkv_bias is None else qkv + self.qkv_bias
        split = qkv.unflatten(-1, (heads + 2 * groups, -1)).transpose(1, 2)  # [B, H + 2 G, S, E]
        turned, value = split[:, :-groups], split[:, -groups:]
        if tables is not None:
            pairs = torch.view_as_complex(turned.unflatten(-1, (-1, 2)).contiguous())
            turned = torch.view_as_real(pairs * torch.complex(*tables)).flatten(-2)
        query, key = turned[:, :heads], turned[:, heads:]
        if cache is not None:
            key, value = cache.append(self.layer_idx, key, value)
        mixed, _ = attend(self, query, key, value)  # [B, S, H, E]
        x = x + self.out(mixed.flatten(2))
        return x + self.down(self.gate(self.norm(x)))

    def norm(self, x: Tensor) -> Tensor:
        """x / |x|."""
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.floor)


def paired(rows: Tensor, heads: int) -> Tensor:
    """Rows [heads * E, ..] of a rotated projection, its halves (x1, x2) as pairs: what a complex number turns."""
    size = len(rows) // heads
    return rows.unflatten(0, (heads, 2, size // 2)).transpose(1, 2).flatten(0, 2)
