"""The options of SpeechLM one by one, as arguments of the `make_model` fixture: 3 codebooks of 7 codes, 11 text tokens.

What several of them do together is inference/verify's.
"""

from typing import Any

import torch
from torch import Tensor

from codeclm.model import SpeechLM
from codeclm.model.shapes import DepthConfig, TextConfig, TransformerConfig

SIZE, WORDS = 7, 11


def backbone(**changes: Any) -> TransformerConfig:
    return TransformerConfig(**dict(dim=16, num_layers=2, num_heads=4, num_kv_heads=2, ff_dim=24) | changes)


def depth(**changes: Any) -> DepthConfig:
    return DepthConfig(**dict(dim=8, num_layers=2, num_heads=2, num_kv_heads=2, ff_dim=16) | changes)


DEPTHS: dict[str, DepthConfig] = {
    "default": depth(),
    "prefix": depth(conditioning="prefix"),
    "wide": depth(embeddings="wide"),
    "shared": depth(embeddings="shared", conditioning="prefix"),
    "first": depth(first_codebook="depth"),
    "sets": depth(weight_sets=(0, 1)),
    "group": depth(group_size=2),
    "csm": depth(embeddings="shared", conditioning="prefix", num_kv_heads=1),
    "moshi": depth(first_codebook="depth", weight_sets=(0, 1, 1), rope=False, final_norm=False, embeddings="wide"),
}

OPTIONS: dict[str, dict[str, Any]] = {name: dict(depth=config) for name, config in DEPTHS.items()}
OPTIONS |= {
    "delay": dict(pattern="delay", delays=(0, 1, 2)),
    "parallel": dict(pattern="parallel"),
    "flatten": dict(pattern="flatten"),
    "text": dict(text=TextConfig(WORDS)),
    "text given": dict(text=TextConfig(WORDS, predicted=False)),
    "text tied": dict(text=TextConfig(WORDS, tied=True)),
    "text flat": dict(text=TextConfig(WORDS), pattern="flatten"),
    "text seen": dict(text=TextConfig(WORDS), depth=depth(sees_text=True, first_codebook="depth")),
    "user": dict(user_codebooks=2, delays=(0, 1, 1)),
    "no bos": dict(bos=False),
    "zeros": dict(end="zeros"),
    "never": dict(end="never", gaps="bos", delays=(0, 1, 2)),
    "llama": dict(backbone=backbone(qk_norm=True, qkv_bias=True, head_dim=6, sliding_window=3)),
}


def example(model: SpeechLM, batch: int = 3, num_frames: int = 6) -> dict[str, Tensor]:
    """What `model` takes: codes, and text and another speaker's codes where it has them."""
    generator = torch.Generator().manual_seed(1)

    def draw(size: int, *shape: int) -> Tensor:
        return torch.randint(0, size, (batch, *shape, num_frames), generator=generator)

    inputs = {"codes": draw(model.codebook_size, model.num_codebooks)}
    if model.text_size:
        inputs["text"] = draw(model.text_size)
    if model.config.user_codebooks:
        inputs["user"] = draw(model.codebook_size, model.config.user_codebooks)
    return inputs
