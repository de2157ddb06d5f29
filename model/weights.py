"""Reading weights strictly: safetensors only, every tensor expected and finite, or one clear line."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises FileNotFoundError or ValueError in one line."""
    if not path.is_file():
        pickles = sorted(path.parent.glob("*.bin")) + sorted(path.parent.glob("*.pt*")) if path.parent.is_dir() else []
        hint = f"; {pickles[0].name} is a pickle, which is never read: convert it to safetensors" if pickles else ""
        raise FileNotFoundError(f"{path}: no such file, so there are no weights to load{hint}")
    try:
        return load_file(path)
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
