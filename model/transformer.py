"""One decoder-only transformer, used twice: as temporal backbone and as depth decoder.

B batch, S positions, D width, H heads, G key/value heads, E head width. What it computes is here; nothing about codes.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Attend, AttentionChoice, Visibility, prepare
from .linear import make_linear
from .random_bits import dropout, fold
from .rope import rotary_tables, rotate
from .shapes import TransformerConfig

Tables = tuple[Tensor, Tensor] | None  # cos and sin of rotary positions [S, E / 2]
PIECE = 256  # positions that go onto a cache with a sliding window at once, if the window is not larger


class KVCache:
    """Keys and values of the positions seen so far, preallocated; `length` is their number, the same in every row.

    With a sliding window those that no later position sees are forgotten: any number of positions takes the memory of
    few.
    """

    def __init__(self, config: TransformerConfig, batch: int, capacity: int, like: Tensor):
        """capacity: the most positions that there will be."""
        window = config.sliding_window
        self.reach = window - 1 if window else capacity  # positions that are seen, from before those that are new
        self.capacity = min(capacity, self.reach + piece_size(config))
        shape = (config.num_layers, batch, config.num_kv_heads, self.capacity, config.size_of_head)
        self.keys = like.new_zeros(shape)
        self.values = like.new_zeros(shape)
        self.length = 0
        self.forgotten = 0  # positions at the start that are not held any more

    def make_room(self, count: int) -> None:
        """For positions that are new: where they would not fit, those out of sight are forgotten."""
        held = self.length - self.forgotten
        if held + count > self.capacity and held > self.reach:
            for kept in (self.keys, self.values):
                kept[:, :, :, : self.reach] = kept[:, :, :, held - self.reach : held].clone()
            self.forgotten = self.length - self.reach

    def select(self, rows: Tensor) -> None:
        """Let row b be what row rows[b] was."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """key, value [B, G, S, E] of the new positions -> these and what they see of the ones before, in this layer."""
        first = self.length - self.forgotten
        end = first + key.shape[2]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions; {end} were asked for")
        self.keys[layer, :, :, first:end] = key
        self.values[layer, :, :, first:end] = value
        seen = slice(max(0, first - self.reach), end)
        return self.keys[layer, :, :, seen], self.values[layer, :, :, seen]


def piece_size(config: TransformerConfig) -> int:
    """Positions that are taken at once where there are many, and a sliding window."""
    return max(PIECE, config.sliding_window)


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 at least."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and x.dtype != torch.float64 and not torch.compiler.is_compiling():
            return fused_norm(x, self.weight, self.eps)
        dtype = torch.promote_types(x.dtype, torch.float32)
        # one pass for the norm: several times faster on CPU than rms_norm, which is made of single operations there
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
        return x * (norm * norm / x.shape[-1] + self.eps).rsqrt().to(x.dtype) * self.weight.to(x.dtype)


def fused_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm in one kernel of a GPU. F.rms_norm calls the same, but autocast would make its result float32."""
    return torch.ops.aten._fused_rms_norm(x, [x.shape[-1]], weight.to(x.dtype), eps)[0]


class Attention(nn.Module):
    is_causal = True  # this and the names below are what transformers' attention functions look for

    def __init__(self, config: TransformerConfig, layer: int, choice: Any, num_sets: int = 0):
        super().__init__()
        self.shape = config
        self.layer_idx = layer
        self.config = choice
        self.num_key_value_groups = config.num_heads // config.num_kv_heads
        width = config.num_heads * config.size_of_head
        kv_width = config.num_kv_heads * config.size_of_head
        self.query = make_linear(config.dim, width, num_sets, config.qkv_bias)
        self.key = make_linear(config.dim, kv_width, num_sets, config.qkv_bias)
        self.value = make_linear(config.dim, kv_width, num_sets, config.qkv_bias)
        self.output = make_linear(width, config.dim, num_sets)
        if config.qk_norm:
            self.query_norm = RMSNorm(config.size_of_head, config.norm_eps)
            self.key_norm = RMSNorm(config.size_of_head, config.norm_eps)

    def forward(
        self, x: Tensor, tables: Tables, attend: Attend, cache: KVCache | None, sets: tuple[int, ...]
    ) -> Tensor:
        heads = (-1, self.shape.size_of_head)
        query = self.query(x, sets).unflatten(-1, heads).transpose(1, 2)  # [B, H, S, E]
        key = self.key(x, sets).unflatten(-1, heads).transpose(1, 2)  # [B, G, S, E]
        value = self.value(x, sets).unflatten(-1, heads).transpose(1, 2)
        if self.shape.qk_norm:
            query = self.query_norm(query)
            key = self.key_norm(key)
        if tables is not None:
            query = rotate(query, *tables)
            key = rotate(key, *tables)
        if cache is not None:
            key, value = cache.append(self.layer_idx, key, value)
        mixed, _ = attend(self, query, key, value)  # [B, S, H, E]
        return self.output(mixed.flatten(2), sets)


