"""Tiny CSM and Moshi checkpoints of transformers with random weights, and what both converters' tests share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CsmConfig,
    CsmForConditionalGeneration,
    MoshiConfig,
    MoshiForConditionalGeneration,
    PreTrainedModel,
)

MIMI = dict(
    model_type="mimi", sampling_rate=800, hidden_size=8, num_filters=2, upsampling_ratios=[2, 2], codebook_size=16,
    codebook_dim=4, num_quantizers=4, vector_quantization_hidden_dimension=4, upsample_groups=8, num_hidden_layers=1,
    intermediate_size=8, num_attention_heads=2, num_key_value_heads=2,
)  # fmt: skip
# norms with an eps so large that it matters, rotary wavelengths that are stretched in part
LLAMA3 = dict(rope_type="llama3", rope_theta=1000.0, factor=4.0, low_freq_factor=0.5, high_freq_factor=2.0)
CSM = dict(
    num_codebooks=4, vocab_size=19, text_vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, audio_token_id=2,
    audio_eos_token_id=3, codebook_pad_token_id=18, codec_config=MIMI, rms_norm_eps=0.02,
    rope_parameters=LLAMA3 | {"original_max_position_embeddings": 8},
    depth_decoder_config=dict(
        num_codebooks=4, backbone_hidden_size=16, vocab_size=19, hidden_size=8, intermediate_size=12,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=33,
        rms_norm_eps=0.03, rope_parameters=LLAMA3 | {"original_max_position_embeddings": 4},
    ),
)  # fmt: skip
MOSHI = dict(
    vocab_size=11, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    audio_vocab_size=16, ffn_dim=24, num_codebooks=3, audio_encoder_config=MIMI, max_position_embeddings=60,
    rms_norm_eps=0.02, sliding_window=50, depth_decoder_config=dict(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, ffn_dim=12, rms_norm_eps=0.03,
    ),
)  # fmt: skip
TIED = "depth_decoder.model.embed_tokens.weight", "backbone_model.embed_tokens.embed_audio_tokens.weight"


def csm(folder: Path, seed: int = 0, **changes: Any) -> CsmForConditionalGeneration:
    model = CsmForConditionalGeneration(CsmConfig(**CSM | changes))
    if model.config.tie_codebooks_embeddings:  # transformers 5.17 does not do it
        model.backbone_model.embed_tokens.embed_audio_tokens.weight = model.depth_decoder.model.embed_tokens.weight
    return saved(model, folder, seed)


def moshi(folder: Path, seed: int = 0, **changes: Any) -> MoshiForConditionalGeneration:
    # a copy: the class writes into the dict of its depth decoder
    return saved(MoshiForConditionalGeneration(MoshiConfig(**json.loads(json.dumps(MOSHI | changes)))), folder, seed)


def saved(model: Any, folder: Path, seed: int) -> Any:
    """`model` with weights so far from zero that every part of them matters, also written to `folder`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(0.25 * noise)
    model.save_pretrained(folder)
    return model.eval()


def edit(folder: Path, change: Callable[[dict, dict], object]) -> None:
    """Change config.json and the tensors of a checkpoint in place, on purpose: its checksums go."""
    values, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    change(values, tensors)
    (folder / "config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "checksums.json").unlink(missing_ok=True)


def assert_same_checkpoint(kind: type[PreTrainedModel], one: Path, other: Path) -> None:
    """The same tensors bit for bit in the same type, and the same settings. A tied table may be there once or twice."""
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    for tensors in (first, second):
        if TIED[1] in tensors and tensors[TIED[0]].equal(tensors[TIED[1]]):
            del tensors[TIED[1]]
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert second[key].dtype == tensor.dtype and second[key].equal(tensor), key
    settings = [kind.config_class.from_pretrained(folder).to_dict() for folder in (one, other)]
    assert settings[0] == settings[1]
