"""Several processes or machines that prepare one store in one shared folder: each makes its own shards of the plan.

There is no coordinator: rank R of W makes shards R, R + W, ...; when all are there, one command commits the store.
Locks keep out a second process of the same rank, ranks of another count, and whoever has the folder for himself.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..model.files import locked_folder

WORK = "codeclm prepare"
PATIENCE_S = 10.0  # ranks that start at once take turns


@dataclass(frozen=True)
class Rank:
    """One of the processes that share the work."""

    number: int
    world_size: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.world_size:
            raise ValueError(
                f"rank {self.number} of {self.world_size}: ranks are 0 to world size - 1; give --rank and --world-size"
            )

    def __str__(self) -> str:
        return f"rank {self.number} of {self.world_size}"

    def makes(self, shard: int) -> bool:
        return shard % self.world_size == self.number


@contextmanager
def rank_folder(out: Path, rank: Rank) -> Iterator[None]:
    """The folder is there, and this process is the only one of its rank in it while the block lasts.

    Raises OSError if it is not, if ranks of another count are at work, or a process that has the folder for itself.
    """
    lock = FileLock(out / f".rank-{rank.number}-of-{rank.world_size}.lock")
    with locked_folder(out, WORK, PATIENCE_S):
        for path, world_size in _rank_locks(out):
            if world_size != rank.world_size and _held(path):
                raise OSError(f"{out}: {world_size} ranks are at work here; give --world-size {world_size}, or wait")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise OSError(f"{out}: another {WORK} is {rank} here; give each its own --rank") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def own_folder(out: Path) -> Iterator[None]:
    """The folder is this process's alone while the block lasts. Raises OSError if others are at work there."""
    with locked_folder(out, WORK):
        for path, world_size in _rank_locks(out):
            if _held(path):
                raise OSError(f"{out}: {world_size} ranks are at work here; wait for them or choose another folder")
        yield
        for path, _ in _rank_locks(out):
            path.unlink()


def _rank_locks(out: Path) -> list[tuple[Path, int]]:
    """Locks of ranks, held or not, and the number of ranks they are of."""
    found = ((path, re.fullmatch(r"\.rank-\d+-of-(\d+)\.lock", path.name)) for path in out.glob(".rank-*.lock"))
    return [(path, int(match[1])) for path, match in found if match]


def _held(path: Path) -> bool:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
