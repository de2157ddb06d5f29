"""A model's weights as the frame step reads them, made once and kept as long as the model has these weights.

The blocks are fused_block.py's; embeddings and heads are the model's own tensors, not copies, but for the depth
decoder's embeddings where they have to be projected to its width.
K codebooks, D backbone width, d depth width, V codebook size.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..model.flatten import TEXT
from ..model.lm import SpeechLM
from ..model.shapes import TransformerConfig
from ..model.transformer import Transformer
from .fused_block import FusedBlock
from .products import OwnWeight, Product, plain_product


class FusedStack(NamedTuple):
    """A transformer."""

    config: TransformerConfig
    layers: Sequence[FusedBlock]
    gain: Tensor | None  # [D] of the last norm, with its sqrt(D); None without that norm


class FusedDepth(NamedTuple):
    """The depth decoder."""

    stack: FusedStack
    project: Product  # [D, d]
    tables: Sequence[Tensor]  # [V + 1, d], of the codebooks whose codes it takes
    text_table: Tensor | None
    heads: Sequence[Product]  # [d, V], of the codebooks that it predicts


class Fused(NamedTuple):
    """A SpeechLM."""

    stack: FusedStack
    tables: Tensor  # [K * (V + 1) + 1, D], the last row unused
    text_table: Tensor | None
    recent_table: Tensor | None  # the text tokens that were told last
    heads: dict[int, Product]  # [D, classes] by slot, of those that the backbone predicts
    depth: FusedDepth | None


kept: WeakKeyDictionary[SpeechLM, tuple[Any, Fused]] = WeakKeyDictionary()


def fused_weights(model: SpeechLM, batch: int = 1) -> Fused:
    """For steps of that many rows. Kept until a parameter is changed in place or moved, or rows need another layout.

    An edit through `parameter.data` is not noticed.
    """
    parameters, kind = list(model.parameters()), plain_product(model.device, model.dtype, batch)
    if any(p.is_inference() for p in parameters):  # these do not tell whether they were changed
        return fuse(model, kind)
    state = kind, [(p.data_ptr(), p._version, p.dtype, p.device) for p in parameters]
    known, fused = kept.get(model, (None, None))
    if fused is None or known != state:
        kept.pop(model, None)  # two at a time would take memory
        fused = fuse(model, kind)
        kept[model] = state, fused
    return fused


@torch.no_grad()
def fuse(model: SpeechLM, kind: type[Product]) -> Fused:
    """kind: of the products in blocks that are not fused already."""
    stack = fused_stack(model.backbone, kind)
    heads: dict[int, Product] = {}
    if model.predicts_text:
        head = model.text_embedding.weight[:-1] if model.config.text.tied else model.text_head.weight
        heads[TEXT] = OwnWeight(head.t())
    if not model.depth_is_first:
        heads[0] = OwnWeight(model.head_0.weight.t())
    if model.pattern != "depth":
        heads |= {k: OwnWeight(head) for k, head in enumerate(model.heads, 1)}
    text_table = model.text_embedding.weight.detach() if model.text_size else None
    recent_table = model.text_recent_embedding.weight.detach() if model.config.num_recent_tokens else None
    depth = fused_depth(model, kind) if model.pattern == "depth" else None
    return Fused(stack, model.frame_embedding.weight.detach(), text_table, recent_table, heads, depth)


def fused_depth(model: SpeechLM, kind: type[Product]) -> FusedDepth:
    decoder, size = model.depth_decoder, model.codebook_size + 1
    linear: Any = decoder.project
    project: Tensor = linear.weight.t()  # [D, d]
    weight = model.frame_embedding.weight if decoder.embedding is None else decoder.embedding.weight
    weight = weight[: decoder.num_read * size]
    weight = weight if decoder.config.embeddings == "own" else weight @ project
    heads: list[Product] = [OwnWeight(head) for head in decoder.heads]
    if decoder.head_0 is not None:
        heads.insert(0, OwnWeight(decoder.head_0.weight.t()))
    text_table = None if decoder.text_embedding is None else decoder.text_embedding.weight.detach()
    stack = fused_stack(decoder.transformer, kind)
    return FusedDepth(stack, OwnWeight(project), weight.split(size), text_table, heads)


def fused_stack(transformer: Transformer, kind: type[Product]) -> FusedStack:
    """Blocks that are fused already stay as they are."""
    config, norm = transformer.config, transformer.norm
    gain = math.sqrt(config.dim) * norm.weight if config.final_norm else None  # pyright: ignore[reportOperatorIssue]
    blocks = [
        block if isinstance(block, FusedBlock) else FusedBlock(block, config, kind) for block in transformer.blocks
    ]
    return FusedStack(config, blocks, gain)
