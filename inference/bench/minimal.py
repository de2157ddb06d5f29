"""The loop that one would write by hand for one shape: a yardstick, which shares no code with our engine.

Random weights without gains or biases, float32, an embedding table for each codebook. It draws from the TOP_K likeliest
codes and keeps them, and nothing else: no nats, no end, no text, no look back that is limited.
B batch, K codebooks, T prompt frames, S positions, D width, H heads, G key/value heads, E head width, V codebook size.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...model.shapes import TransformerConfig
from ...model.speech_lm_config import SpeechLMConfig

TOP_K, TEMPERATURE = 100, 0.8  # as SamplingConfig has them


class Positions:
    """Buffers for S positions that go through a transformer at once, and views of them."""

    def __init__(self, config: TransformerConfig, batch: int, count: int, like: Tensor):
        heads, groups, self.count = config.num_heads, config.num_kv_heads, count
        self.x = like.new_empty(batch * count, config.dim)
        self.qkv = like.new_empty(batch * count, (heads + 2 * groups) * config.size_of_head)
        split = self.qkv.view(batch, count, heads + 2 * groups, -1).transpose(1, 2)  # [B, H + 2 G, S, E]
        self.turning = torch.view_as_complex(split[:, : heads + groups].unflatten(-1, (-1, 2)))
        # the queries of a group stand beside each other like positions, if there is one position
        self.query = split[:, :heads] if count > 1 else split[:, :heads].view(batch, groups, heads // groups, -1)
        self.new = split[:, heads:].unflatten(1, (2, groups)).transpose(0, 1)  # [2, B, G, S, E]
        self.gate_up = like.new_empty(batch * count, 2 * config.ff_dim)
        self.gate, self.up = self.gate_up.chunk(2, dim=1)


class Transformer:
    def __init__(self, config: TransformerConfig, like: Tensor):
        dim, ff, wide = config.dim, config.ff_dim, config.num_heads * config.size_of_head
        total = wide + 2 * config.num_kv_heads * config.size_of_head
        shapes = (dim, total), (wide, dim), (dim, 2 * ff), (ff, dim)  # qkv, out, gate and up, down
        self.config, self.like = config, like
        self.layers = [[draw_weight(*shape, like) for shape in shapes] for _ in range(config.num_layers)]

    def reserve(self, batch: int, capacity: int) -> None:
        """Caches for that many positions, and their rotations."""
        size = self.config.size_of_head
        shape = 2, batch, self.config.num_kv_heads, capacity, size
        self.caches = [self.like.new_empty(shape) for _ in self.layers]
        waves = self.config.rope_theta ** (-torch.arange(0, size, 2) / size)
        angles = torch.arange(capacity)[:, None] * waves
        self.turns = torch.polar(torch.ones_like(angles), angles).to(self.like.device)  # [capacity, E / 2]

    def __call__(self, at: Positions, first: int) -> Tensor:
        """Positions first, first + 1, ..., whose inputs `at.x` holds -> [B * S, D], normed."""
        stop, many, norm = first + at.count, at.count > 1, (self.config.dim,)
        turns = self.turns[first:stop]
        for (qkv, out, gate_up, down), cache in zip(self.layers, self.caches, strict=True):
            torch.mm(F.rms_norm(at.x, norm), qkv, out=at.qkv)
            at.turning.mul_(turns)
            cache[:, :, :, first:stop].copy_(at.new)
            keys, values = cache[:, :, :, :stop].unbind()
            mixed = F.scaled_dot_product_attention(at.query, keys, values, is_causal=many, enable_gqa=many)
            mixed = mixed.transpose(1, 2) if many else mixed
            at.x.addmm_(mixed.reshape(len(at.x), -1), out)
            torch.mm(F.rms_norm(at.x, norm), gate_up, out=at.gate_up)
            at.x.addmm_(F.silu(at.gate, inplace=True).mul_(at.up), down)
        return F.rms_norm(at.x, norm)


class HandWrittenLoop:
    """A backbone, and a depth decoder that takes the code before at each of its positions."""

    def __init__(self, config: SpeechLMConfig, prompt: Tensor):
        """prompt: [B, K, T]."""
        self.name, self.prompt, self.num_codebooks = "hand-written loop", prompt, config.num_codebooks
        self.has_prefix = config.depth.conditioning == "prefix"  # the context is a position of its own
        size, width, depth, others = config.codebook_size, config.backbone.dim, config.depth.dim, self.num_codebooks - 1
        torch.manual_seed(0)
        like = torch.empty(0, device=prompt.device)
        self.backbone, self.depth = Transformer(config.backbone, like), Transformer(config.depth, like)
        self.table = torch.randn(self.num_codebooks * size, width, device=like.device)
        self.offsets = torch.arange(self.num_codebooks, device=like.device) * size
        self.project = draw_weight(width, depth, like)
        self.tables = [torch.randn(size, depth, device=like.device) for _ in range(others)]
        self.heads = [draw_weight(width, size, like)] + [draw_weight(depth, size, like) for _ in range(others)]

    @torch.inference_mode()
    def run(self, num_frames: int, mark: Callable[[], None]) -> Tensor:
        """The codes that it draws [B, K, frames]."""
        (batch, _, length), like = self.prompt.shape, self.table
        self.backbone.reserve(batch, length + num_frames)
        self.depth.reserve(batch, self.num_codebooks)
        if length > 1:
            given = Positions(self.backbone.config, batch, length - 1, like)
            self.embed(self.prompt[:, :, :-1].transpose(1, 2).flatten(0, 1), given)
            self.backbone(given, 0)
        one, inner = (Positions(part.config, batch, 1, like) for part in (self.backbone, self.depth))
        frames = [self.prompt[:, :, -1]]
        for position in range(length - 1, length - 1 + num_frames):
            self.embed(frames[-1], one)
            frames.append(self.draw_frame(self.backbone(one, position), inner))
            mark()
        return torch.stack(frames[1:], dim=2)

    def embed(self, codes: Tensor, at: Positions) -> None:
        """codes: [B * S, K]."""
        torch.sum(F.embedding(codes + self.offsets, self.table), dim=1, out=at.x)

    def draw_frame(self, h: Tensor, at: Positions) -> Tensor:
        """h: [B, D] -> codes [B, K]."""
        count = min(TOP_K, self.heads[0].shape[1])
        noise = h.new_empty(self.num_codebooks, len(h), count).exponential_().log_().neg_().unbind()  # Gumbel's
        condition = h @ self.project
        if self.has_prefix:
            at.x.copy_(condition)
            self.depth(at, 0)
        codes = [draw_code(h @ self.heads[0], noise[0])]
        for k, table in enumerate(self.tables):
            code = F.embedding(codes[-1], table)
            at.x.copy_(code) if self.has_prefix else torch.add(code, condition, out=at.x)
            codes.append(draw_code(self.depth(at, k + self.has_prefix) @ self.heads[k + 1], noise[k + 1]))
        return torch.stack(codes, dim=1)


def draw_code(logits: Tensor, noise: Tensor) -> Tensor:
    """logits [B, V], noise [B, TOP_K] -> [B]."""
    values, codes = logits.topk(noise.shape[1])
    best = torch.add(noise, values, alpha=1 / TEMPERATURE).argmax(dim=1, keepdim=True)
    return codes.gather(1, best).squeeze(1)


def draw_weight(inputs: int, outputs: int, like: Tensor) -> Tensor:
    return torch.randn(inputs, outputs, device=like.device) / inputs**0.5