class Block(GradientCheckpointingLayer):
    def __init__(self, config: TransformerConfig, layer: int, choice: Any, num_sets: int = 0):
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config, layer, choice, num_sets)
        self.ff_norm = RMSNorm(config.dim, config.norm_eps)
        self.dropout = 0.0  # of what is added to the residual stream, in training mode; not part of the model's shape
        self.gate = make_linear(config.dim, config.ff_dim, num_sets)
        self.up = make_linear(config.dim, config.ff_dim, num_sets)
        self.down = make_linear(config.ff_dim, config.dim, num_sets)

    def forward(
        self,
        x: Tensor,
        tables: Tables,
        attend: Attend,
        cache: KVCache | None,
        sets: tuple[int, ...],
        keys: Tensor | None = None,
    ) -> Tensor:
        """keys: [B], for dropout."""
        mixed = self.attention(self.attention_norm(x), tables, attend, cache, sets)
        x = x + self.dropped(mixed, keys, 0)
        y = self.ff_norm(x)
        y = self.down(F.silu(self.gate(y, sets)) * self.up(y, sets), sets)
        return x + self.dropped(y, keys, 1)

    def dropped(self, x: Tensor, keys: Tensor | None, place: int) -> Tensor:
        if keys is None or not self.training or not self.dropout:
            return x
        return dropout(x, self.dropout, fold(keys, 2 * self.attention.layer_idx + place))


class Transformer(nn.Module):
    """x [B, S, D] -> [B, S, D]; position s sees positions <= s (and what the cache holds)."""

    def __init__(self, config: TransformerConfig, choice: Any = None, weight_sets: tuple[int, ...] = ()):
        """choice: what carries `_attn_implementation` (default: sdpa). weight_sets: the set of each position."""
        super().__init__()
        self.config = config
        self.choice = choice or AttentionChoice()
        self.weight_sets = weight_sets
        num_sets = max(weight_sets, default=-1) + 1
        self.blocks = nn.ModuleList(Block(config, i, self.choice, num_sets) for i in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps) if config.final_norm else nn.Identity()

    def forward(
        self, x: Tensor, cache: KVCache | None = None, documents: Tensor | None = None, keys: Tensor | None = None
    ) -> Tensor:
        """documents: [B, S], positions see those of their own number only; not with a cache. keys: [B], for dropout."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # the residual stream, too: it is most of the traffic
        start = before = 0
        if cache is not None:
            if self.config.sliding_window and x.shape[1] > piece_size(self.config):
                return torch.cat(
                    [self(piece, cache, keys=keys) for piece in x.split(piece_size(self.config), dim=1)], dim=1
                )
            cache.make_room(x.shape[1])
            start, before = cache.length, min(cache.length, cache.reach)
        end = start + x.shape[1]
        tables = None
        if self.config.rope:
            tables = rotary_tables(torch.arange(start, end, device=x.device), self.config, x.dtype)
        seen = Visibility(x.shape[1], before + x.shape[1], self.config.sliding_window, documents)
        attend = prepare(self.choice._attn_implementation, seen, x, self.config.size_of_head)
        sets = self.weight_sets[start:end]
        for block in self.blocks:
            x = block(x, tables, attend, cache, sets, keys)
        if cache is not None:
            cache.length = end
        return self.norm(x)

    def output_std(self) -> float:
        """Standard deviation for the initial weights of what writes to the residual stream."""
        return 0.02 / math.sqrt(2 * self.config.num_layers)
