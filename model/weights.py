"""Weights on disk: safetensors only, read strictly, or one clear line. Matrices may be packed to 8 bits a number."""

import errno
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .files import ordinary_permissions
from .strict import check_value, read_object

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of a checkpoint in several files


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
    except (ValueError, KeyError) as error:  # scales; a type of numbers that this torch does not have
        raise ValueError(f"{path}: holds tensors that cannot be read ({error})") from None


def weight_files(folder: Path, name: str = "") -> list[Path]:
    """The files that hold a folder's weights: one, or those that an index names.

    name: of the file or index (default: model.safetensors, or its index where there is no such file).
    Raises ValueError for an index that is broken or names files elsewhere.
    """
    name = name or (INDEX if (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file() else WEIGHTS)
    if not name.endswith(".index.json"):
        return [folder / name]
    return [folder / shard for shard in sorted(set(_shards(folder / name).values()))]


def read_folder(folder: Path, name: str = "") -> dict[str, Tensor]:
    """All weights of a folder, from one file or several, named as in `weight_files`.

    Raises FileNotFoundError or ValueError in one line, also if a shard lacks what the index says, or two hold the same.
    """
    files = weight_files(folder, name)
    if files[0].name in (WEIGHTS, name):
        return read_weights(files[0])
    index = folder / (name or INDEX)
    places, weights = _shards(index), {}
    for path in files:
        tensors = read_weights(path)
        for key in tensors:
            if key in weights or places.get(key) != path.name:
                raise ValueError(f"{path}: tensor '{key}' is not where the index has it")
        weights |= tensors
    missing = sorted(set(places) - set(weights))
    if missing:
        raise ValueError(f"{index}: tensor '{missing[0]}' is missing from the weights")
    return weights


def _shards(index: Path) -> dict[str, str]:
    """Tensor -> the file that holds it, at least one."""
    places = read_object(index).get("weight_map")
    try:
        places = check_value(dict[str, str], places, "weight_map")
    except ValueError:
        places = {}
    if not places:
        raise ValueError(f"{index}: is not a safetensors index (weight_map is missing)")
    for shard in places.values():
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ValueError(f"{index}: shard '{shard}' is not a safetensors file of this folder")
    return places


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Raises OSError if the disk does not take it."""
    whole = {name: tensor.contiguous() for name, tensor in weights.items()}
    try:
        save_file(whole, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from None
    ordinary_permissions(path)


def write_checkpoint(folder: Path, values: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """config.json and model.safetensors, the tensors as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    write_weights(folder / WEIGHTS, weights)


def load_strictly(module: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    """Load `weights` into `module`, which may be on the meta device: it is then given memory, on the CPU.

    Raises ValueError as `check_fit` does. `name` is what the message calls the file.
    """
    check_fit(module, weights, name)
    if any(tensor.is_meta for tensor in module.state_dict().values()):
        module.to_empty(device="cpu")
    module.load_state_dict(weights)


def check_fit(module: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    """Raise ValueError naming the first tensor that is missing, unknown, of another shape, or not finite.

    Nothing is allocated for a module on the meta device: a config that asks for more than the file has is refused.
    """
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


SCALE = ".scale"  # a packed matrix NAME has its rows' scales in NAME.scale
MIN_PACKED_ROW = 64  # shorter rows (codebook entries, depthwise kernels, norms) stay as they are


def pack_int8(weights: dict[str, Tensor], axis: int = 1) -> dict[str, Tensor]:
    """Round the rows of large matrices to int8 with one float32 scale a row: a quarter of the size.

    axis: where a row begins; 1: a kernel of a convolution is one, -1: each row of a stack of matrices is one.
    A packed model *is* what its file holds: read it back before anything is computed or fingerprinted with it.
    """
    packed = {}
    for name, tensor in weights.items():
        rows = tensor.float().flatten(axis) if tensor.ndim >= 2 else tensor
        if tensor.ndim < 2 or rows.shape[-1] < MIN_PACKED_ROW:
            packed[name] = tensor.contiguous()
            continue
        scale = (rows.abs().amax(dim=-1) / 127).clamp_min(1e-12)
        packed[name] = (rows / scale[..., None]).round().to(torch.int8).view(tensor.shape).contiguous()
        packed[name + SCALE] = scale
    return packed


def unpack_int8(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `pack_int8`; tensors that are not packed pass through. ValueError for scales that do not fit."""
    weights = {}
    for name, tensor in packed.items():
        if name + SCALE in packed:
            scale = packed[name + SCALE]
            if not 0 < scale.ndim < tensor.ndim or scale.shape != tensor.shape[: scale.ndim]:
                raise ValueError(f"tensor '{name}{SCALE}' is {list(scale.shape)}, which does not fit '{name}'")
            weights[name] = tensor.float() * scale.view(*scale.shape, *[1] * (tensor.ndim - scale.ndim))
        elif not (name.endswith(SCALE) and name.removesuffix(SCALE) in packed):
            weights[name] = tensor
    return weights


def metadata_of(content: bytes) -> dict[str, str]:
    """What is written beside the tensors of a safetensors file that is known to be whole."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]).get("__metadata__") or {}
