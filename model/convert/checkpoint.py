"""Checkpoint folders as transformers writes them: config.json and safetensors, whole or sharded.

Reading is strict, and of safetensors only.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checksums import CHECKSUMS
from ..hub import fetch, is_hub_id
from ..strict import read_object, shown
from ..weights import WEIGHTS, read_folder

COMPANIONS = (".json", ".jinja", ".md", ".model", ".txt")  # tokenizers, templates, licences, generation settings
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Tensors:
    """The tensors of a checkpoint, handed out by name, each once. `name` is what messages call the checkpoint."""

    def __init__(self, tensors: dict[str, Tensor], name: str):
        self.left, self.name, self.dtype = dict(tensors), name, None

    def take(self, key: str, *shape: int) -> Tensor:
        """Raises ValueError naming a tensor that is missing, misshapen, quantised, of another type or not finite."""
        if key not in self.left:
            raise ValueError(f"{self.name}: tensor '{key}' is missing from the weights")
        tensor = self.left.pop(key)
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{self.name}: tensor '{key}' is {tensor.dtype}; quantised weights cannot be converted")
        self.dtype = self.dtype or tensor.dtype
        if tensor.dtype != self.dtype:  # what becomes one table of ours must be of one type to come back unchanged
            raise ValueError(f"{self.name}: tensor '{key}' is {tensor.dtype}, others are {self.dtype}; give one type")
        if tensor.shape != shape:
            raise ValueError(f"{self.name}: tensor '{key}' is {list(tensor.shape)}, should be {list(shape)}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{self.name}: tensor '{key}' holds NaN or infinite values")
        return tensor

    def rename(self, triples: Iterable[tuple[str, str, tuple[int, ...]]]) -> dict[str, Tensor]:
        """Take each (name here, name there, shape) -> {name there: tensor}."""
        return {there: self.take(here, *shape) for here, there, shape in triples}

    def finish(self) -> None:
        """Raise ValueError naming the first tensor that was not taken."""
        if self.left:
            raise ValueError(f"{self.name}: tensor '{sorted(self.left)[0]}' does not belong to this model")


def local_folder(name: Path) -> Path:
    """A folder as it is; a hub id as the folder that its checkpoint was fetched to, the small files beside it, too.

    Raises OSError if it cannot be fetched.
    """
    if name.exists() or not is_hub_id(str(name)):
        return name
    small = tuple(f"*{suffix}" for suffix in COMPANIONS)
    values = read_json(fetch(str(name), "checkpoint", small) / "config.json")
    weights = weights_name(values, str(name)) or WEIGHTS
    return fetch(str(name), "checkpoint", (*small, f"{weights.split('.')[0]}*.safetensors"))


def read_checkpoint(folder: Path, model_type: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and all tensors of a transformers folder. Raises FileNotFoundError or ValueError in one line."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; give one that holds a checkpoint of transformers', or a hub id"
        )
    values = read_json(folder / "config.json")
    found = values.get("model_type")
    if found != model_type:
        raise ValueError(f"{folder / 'config.json'}: model_type is {shown(found)}, should be '{model_type}'")
    refuse_quantised(values, str(folder / "config.json"))
    return values, read_folder(folder, weights_name(values, str(folder / "config.json")))


def weights_name(values: dict[str, Any], name: str) -> str:
    """What config.json calls the file or the index of the weights, "" if nothing: CSM's lie beside another format."""
    found = values.get("transformers_weights") or ""
    suffixes = (".safetensors", ".safetensors.index.json")
    if not isinstance(found, str) or Path(found).name != found or found and not found.endswith(suffixes):
        raise ValueError(f"{name}: transformers_weights is {shown(found)}; it must name a file in the same folder")
    return found


def read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file, so this folder holds no checkpoint") from None


def refuse_quantised(values: dict[str, Any], name: str) -> None:
    """Raise ValueError for a config.json that says that its weights are quantised."""
    if values.get("quantization_config"):
        raise ValueError(f"{name}: quantization_config cannot be expressed; give the checkpoint that is not quantised")


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the small files beside the weights (tokenizer, licence, generation settings), config.json excepted."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        is_ours = path.name in ("config.json", CHECKSUMS) or path.name.endswith(".safetensors.index.json")
        if path.is_file() and not is_ours and path.suffix in COMPANIONS:
            shutil.copyfile(path, folder / path.name)
