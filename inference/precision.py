"""How precise the weights are that a model computes with: one setting of a model, for generation and likelihood alike.

Matrices of the transformers' blocks, nearly all that a frame reads, take it; embeddings and heads stay in float32, and
so do norms, attention and what goes from block to block.
"""

import torch

from ..model.device import has_fast_bf16
from ..model.lm import SpeechLM
from ..model.transformer import Transformer
from .config import WEIGHTS
from .fused_block import FusedBlock
from .machine import seconds
from .products import BFloat16, Float16, Int8, PackedBFloat16, Product, plain_product
from .resources import release_memory

FBGEMM = {"float16": Float16, "int8": Int8}
ROWS, SIDE = 8, 1024  # the product that shows how slow bfloat16 is


@torch.no_grad()
def set_weights(model: SpeechLM, weights: str, rows: int = 1) -> None:
    """Give the blocks of a model fused weights in that precision, in place of their own, which are gone afterwards.

    It then generates and scores, and cannot be trained, saved or moved to another device. weights: one of WEIGHTS; in
    float32, blocks that cannot be fused stay as they are. rows: that will be generated together.
    Raises ValueError in one line: a precision that this machine or model lacks.
    """
    kind = product_kind(weights, model.device, model.dtype, rows)
    if not all(map(is_fusable, transformers(model))):
        if weights != "float32":
            raise ValueError(
                f"weights '{weights}' are not there for a model with qk_norm or weight_sets; choose float32"
            )
        return
    for transformer in transformers(model):
        blocks = transformer.blocks
        for number in range(len(blocks)):
            blocks[number] = FusedBlock(blocks[number], transformer.config, kind, consumes=True)
    release_memory()


def weights_of(model: SpeechLM) -> str | None:
    """The precision that `set_weights` gave; None: the blocks are as they were trained."""
    (block, *_) = model.backbone.blocks
    return block.precision if isinstance(block, FusedBlock) else None


def product_kind(weights: str, device: torch.device, dtype: torch.dtype, rows: int) -> type[Product]:
    """Raises ValueError as `set_weights` does."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights '{weights}' are unknown; choose one of {', '.join(WEIGHTS)}")
    if weights in FBGEMM:
        if device.type != "cpu" or "fbgemm" not in torch.backends.quantized.supported_engines:
            where = (
                "this torch has no fbgemm" if device.type == "cpu" else f"{device.type} has no kernels for them here"
            )
            raise ValueError(f"weights '{weights}' cannot be used: {where}; choose float32 or bfloat16")
        return FBGEMM[weights]
    if weights == "bfloat16":
        if not has_fast_bf16(device):
            raise ValueError(
                f"weights 'bfloat16' would be slow: without hardware for them, products take {bf16_factor(device):.0f} "
                f"times as long as in float32 here; choose float32{', float16 or int8' if device.type == 'cpu' else ''}"
            )
        return PackedBFloat16 if device.type == "cpu" else BFloat16
    return plain_product(device, dtype, rows)


def bf16_factor(device: torch.device) -> float:
    """How many times as long a product in bfloat16 takes as one in float32, measured now."""
    times = []
    for dtype in (torch.bfloat16, torch.float32):
        x, weight = (
            torch.ones(ROWS, SIDE, dtype=dtype, device=device),
            torch.ones(SIDE, SIDE, dtype=dtype, device=device),
        )
        times.append(min(seconds(lambda x=x, weight=weight: x @ weight, device) for _ in range(3)))
    return times[0] / times[1]


def transformers(model: SpeechLM) -> list[Transformer]:
    return [model.backbone, *([model.depth_decoder.transformer] if model.pattern == "depth" else [])]


def is_fusable(transformer: Transformer) -> bool:
    return not transformer.config.qk_norm and not transformer.weight_sets
