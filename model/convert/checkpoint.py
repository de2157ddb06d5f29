"""Checkpoint folders as transformers writes them: config.json and safetensors, whole or sharded.

Reading is strict and never touches a pickle; a folder is written whole or not at all.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..weights import read_weights

INDEX = "model.safetensors.index.json"
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


def read_checkpoint(folder: Path, model_type: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and all tensors of a transformers folder. Raises FileNotFoundError or ValueError in one line."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    values = read_json(folder / "config.json")
    found = values.get("model_type")
    if found != model_type:
        raise ValueError(f"{folder / 'config.json'}: model_type is '{found}', should be '{model_type}'")
    refuse_quantised(values, str(folder / "config.json"))
    if not (folder / INDEX).is_file():
        return values, read_weights(folder / "model.safetensors")
    return values, read_shards(folder)


def read_shards(folder: Path) -> dict[str, Tensor]:
    """All tensors that the index names. Raises ValueError if a shard is elsewhere, lacks one, or two hold the same."""
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise ValueError(f"{folder / INDEX}: is not a safetensors index (weight_map is missing)")
    weights: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ValueError(f"{folder / INDEX}: shard '{shard}' is not a safetensors file of this folder")
        tensors = read_weights(folder / shard)
        for key in tensors:
            if key in weights or places.get(key) != shard:
                raise ValueError(f"{folder / shard}: tensor '{key}' is not where the index has it")
        weights |= tensors
    missing = sorted(set(places) - set(weights))
    if missing:
        raise ValueError(f"{folder / INDEX}: tensor '{missing[0]}' is missing from the weights")
    return weights


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file, so this folder holds no checkpoint") from None
    except ValueError:
        raise ValueError(f"{path}: is not valid JSON") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: is not a model's config")
    return values


def refuse_quantised(values: dict[str, Any], name: str) -> None:
    """Raise ValueError for a config.json that says that its weights are quantised."""
    if values.get("quantization_config"):
        raise ValueError(f"{name}: quantization_config cannot be expressed; give the checkpoint that is not quantised")


def refuse_existing(folder: Path) -> None:
    """Raise FileExistsError if `folder` is a file or holds something."""
    if folder.is_file() or folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: exists already; give a new folder")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder that becomes `folder` if nothing fails, and is removed otherwise.

    Raises FileExistsError if `folder` holds something already, OSError if the disk does not take it.
    """
    refuse_existing(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        partial.rename(folder)
    except (SafetensorError, OSError) as error:
        raise OSError(f"{folder}: could not be written ({error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_checkpoint(folder: Path, values: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """config.json and model.safetensors, the tensors as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    write_weights(folder / "model.safetensors", weights)


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    whole = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(whole, path, metadata={"format": "pt"})


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the small files beside the weights (tokenizer, licence, generation settings), config.json excepted."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in ("config.json", INDEX) and path.suffix in COMPANIONS:
            shutil.copyfile(path, folder / path.name)
