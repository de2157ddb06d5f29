"""A model's weights as the frame step reads them, made once and kept as long as the model has these weights.

Queries, keys and values are one matrix, gate and up another; the gain of a norm and its sqrt(D) are in the matrix that
follows it; embeddings are tables of one codebook each, those of the depth decoder projected to its width.
K codebooks, D backbone width, d depth width, V codebook size, H heads, G key/value heads, E head width, F ff width.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.flatten import TEXT
from ..model.lm import SpeechLM
from ..model.shapes import TransformerConfig
from ..model.transformer import Transformer


class Layer(NamedTuple):
    """A block, [in, out] each."""

    qkv: Tensor  # [D, (H + 2 G) E]
    qkv_bias: Tensor | None
    out: Tensor  # [H E, D]
    gate_up: Tensor  # [D, 2 F]
    down: Tensor  # [F, D]


class FusedStack(NamedTuple):
    """A transformer."""

    config: TransformerConfig
    layers: Sequence[Layer]
    gain: Tensor | None  # [D] of the last norm, with its sqrt(D), for what follows; None without that norm


class FusedDepth(NamedTuple):
    """The depth decoder."""

    stack: FusedStack
    project: Tensor  # [D, d]
    tables: Sequence[Tensor]  # [V + 2, d], of the codebooks whose codes it takes
    text_table: Tensor | None
    heads: Sequence[Tensor]  # [d, V], of the codebooks that it predicts


class Fused(NamedTuple):
    """A SpeechLM."""

    stack: FusedStack
    tables: Tensor  # [K * (V + 2), D]
    text_table: Tensor | None
    heads: dict[int, Tensor]  # [D, classes] by slot, of those that the backbone predicts
    depth: FusedDepth | None


kept: WeakKeyDictionary[SpeechLM, tuple[Any, Fused]] = WeakKeyDictionary()


def fused_weights(model: SpeechLM) -> Fused:
    """Kept until a parameter is changed in place or moved. An edit through `parameter.data` is not noticed."""
    parameters = list(model.parameters())
    if any(p.is_inference() for p in parameters):  # these do not tell whether they were changed
        return fuse(model)
    state = [(p.data_ptr(), p._version, p.dtype, p.device) for p in parameters]
    known, fused = kept.get(model, (None, None))
    if fused is None or known != state:
        fused = fuse(model)
        kept[model] = state, fused
    return fused


@torch.no_grad()
def fuse(model: SpeechLM) -> Fused:
    stack = fused_stack(model.backbone)
    heads: dict[int, Tensor] = {}
    if model.predicts_text:
        head = model.text_embedding.weight[:-1] if model.config.text.tied else model.text_head.weight
        heads[TEXT] = after(stack.gain, head.t())
    if not model.depth_is_first:
        heads[0] = after(stack.gain, model.head_0.weight.t())
    if model.pattern != "depth":
        heads |= {k: after(stack.gain, head) for k, head in enumerate(model.heads, 1)}
    tables = torch.cat([code_rows(model.frame_embedding.weight, k, model) for k in range(model.num_codebooks)])
    text_table = padded(model.text_embedding.weight) if model.text_size else None
    depth = fused_depth(model, stack.gain) if model.pattern == "depth" else None
    return Fused(stack, tables, text_table, heads, depth)


def fused_depth(model: SpeechLM, gain: Tensor | None) -> FusedDepth:
    """gain: of the backbone's last norm."""
    decoder = model.depth_decoder
    stack = fused_stack(decoder.transformer)
    linear: Any = decoder.project
    project: Tensor = linear.weight.t()  # [D, d]
    weight = model.frame_embedding.weight if decoder.embedding is None else decoder.embedding.weight
    weight = weight if decoder.config.embeddings == "own" else weight @ project
    heads = [after(stack.gain, head) for head in decoder.heads]
    if decoder.head_0 is not None:
        heads.insert(0, after(stack.gain, decoder.head_0.weight.t()))
    tables = [code_rows(weight, k, model) for k in range(decoder.num_read)]
    text_table = None if decoder.text_embedding is None else padded(decoder.text_embedding.weight)
    return FusedDepth(stack, after(gain, project), tables, text_table, heads)


def fused_stack(transformer: Transformer) -> FusedStack:
    config, norm = transformer.config, transformer.norm
    gain = math.sqrt(config.dim) * norm.weight if config.final_norm else None  # pyright: ignore[reportOperatorIssue]
    return FusedStack(config, [fused_layer(block, config) for block in transformer.blocks], gain)


def fused_layer(block: Any, config: TransformerConfig) -> Layer:
    """A Block's weights. The gain of a norm and its sqrt(D) go into the matrix that follows it."""
    attention, root = block.attention, math.sqrt(config.dim)
    query, key, value = attention.query, attention.key, attention.value
    heads, groups = config.num_heads, config.num_kv_heads
    qkv = torch.cat([interleaved(query.weight, heads), interleaved(key.weight, groups), value.weight])
    bias = None
    if config.qkv_bias:
        bias = torch.cat([interleaved(query.bias, heads), interleaved(key.bias, groups), value.bias])
    gate_up = torch.cat([block.gate.weight, block.up.weight])
    return Layer(
        (qkv * root * block.attention_norm.weight).t().contiguous(),
        bias,
        attention.output.weight.t().contiguous(),
        (gate_up * root * block.ff_norm.weight).t().contiguous(),
        block.down.weight.t().contiguous(),
    )


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Rows [heads * E, ..] of a rotated projection, its halves (x1, x2) as pairs: what a complex number turns."""
    size = len(rows) // heads
    return rows.unflatten(0, (heads, 2, size // 2)).transpose(1, 2).flatten(0, 2)


def after(gain: Tensor | None, weight: Tensor) -> Tensor:
    """A weight [in, out] that follows a norm, with the norm's gain in it."""
    return (weight if gain is None else gain[:, None] * weight).contiguous()


def padded(table: Tensor) -> Tensor:
    """A table with a row of zeros for ABSENT."""
    return F.pad(table, (0, 0, 0, 1))


def code_rows(weight: Tensor, k: int, model: SpeechLM) -> Tensor:
    """Codebook k's rows [V + 2, ..] of a table for all: its codes, BOS, and ABSENT as the model is given it."""
    size = model.codebook_size
    own = weight[k * (size + 1) : (k + 1) * (size + 1)]
    return torch.cat([own, own[-1:]]) if model.config.gaps == "bos" else padded(own)
