"""Checkpoints of the original `encodec` package (24 and 48 kHz) as transformers' EncodecModel: a renaming of keys.

The two networks are the same to the bit (tests/test_encodec_original.py). The package itself is never needed.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..weights import load_strictly
from .encodec import EncodecCodec

RENAMED = (
    ("encoder.model.", "encoder.layers."),
    ("decoder.model.", "decoder.layers."),
    (".conv.norm.", ".norm."),
    (".convtr.norm.", ".norm."),
    (".conv.conv.", ".conv."),
    (".convtr.convtr.", ".conv."),
    ("quantizer.vq.layers.", "quantizer.layers."),
    ("._codebook.", ".codebook."),
    (".weight_g", ".parametrizations.weight.original0"),
    (".weight_v", ".parametrizations.weight.original1"),
)
HIGH: dict[str, Any] = dict(
    sampling_rate=48_000, audio_channels=2, normalize=True, chunk_length_s=1.0, overlap=0.01,
    norm_type="time_group_norm", use_causal_conv=False, target_bandwidths=[3.0, 6.0, 12.0, 24.0],
)  # fmt: skip


def load_original(path: Path) -> EncodecCodec:
    """A .th file with the state dict of `encodec.EncodecModel.encodec_model_24khz()` or `..._48khz()` -> codec.

    Raises FileNotFoundError or ValueError in one line.
    """
    from transformers import EncodecConfig, EncodecModel

    tensors = rename(read_state_dict(path))
    is_high = any(".norm." in key for key in tensors)
    config = EncodecConfig(**HIGH if is_high else {})
    model = EncodecModel(config)
    load_strictly(model, tensors, str(path))
    return EncodecCodec(model, tensors, config.to_dict())


def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package's names -> transformers'."""
    renamed = {}
    for key, tensor in tensors.items():
        for theirs, ours in RENAMED:
            key = key.replace(theirs, ours)
        renamed[key] = tensor
    return renamed


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a .th file: the only place that reads torch's own format, and tensors alone.

    Raises FileNotFoundError, or ValueError for a file that is broken or holds anything but named tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, so there are no weights to load")
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of many classes, pickle's own among them; torch's text says how to read it all the same
        raise ValueError(
            f"{path}: is not a file of tensors alone, or not whole, and no other is read; fetch it from its makers"
        ) from None
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path}: is not the state dict of an encodec model")
    return {str(key): value.contiguous() for key, value in found.items()}
