"""Moshi (Kyutai) in transformers' format <-> SpeechLM, on config.json values and tensors; no files here.

Moshi is the pattern "depth" with conditioning "add", weights of its own for each codebook, and a depth decoder that
predicts codebook 0, too, after the step's text token. It hears a user's K codebooks and speaks its own K.
K codebooks, V codebook size, D width, d depth width, T text vocabulary. Their tables, too, end with a row for BOS.
"""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import MoshiConfig

from ..codecs.hf_config import read_settings
from ..shapes import DepthConfig, TextConfig, TransformerConfig
from ..speech_lm_config import SpeechLMConfig
from . import Converted
from .checkpoint import Tensors
from .settings import (
    LLAMA_LAYER,
    block_shapes,
    hf_settings,
    require,
    require_ours,
    rope_parameters,
    swapped,
    transformer_settings,
)

PREFIX, CODEC_CONFIG = "audio_encoder.", "audio_encoder_config"  # of the codec's tensors, and its settings
NO_WINDOW = 2**31 - 1  # transformers' Moshi always has a window
# what a SpeechLM must be to be a Moshi
EXPRESSIBLE = {
    "pattern": "depth", "bos": True, "end": "never", "gaps": "bos",
    "text.predicted": True, "text.tied": False,
    "backbone.rope": True, "backbone.final_norm": True, "backbone.qk_norm": False, "backbone.qkv_bias": False,
    "depth.rope": False, "depth.final_norm": False, "depth.qk_norm": False, "depth.qkv_bias": False,
    "depth.sliding_window": 0, "depth.group_size": 1, "depth.conditioning": "add", "depth.first_codebook": "depth",
    "depth.embeddings": "own", "depth.sees_text": True,
}  # fmt: skip
Triples = list[tuple[str, str, tuple[int, ...]]]


def to_speech_lm(values: dict[str, Any], weights: dict[str, Tensor], name: str = "Moshi") -> Converted:
    """config.json values and tensors without the codec's -> SpeechLM. Raises ValueError for what we cannot express."""
    config = _our_config(read_settings(MoshiConfig, values, name), name)
    depth, rows = config.depth, config.codebook_size + 1
    source = Tensors(weights, name)
    ours = source.rename(_triples(config))
    for key, config_of, sets in _stacks(config):
        for layer in range(config_of.num_layers):
            block, theirs = f"{key}.blocks.{layer}", f"{THEIRS[key]}.layers.{layer}"
            both = source.take(f"{theirs}.mlp.fc1.weight", *sets, 2 * config_of.ff_dim, config_of.dim)
            ours[f"{block}.gate.weight"], ours[f"{block}.up.weight"] = both.chunk(2, dim=-2)
    for key, (theirs, count, width) in _tables(config).items():
        tables = [source.take(f"{theirs}.{index}.weight", rows, width) for index in range(count)]
        ours[key] = F.pad(torch.cat(tables), (0, 0, 0, 1))  # a row for "absent"
    heads = source.take("depth_decoder.lm_heads.weight", config.num_codebooks, config.codebook_size, depth.dim)
    ours["depth_decoder.head_0.weight"], ours["depth_decoder.heads"] = heads[0], heads[1:].transpose(1, 2)
    source.finish()
    return Converted(config, ours)


