"""Checkpoints that are whole or absent. No pickle anywhere.

A checkpoint `step-00001200/` holds safetensors files, `state.json`, and `COMPLETE` with the sha256 of each file.
The newest folder whose hashes hold is the one that counts; a broken one is named and passed over.
Where each rank holds a part of the weights it writes a file of its own, `model-00000-of-00002.safetensors`, with its
rows of each tensor; read together they are whole tensors, for any number of ranks.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..model.files import file_sha256, partial_folder, whole_folder
from .sharding import part_of

Tensors = dict[str, Tensor]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A rank that writes its part of each file, as all others do theirs at the same time."""

    index: int = 0
    count: int = 1
    group: Any = None  # all of them, on their CPUs, and for nothing else

    def file(self, name: str) -> str:
        return f"{name}.safetensors" if self.count == 1 else f"{name}-{self.index:05d}-of-{self.count:05d}.safetensors"

    def any_failed(self, failed: bool) -> bool:
        """Each waits here for the others."""
        if self.count == 1:
            return failed
        found = torch.tensor(int(failed))
        dist.all_reduce(found, dist.ReduceOp.MAX, self.group)
        return bool(found)


def on_host(files: Mapping[str, Mapping[str, Tensor]], part: Part = Part()) -> dict[str, Tensors]:
    """Copies that training does not change; of sharded tensors this rank's rows, of whole ones rank 0's alone."""

    def copies(tensors: Mapping[str, Tensor]) -> Tensors:
        local = {key: tensor.to_local() if isinstance(tensor, DTensor) else tensor for key, tensor in tensors.items()}
        own = {key: tensor for key, tensor in local.items() if part.index == 0 or tensor is not tensors[key]}
        return {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in own.items()}

    return {name: copies(tensors) for name, tensors in files.items()}


def save_checkpoint(
    run: Path, step: int, files: Mapping[str, Tensors], state: dict, keep: int = 2, part: Part = Part()
) -> Path:
    """Write `run/step-N` with one safetensors file for each entry of `files`; then remove all but the newest `keep`.

    part: every rank calls this, with its part of each file; the first one completes the checkpoint.
    Raises OSError (disk full, not writable); an earlier checkpoint is never touched before this one is complete.
    """
    target = run / f"step-{step:08d}"
    if part.index:
        part.any_failed(False)  # the first one has made the folder
        write_part(partial_folder(target), files, part)
        return target
    try:
        with whole_folder(target, replace=True) as folder:
            part.any_failed(False)
            write_part(folder, files, part)
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


def write_part(folder: Path, files: Mapping[str, Tensors], part: Part) -> None:
    """This rank's files; returns when all ranks have written theirs. Raises OSError on all if one could not."""
    problem = None
    try:
        for name, tensors in files.items():
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / part.file(name))
    except (SafetensorError, OSError) as error:
        problem = error
    if part.any_failed(problem is not None):
        raise OSError(problem or "another process could not write its part")


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
    """Whole tensors, also where several ranks have written their rows of them."""
    parts = sorted(checkpoint.glob(f"{name}-*-of-*.safetensors"))
    if not parts:
        return load_file(checkpoint / f"{name}.safetensors")
    rows: dict[str, list[Tensor]] = {}
    for path in parts:
        for key, tensor in load_file(path).items():
            rows.setdefault(key, []).append(tensor)
    return {key: found[0] if len(found) == 1 else torch.cat(found) for key, found in rows.items()}


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
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        like = parameters[int(index)]
        state.setdefault(int(index), {})[key] = part_of(tensor, like) if tensor.shape == like.shape else tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
