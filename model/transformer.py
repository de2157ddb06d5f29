"""One decoder-only transformer, used twice: as temporal backbone and as depth decoder.

B batch, S positions, D width, H heads, G key/value heads, E head width. What it computes is here; nothing about codes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TransformerConfig


class KVCache:
    """Keys and values of the positions seen so far, preallocated; `length` positions are filled in every row."""

    def __init__(self, config: TransformerConfig, batch: int, capacity: int, like: Tensor):
        shape = (config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """key, value [B, G, S, E] of the new positions -> all filled positions of this layer."""
        end = self.length + key.shape[2]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions; {end} were asked for")
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 at least."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        # one pass for the norm: several times faster on CPU than rms_norm, which is made of single operations there
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype) * x.shape[-1] ** -0.5
        return x * (1 / (size + self.eps)).to(x.dtype) * self.weight.to(x.dtype)


def rotary_tables(positions: Tensor, config: TransformerConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [S, E / 2] for integer positions [S]. Computed at each call: a buffer would not survive loading."""
    exponent = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float64) / config.head_dim
    angles = positions.double()[:, None] * config.rope_theta**-exponent  # [S, E / 2]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (arXiv:2104.09864) of x [B, H, S, E], halves convention."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        kv_dim = config.num_kv_heads * config.head_dim
        self.query = nn.Linear(config.dim, config.dim, bias=False)
        self.key = nn.Linear(config.dim, kv_dim, bias=False)
        self.value = nn.Linear(config.dim, kv_dim, bias=False)
        self.output = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:
        batch, steps, dim = x.shape
        query, key, value = (
            project(x).view(batch, steps, -1, self.config.head_dim).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if cache is not None:
            key, value = cache.append(self.layer, key, value)
        mixed = causal_attention(query, key, value)
        return self.output(mixed.transpose(1, 2).reshape(batch, steps, dim))


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """query [B, H, S, E] at the last S of the P positions of key and value [B, G, P, E] -> [B, H, S, E]."""
    steps, positions = query.shape[2], key.shape[2]
    grouped = query.shape[1] != key.shape[1]
    if steps == positions or steps == 1:
        return F.scaled_dot_product_attention(query, key, value, is_causal=steps > 1, enable_gqa=grouped)
    mask = torch.ones(steps, positions, dtype=torch.bool, device=query.device).tril(positions - steps)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)


class Block(nn.Module):
    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config, layer)
        self.ff_norm = RMSNorm(config.dim, config.norm_eps)
        self.dropout = 0.0  # of what is added to the residual stream, in training mode; not part of the model's shape
        self.gate = nn.Linear(config.dim, config.ff_dim, bias=False)
        self.up = nn.Linear(config.dim, config.ff_dim, bias=False)
        self.down = nn.Linear(config.ff_dim, config.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:
        x = x + F.dropout(self.attention(self.attention_norm(x), cos, sin, cache), self.dropout, self.training)
        y = self.ff_norm(x)
        return x + F.dropout(self.down(F.silu(self.gate(y)) * self.up(y)), self.dropout, self.training)


class Transformer(nn.Module):
    """x [B, S, D] -> [B, S, D], normed; position s sees positions <= s (and what the cache holds)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # the residual stream, too: it is most of the traffic
        start = cache.length if cache is not None else 0
        positions = torch.arange(start, start + x.shape[1], device=x.device)
        cos, sin = rotary_tables(positions, self.config, x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin, cache)
        if cache is not None:
            cache.length += positions.shape[0]
        return self.norm(x)

    def output_std(self) -> float:
        """Standard deviation for the initial weights of what writes to the residual stream."""
        return 0.02 / math.sqrt(2 * self.config.num_layers)
