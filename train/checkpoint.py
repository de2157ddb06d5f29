"""Checkpoints that are whole or absent. No pickle anywhere.

A checkpoint `step-00001200/` holds safetensors files, `state.json`, and `COMPLETE` with the sha256 of each file.
The newest folder whose hashes hold is the one that counts; a broken one is named and passed over.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..model.files import file_sha256, whole_folder

Tensors = dict[str, Tensor]
log = logging.getLogger(__name__)


def save_checkpoint(run: Path, step: int, files: Mapping[str, Tensors], state: dict, keep: int = 2) -> Path:
    """Write `run/step-N` with one safetensors file for each entry of `files`; then remove all but the newest `keep`.

    Raises OSError (disk full, not writable); an earlier checkpoint is never touched before this one is complete.
    """
    target = run / f"step-{step:08d}"
    try:
        with whole_folder(target, replace=True) as folder:
            for name, tensors in files.items():
                save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / f"{name}.safetensors")
            (folder / "state.json").write_text(json.dumps({"step": step, **state}))
            hashes = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
            (folder / "COMPLETE").write_text(json.dumps(hashes))
    except (SafetensorError, OSError) as error:
        kept = f"; {earlier.name} is intact" if (earlier := latest_checkpoint(run)) else ""
        raise OSError(f"{target}: the checkpoint could not be written ({error}){kept}") from None
    # one of a later step was broken, or the run would not be back here: it goes before any older one
    others = sorted(set(run.glob("step-*")) - {target}, key=lambda path: (path < target, path))
    for old in others[: max(0, len(others) - keep + 1)]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def latest_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    for path in sorted(run.glob("step-*"), reverse=True):
        problem = checkpoint_problem(path)
        if problem is None:
            return path
        log.warning(f"{path}: passed over, {problem}")
    return None


def checkpoint_problem(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None if every hash holds."""
    try:
        hashes = dict(json.loads((path / "COMPLETE").read_text()))
    except (OSError, ValueError, TypeError):
        hashes = {}
    if not hashes:
        return "it was not finished"
    for name, expected in hashes.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if file_sha256(path / name) != expected:
            return f"{name} does not have the content it was written with"
    return None


def load_tensors(checkpoint: Path, name: str) -> Tensors:
    return load_file(checkpoint / f"{name}.safetensors")


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, kinds, shapes and values: of weights, wherever they lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_state(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "state.json").read_text())


def difference(old: Any, new: Any, name: str = "") -> str:
    """Where two values of JSON differ first, in words; "" if they do not."""
    if isinstance(old, dict) and isinstance(new, dict):
        inner = (difference(old.get(key), new.get(key), f"{name}.{key}".strip(".")) for key in old.keys() | new.keys())
        return min(filter(None, inner), default="")
    if old == new:
        return ""
    before, now = (text[:12] + "..." if len(text) > 40 else text for text in (str(old), str(new)))
    return f"{name} was {before}, is {now}".strip()


def filled(values: Any, defaults: Any) -> Any:
    """Values of JSON with what `defaults` has beside them: a setting that an earlier version did not know."""
    if not isinstance(values, dict) or not isinstance(defaults, dict):
        return values
    return defaults | {key: filled(value, defaults.get(key)) for key, value in values.items()}


def pack_optimizer(optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimizer's state as named tensors; its hyperparameters come from the config, not from here."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": torch.as_tensor(value)
        for index, values in state.items()
        for key, value in values.items()
        if value is not None
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