def from_speech_lm(model: Converted, name: str = "SpeechLM") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The inverse: (config.json values without audio_encoder_config, tensors without the codec's).

    Weight sets that codebooks share are written once for each codebook. Raises ValueError for a setting that Moshi
    does not have.
    """
    config, num_codebooks = model.config, model.config.num_codebooks
    own = {"delays": [0] + [1] * (num_codebooks - 1), "user_codebooks": num_codebooks}
    require_ours(config, "Moshi", EXPRESSIBLE | own)
    if num_codebooks < 2 or not config.text.vocab_size:
        raise ValueError("a single codebook and a model without text are nothing that Moshi can express")
    config, weights = _one_set_for_each_codebook(config, model.weights)
    source = Tensors(weights, name)
    theirs = source.rename(swapped(_triples(config)))
    for key, config_of, sets in _stacks(config):
        for layer in range(config_of.num_layers):
            shape = (*sets, config_of.ff_dim, config_of.dim)
            both = [source.take(f"{key}.blocks.{layer}.{half}.weight", *shape) for half in ("gate", "up")]
            theirs[f"{THEIRS[key]}.layers.{layer}.mlp.fc1.weight"] = torch.cat(both, dim=-2)
    rows = config.codebook_size + 1
    for key, (prefix, count, width) in _tables(config).items():
        tables = source.take(key, count * rows + 1, width)[:-1].unflatten(0, (count, rows))
        theirs |= {f"{prefix}.{index}.weight": table.clone() for index, table in enumerate(tables)}
    head_0 = source.take("depth_decoder.head_0.weight", config.codebook_size, config.depth.dim)
    others = source.take("depth_decoder.heads", num_codebooks - 1, config.depth.dim, config.codebook_size)
    theirs["depth_decoder.lm_heads.weight"] = torch.cat([head_0[None], others.transpose(1, 2)])
    source.finish()
    return _their_values(config), theirs


def _our_config(theirs: Any, name: str) -> SpeechLMConfig:
    depth, depth_name = theirs.depth_decoder_config, f"{name}: depth_decoder_config"
    num_codebooks, vocab = theirs.num_codebooks, theirs.audio_vocab_size
    if num_codebooks < 2:
        raise ValueError(f"{name}: num_codebooks is {num_codebooks}, which cannot be expressed; at least 2 can")
    if vocab is None:
        raise ValueError(f"{name}: audio_vocab_size is missing")
    same = dict(num_codebooks=num_codebooks, audio_vocab_size=vocab, input_size=theirs.hidden_size)
    require(depth, depth_name, vocab_size=theirs.vocab_size, **same)
    if depth.sliding_window < num_codebooks:  # transformers keeps to it with a cache and ignores it without
        raise ValueError(f"{depth_name}: sliding_window {depth.sliding_window} is less than its {num_codebooks} steps")
    backbone = TransformerConfig(
        **transformer_settings(theirs, name, theirs.ffn_dim // 2),
        sliding_window=0 if theirs.sliding_window == NO_WINDOW else theirs.sliding_window,
    )
    inner = DepthConfig(
        **transformer_settings(depth, depth_name, depth.ffn_dim // 2, rope=False),
        final_norm=False,
        first_codebook="depth",
        sees_text=True,
        weight_sets=tuple(range(num_codebooks)),
    )
    return SpeechLMConfig(
        num_codebooks,
        vocab,
        backbone,
        inner,
        delays=[0] + [1] * (num_codebooks - 1),
        text=TextConfig(theirs.vocab_size),
        user_codebooks=num_codebooks,
        end="never",
        gaps="bos",
        context_frames=theirs.max_position_embeddings,
    )


def _their_values(config: SpeechLMConfig) -> dict[str, Any]:
    backbone, depth, num_codebooks = config.backbone, config.depth, config.num_codebooks
    shared = {
        "num_codebooks": num_codebooks,
        "audio_vocab_size": config.codebook_size,
        "vocab_size": config.text.vocab_size,
    }
    return {
        "model_type": "moshi",
        "architectures": ["MoshiForConditionalGeneration"],
        **hf_settings(backbone),
        **shared,
        "ffn_dim": 2 * backbone.ff_dim,
        "rope_parameters": rope_parameters(backbone),
        "max_position_embeddings": config.context_frames,
        "sliding_window": backbone.sliding_window or NO_WINDOW,
        "depth_decoder_config": {
            "model_type": "moshi_depth",
            **hf_settings(depth),
            **shared,
            "ffn_dim": 2 * depth.ff_dim,
            "input_size": backbone.dim,
            "max_position_embeddings": num_codebooks + 1,
            "sliding_window": num_codebooks,
        },
    }


DEPTH = "depth_decoder.transformer"
THEIRS = {"backbone": "decoder.model", DEPTH: "depth_decoder"}


def _stacks(config: SpeechLMConfig) -> list[tuple[str, TransformerConfig, tuple[int, ...]]]:
    """(our name, config, leading dimension of its matrices) of the two transformers."""
    return [
        ("backbone", config.backbone, ()),
        (DEPTH, config.depth, (config.num_codebooks,)),
    ]


def _tables(config: SpeechLMConfig) -> dict[str, tuple[str, int, int]]:
    """Our table of code embeddings -> (their name, how many, width)."""
    num_codebooks = config.num_codebooks
    return {
        "frame_embedding.weight": ("embed_tokens", num_codebooks + config.user_codebooks, config.backbone.dim),
        "depth_decoder.embedding.weight": ("depth_decoder.embed_tokens", num_codebooks - 1, config.depth.dim),
    }


def _triples(config: SpeechLMConfig) -> Triples:
    """(their name, our name, shape) of everything that differs in name only."""
    width, depth, vocab = config.backbone.dim, config.depth.dim, config.text.vocab_size
    projections = config.num_codebooks, depth, width
    triples: Triples = [
        ("decoder.model.norm.weight", "backbone.norm.weight", (width,)),
        ("decoder.model.embed_tokens.weight", "text_embedding.weight", (vocab + 1, width)),
        ("decoder.lm_head.weight", "text_head.weight", (vocab, width)),
        ("depth_decoder.text_embed_tokens.weight", "depth_decoder.text_embedding.weight", (vocab + 1, depth)),
        ("depth_decoder.input_projections.weight", "depth_decoder.project.weight", projections),
    ]
    for key, config_of, sets in _stacks(config):
        for name, shape in block_shapes(config_of).items():
            module = name.removesuffix(".weight")
            if module in ("gate", "up"):  # theirs are one matrix
                continue
            is_matrix, inside = len(shape) > 1, LLAMA_LAYER[module]
            inside = "mlp.fc2" if module == "down" else inside + ".linear" * is_matrix
            full = (*sets, *shape) if is_matrix else shape
            for layer in range(config_of.num_layers):
                ours = f"{key}.blocks.{layer}.{name}"
                triples.append((f"{THEIRS[key]}.layers.{layer}.{inside}.weight", ours, full))
    return triples


def _one_set_for_each_codebook(
    config: SpeechLMConfig, weights: dict[str, Tensor]
) -> tuple[SpeechLMConfig, dict[str, Tensor]]:
    """The same model with weight sets 0, 1, ..., K - 1: a set that codebooks share is repeated."""
    own, shared = list(range(config.num_codebooks)), list(config.depth.weight_sets)
    if shared == own:
        return config, weights
    config, repeated = deepcopy(config), {}
    config.depth = replace(config.depth, weight_sets=tuple(own))
    for key, tensor in weights.items():
        is_set = key == "depth_decoder.project.weight" or key.startswith(f"{DEPTH}.blocks.") and "norm" not in key
        if is_set and not shared:
            tensor = tensor.expand(len(own), *tensor.shape)
        elif is_set and len(tensor) == max(shared) + 1:  # else `Tensors` says what is wrong
            tensor = tensor[shared]
        repeated[key] = tensor
    return config, repeated
