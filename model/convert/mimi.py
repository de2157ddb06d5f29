"""The codec inside CSM and Moshi checkpoints: its tensors apart, and what a SpeechLM says about it."""

from typing import Any

from torch import Tensor
from transformers import MimiConfig

from ..codec_reference import CodecReference
from ..codecs.base import fingerprint_of
from ..codecs.hf_config import check_counts, read_settings
from ..strict import shown


def split_codec(weights: dict[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """-> (the language model's tensors, the codec's under their own names)."""
    codec = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
    return {key: tensor for key, tensor in weights.items() if not key.startswith(prefix)}, codec


def codec_settings(values: dict[str, Any] | None, name: str) -> dict[str, Any]:
    """The codec's part of a config.json, as a config.json of its own. Raises ValueError for one that is not Mimi."""
    if not isinstance(values, dict | None):
        raise ValueError(f"{name}: the codec's config is {shown(values)}; it must be an object of settings")
    values = {"model_type": "mimi"} | (values or {})
    if values["model_type"] != "mimi":
        raise ValueError(f"{name}: codec {shown(values['model_type'])} cannot be expressed; only 'mimi' can")
    return values


def codec_reference(
    values: dict[str, Any], weights: dict[str, Tensor], num_codebooks: int, name: str
) -> CodecReference:
    """The codec's config.json values and tensors -> what a SpeechLM of its `num_codebooks` codebooks refers to.

    The fingerprint is that of `Codec`, over the tensors as their file names them.
    Raises ValueError for a codec that has too few codebooks or lacks its weights.
    """
    config = read_settings(MimiConfig, values, name)
    if not weights:
        raise ValueError(f"{name}: the codec's tensors are missing from the weights")
    check_counts(config, len(weights), name)
    if config.num_quantizers < num_codebooks:
        raise ValueError(f"{name}: num_quantizers is {config.num_quantizers}, the model has {num_codebooks} codebooks")
    if min(config.sampling_rate, config.frame_rate) <= 0:
        raise ValueError(
            f"{name}: sampling_rate {config.sampling_rate} and frame_rate {config.frame_rate} must be above 0"
        )
    hop = config.sampling_rate / config.frame_rate
    if abs(hop - round(hop)) > 1e-6:
        raise ValueError(f"{name}: frame_rate {config.frame_rate} is no whole number of samples")
    hop_length, rate = round(hop), config.sampling_rate
    fingerprint = fingerprint_of(weights, rate, hop_length, num_codebooks, config.codebook_size)
    return CodecReference("mimi", fingerprint, rate, hop_length, num_codebooks, config.codebook_size)
