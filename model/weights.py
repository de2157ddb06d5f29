"""Weights on disk: safetensors only, read strictly, or one clear line. Matrices may be packed to 8 bits a number."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, unpacked. Raises FileNotFoundError or ValueError in one line."""
    if not path.is_file():
        pickles = sorted(path.parent.glob("*.bin")) + sorted(path.parent.glob("*.pt*")) if path.parent.is_dir() else []
        hint = f"; {pickles[0].name} is a pickle, which is never read: convert it to safetensors" if pickles else ""
        raise FileNotFoundError(f"{path}: no such file, so there are no weights to load{hint}")
    try:
        return unpack_int8(load_file(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: is not a whole safetensors file ({error}); fetch or write it again") from None


def load_strictly(module: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    """Load `weights` into `module`. Raises ValueError naming the first tensor that is missing, unknown, of another
    shape, or not finite. `name` is what the message calls the file."""
    expected = module.state_dict()
    for key, tensor in expected.items():
        if key not in weights:
            raise ValueError(f"{name}: tensor '{key}' is missing from the weights")
        if weights[key].shape != tensor.shape:
            raise ValueError(f"{name}: tensor '{key}' is {list(weights[key].shape)}, should be {list(tensor.shape)}")
        if weights[key].is_floating_point() and not torch.isfinite(weights[key]).all():
            raise ValueError(f"{name}: tensor '{key}' holds NaN or infinite values")
    unknown = sorted(set(weights) - set(expected))
    if unknown:
        raise ValueError(f"{name}: tensor '{unknown[0]}' does not belong to this model")
    module.load_state_dict(weights)


SCALE = ".scale"  # a packed matrix NAME has its rows' scales in NAME.scale
MIN_PACKED_ROW = 64  # shorter rows (codebook entries, depthwise kernels, norms) stay as they are


def pack_int8(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Round the rows of large matrices to int8 with one float32 scale a row: a quarter of the size.

    A packed model *is* what its file holds: read it back before anything is computed or fingerprinted with it.
    """
    packed = {}
    for name, tensor in weights.items():
        if tensor.ndim < 2 or tensor[0].numel() < MIN_PACKED_ROW:
            packed[name] = tensor.contiguous()
            continue
        rows = tensor.float().flatten(1)
        scale = (rows.abs().amax(dim=1) / 127).clamp_min(1e-12)
        packed[name] = (rows / scale[:, None]).round().to(torch.int8).view(tensor.shape).contiguous()
        packed[name + SCALE] = scale
    return packed


def unpack_int8(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `pack_int8`; tensors that are not packed pass through."""
    weights = {}
    for name, tensor in packed.items():
        if name + SCALE in packed:
            scale = packed[name + SCALE]
            weights[name] = tensor.float() * scale.view(-1, *[1] * (tensor.ndim - 1))
        elif not (name.endswith(SCALE) and name.removesuffix(SCALE) in packed):
            weights[name] = tensor
    return weights
