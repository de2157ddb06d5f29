"""The processes of a run and the device of each: one process, or the ranks that torchrun or accelerate started."""

import atexit
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor

from ..data.config import PrepareConfig
from ..data.preparation import open_or_prepare
from ..data.store_index import HEADER
from ..data.token_store import TokenStore
from ..model.codecs import Codec
from ..model.device import resolve_device
from .checkpoint import Part

Data = str | Path | TokenStore
PATIENCE = timedelta(days=30)  # what ranks wait for the main one: preparing speech may take longer than a step's limit


def start(device: str = "auto") -> Accelerator:
    """Join the other ranks, if there are any, on this kind of device.

    Precision is the trainer's: accelerate would wrap the model's own `forward` for it. Gradients are not accumulated,
    whatever accelerate's environment says. Raises ValueError for a device that is not there, or not for every rank,
    and if the other ranks are not there.
    """
    wanted, ranks = resolve_device(device), int(os.environ.get("WORLD_SIZE", "1"))
    if wanted.index is not None:
        if ranks > 1:
            raise ValueError(f"device '{device}' is one GPU for {ranks} processes; give cuda: each takes its own")
        torch.cuda.set_device(wanted)
    # accelerate remembers the first run of a process, and would not hear of another device
    before = PartialState().device if PartialState._shared_state else None
    other = before is not None and before.type != wanted.type
    AcceleratorState._reset_state(reset_partial_state=other and not dist.is_initialized())
    accelerator = Accelerator(
        mixed_precision="no",
        cpu=wanted.type == "cpu",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    wished = launched_processes()
    if accelerator.num_processes == 1 and wished > 1:
        raise ValueError(
            f"accelerate launch was asked for {wished} processes and started this one alone; start them with "
            f"torchrun --nproc_per_node {wished} --no-python codeclm ..."
        )
    if accelerator.num_processes < ranks:
        raise ValueError(
            f"WORLD_SIZE is {ranks}, but this process is alone; start all of them with torchrun or accelerate launch"
        )
    if device != "auto" and accelerator.device.type != wanted.type:
        raise ValueError(f"device '{device}' was asked for, but these processes compute on {accelerator.device.type}")
    atexit.unregister(leave)
    atexit.register(leave)
    return accelerator


def launched_processes() -> int:
    """Processes that `accelerate launch`, which started this one, was asked for; 1 if it was not, or does not say.

    On CPUs it starts a single one and says nothing (accelerate 1.15). On one machine its command line can be seen, and
    else the file that `accelerate config` has written.
    """
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or "WORLD_SIZE" in os.environ:
        return 1
    import psutil  # accelerate needs it, too
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    parent = psutil.Process().parent()
    command = parent.cmdline() if parent else []
    if "launch" not in command:
        return 1
    words = " ".join(command).replace("=", " ")
    if found := re.search(r"--num[_-]processes (\d+)", words):
        return int(found[1])
    chosen = re.search(r"--config_file (\S+)", words)
    file = chosen[1] if chosen else default_config_file
    return getattr(load_config_from_file(file), "num_processes", 1) or 1 if os.path.isfile(file) else 1


def leave() -> None:
    """At the end of the process: gloo's threads, left running, now and then abort a process that was done."""
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


@contextmanager
def main_first(accelerator: Accelerator) -> Iterator[None]:
    """The block runs in the main process and then in the others, however long that takes."""
    group = dist.new_group(backend="gloo", timeout=PATIENCE) if accelerator.num_processes > 1 else None
    if group is not None and not accelerator.is_main_process:
        dist.barrier(group)  # pyright: ignore[reportArgumentType]
    yield
    if group is not None and accelerator.is_main_process:
        dist.barrier(group)  # pyright: ignore[reportArgumentType]


def open_store(data: Data, out: Path, codec: Codec, config: PrepareConfig, device: str = "auto") -> TokenStore:
    """`open_or_prepare` in the main process; the other ranks then open the same store."""
    accelerator = start(device)
    with main_first(accelerator):
        if accelerator.is_main_process:
            return open_or_prepare(data, out, codec, config)
        if isinstance(data, TokenStore):
            return data
        return TokenStore(data if (Path(data) / HEADER).is_file() else out)


def open_stores(
    data: Data | Sequence[Data], out: Path, codec: Codec, config: PrepareConfig, device: str = "auto"
) -> list[TokenStore]:
    """`open_store` of each; what is audio becomes OUT/tokens, OUT/tokens-1, ... Raises ValueError for none."""
    given = [data] if isinstance(data, str | Path | TokenStore) else list(data)
    if not given:
        raise ValueError("DATA is missing")
    folders = [out / (f"tokens-{number}" if number else "tokens") for number in range(len(given))]
    stores = [open_store(one, folder, codec, config, device) for one, folder in zip(given, folders, strict=True)]
    for store in stores:
        store.require_codec(codec)
    return stores


def own_part(accelerator: Accelerator) -> Part:
    """This rank's part of a checkpoint that all write."""
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    return Part(accelerator.process_index, accelerator.num_processes, group)


def total(accelerator: Accelerator, *numbers: float) -> list[float]:
    """The sum over the ranks of each number."""
    if accelerator.num_processes == 1:
        return [float(number) for number in numbers]
    mine = torch.tensor(numbers, dtype=torch.float64, device=accelerator.device)
    return cast(Tensor, accelerator.reduce(mine, "sum")).tolist()


def agree(accelerator: Accelerator, number: int) -> int:
    """The largest of the ranks' numbers; each waits here for the others."""
    if accelerator.num_processes == 1:
        return number
    mine = torch.tensor([number], device=accelerator.device)
    return int(cast(Tensor, accelerator.gather(mine)).max())
