"""CSM (Sesame) in transformers' format <-> SpeechLM, on config.json values and tensors; no files here.

CSM is the pattern "depth" with conditioning "prefix", no BOS, text that is only given, and a frame of zeros as its end.
Its tables have V rows for each codebook and ours V + 1 (BOS, never read here) and one for "absent".
K codebooks, V codebook size, D width, d depth width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CsmConfig

from ..codecs.hf_config import read_settings
from ..shapes import DepthConfig, TextConfig, TransformerConfig
from ..speech_lm_config import SpeechLMConfig
from . import Converted
from .checkpoint import Tensors
from .settings import (
    hf_settings,
    llama_triples,
    require,
    require_ours,
    rope_parameters,
    swapped,
    transformer_settings,
)

PREFIX, CODEC_CONFIG = "codec_model.", "codec_config"  # of the codec's tensors, and its settings in config.json
BACKBONE_TABLE = "backbone_model.embed_tokens.embed_audio_tokens.weight"
DEPTH_TABLE = "depth_decoder.model.embed_tokens.weight"
UNUSED = "depth_decoder.model.embed_tokens.weight.last_codebook"
# what a SpeechLM must be to be a CSM
EXPRESSIBLE = {
    "pattern": "depth", "user_codebooks": 0, "bos": False, "end": "zeros", "gaps": "absent",
    "text.predicted": False,
    "backbone.rope": True, "backbone.final_norm": True, "backbone.qk_norm": False, "backbone.qkv_bias": False,
    "backbone.sliding_window": 0,
    "depth.rope": True, "depth.final_norm": True, "depth.qk_norm": False, "depth.qkv_bias": False,
    "depth.sliding_window": 0, "depth.conditioning": "prefix", "depth.first_codebook": "backbone",
    "depth.group_size": 1, "depth.sees_text": False, "depth.weight_sets": (),
}  # fmt: skip


def to_speech_lm(values: dict[str, Any], weights: dict[str, Tensor], name: str = "CSM") -> Converted:
    """config.json values and tensors without the codec's -> SpeechLM. Raises ValueError for what we cannot express."""
    theirs = read_settings(CsmConfig, values, name)
    config = _our_config(theirs, name)
    source = Tensors(weights, name)
    table, depth_table, unused = _tables(source, config, bool(theirs.tie_codebooks_embeddings))
    ours = source.rename(_triples(config)) | {"frame_embedding.weight": with_special_rows(table)}
    if depth_table is not None:
        ours["depth_decoder.embedding.weight"] = with_special_rows(depth_table)
    text = source.take("embed_text_tokens.weight", config.text.vocab_size, config.backbone.dim)
    ours["text_embedding.weight"] = F.pad(text, (0, 0, 0, 1))  # a row for BOS, which CSM has not
    source.finish()
    return Converted(config, ours, unused)


def from_speech_lm(model: Converted, name: str = "SpeechLM") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The inverse: (config.json values without codec_config, tensors without the codec's).

    Raises ValueError for a setting that CSM does not have.
    """
    config = model.config
    require_ours(config, "CSM", EXPRESSIBLE | {"delays": [0] * config.num_codebooks})
    if config.depth.embeddings == "own" or not config.text.vocab_size:
        raise ValueError("depth.embeddings 'own' and a model without text are nothing that CSM can express")
    num_codebooks, vocab, width = config.num_codebooks, config.codebook_size, config.backbone.dim
    tied = config.depth.embeddings == "shared"
    source = Tensors(model.weights, name)
    theirs = source.rename(swapped(_triples(config)))
    table = source.take("frame_embedding.weight", num_codebooks * (vocab + 1) + 1, width)
    table = without_special_rows(table, num_codebooks)
    if (
        tied
    ):  # under both names: transformers 5.17 does not tie them when it loads, and leaves one that is missing random
        theirs[BACKBONE_TABLE], theirs[DEPTH_TABLE] = table, table.clone()
    else:
        depth = source.take("depth_decoder.embedding.weight", (num_codebooks - 1) * (vocab + 1) + 1, width)
        depth = without_special_rows(depth, num_codebooks - 1)
        last = depth.new_zeros(vocab, width)  # of codebook K - 1, which the depth decoder is never given
        if model.unused:
            last = Tensors(model.unused, name).take(UNUSED, vocab, width)
        theirs[BACKBONE_TABLE], theirs[DEPTH_TABLE] = table, torch.cat([depth, last.to(depth.dtype)])
    text = source.take("text_embedding.weight", config.text.vocab_size + 1, width)
    theirs["embed_text_tokens.weight"] = text[:-1]
    source.finish()
    return _their_values(config, tied), theirs


def with_special_rows(tables: Tensor) -> Tensor:
    """[K, V, D] -> [K * (V + 1) + 1, D]: a row of zeros (BOS) after each table, and one for "absent"."""
    return F.pad(F.pad(tables, (0, 0, 0, 1)).flatten(0, 1), (0, 0, 0, 1))


def without_special_rows(table: Tensor, num_tables: int) -> Tensor:
    """The inverse, flat: [K * (V + 1) + 1, D] -> [K * V, D]."""
    return table[:-1].unflatten(0, (num_tables, -1))[:, :-1].flatten(0, 1)


def _our_config(theirs: CsmConfig, name: str) -> SpeechLMConfig:
    depth: Any = theirs.depth_decoder_config
    require(theirs, name, codebook_eos_token_id=0)
    require(
        depth,
        f"{name}: depth_decoder_config",
        num_codebooks=theirs.num_codebooks,
        vocab_size=theirs.vocab_size,
        backbone_hidden_size=theirs.hidden_size,
    )
    backbone = TransformerConfig(**transformer_settings(theirs, name, theirs.intermediate_size))
    inner = DepthConfig(
        **transformer_settings(depth, f"{name}: depth_decoder_config", depth.intermediate_size),
        conditioning="prefix",
        embeddings="shared" if theirs.tie_codebooks_embeddings else "wide",
    )
    num_codebooks: Any = theirs.num_codebooks
    return SpeechLMConfig(
        num_codebooks,
        theirs.vocab_size,
        backbone,
        inner,
        text=TextConfig(theirs.text_vocab_size, predicted=False),
        bos=False,
        end="zeros",
        context_frames=theirs.max_position_embeddings,
    )


def _their_values(config: SpeechLMConfig, tied: bool) -> dict[str, Any]:
    backbone, depth, num_codebooks = config.backbone, config.depth, config.num_codebooks
    shared = {"num_codebooks": num_codebooks, "vocab_size": config.codebook_size}
    bias = {"attention_bias": False, "mlp_bias": False}
    return {
        "model_type": "csm",
        "architectures": ["CsmForConditionalGeneration"],
        **hf_settings(backbone),
        **shared,
        **bias,
        "intermediate_size": backbone.ff_dim,
        "rope_parameters": rope_parameters(backbone),
        "max_position_embeddings": config.context_frames,
        "text_vocab_size": config.text.vocab_size,
        "codebook_eos_token_id": 0,
        "tie_codebooks_embeddings": tied,
        "depth_decoder_config": {
            "model_type": "csm_depth_decoder_model",
            **hf_settings(depth),
            **shared,
            **bias,
            "intermediate_size": depth.ff_dim,
            "backbone_hidden_size": backbone.dim,
            "rope_parameters": rope_parameters(depth),
            "max_position_embeddings": num_codebooks + 1,
        },
    }


def _triples(config: SpeechLMConfig) -> list[tuple[str, str, tuple[int, ...]]]:
    """(their name, our name, shape) of everything but the embeddings."""
    width, depth = config.backbone.dim, config.depth.dim
    return [
        *llama_triples(config.backbone, "backbone", "backbone_model"),
        *llama_triples(config.depth, "depth_decoder.transformer", "depth_decoder.model"),
        ("lm_head.weight", "head_0.weight", (config.codebook_size, width)),
        ("depth_decoder.model.inputs_embeds_projector.weight", "depth_decoder.project.weight", (depth, width)),
        (
            "depth_decoder.codebooks_head.weight",
            "depth_decoder.heads",
            (config.num_codebooks - 1, depth, config.codebook_size),
        ),
    ]


def _tables(source: Tensors, config: SpeechLMConfig, tied: bool) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """The code embeddings -> (backbone's [K, V, D], depth decoder's [K-1, V, D] if its own, rows never read).

    A tied table is in the file once, under either name, or twice.
    """
    num_codebooks, width = config.num_codebooks, config.backbone.dim
    shape = (num_codebooks * config.codebook_size, width)
    found = [source.take(key, *shape) for key in (BACKBONE_TABLE, DEPTH_TABLE) if not tied or key in source.left]
    if not found:
        found = [source.take(BACKBONE_TABLE, *shape)]  # which says that it is missing
    if tied and not found[0].equal(found[-1]):
        raise ValueError(f"{source.name}: '{BACKBONE_TABLE}' and '{DEPTH_TABLE}' differ although they are tied")
    backbone, depth = (table.unflatten(0, (num_codebooks, -1)) for table in (found[0], found[-1]))
    if tied:
        return backbone, None, {}
    return backbone, depth[:-1], {UNUSED: depth[-1]}
