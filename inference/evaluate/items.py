"""What is kept of a run over pairs: suite.json, its settings and hashes, and items.jsonl, a line for each pair.

A line is written once its pair is scored, so a run that was killed goes on after it; settings that differ are refused.
K codebooks. `Nats`: of the better and of the worse recording.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...model.files import readable, write_whole
from ...model.strict import read_object

HEADER, ITEMS = "suite.json", "items.jsonl"


@dataclass(frozen=True)
class Nats:
    """-ln p of the codes of both recordings under one model, summed over frames: [2, K] each."""

    whole: list[list[float]]
    local: list[list[float]] | None  # frames of the window, after everything before them; None without a span
    alone: list[list[float]] | None  # the same frames, as if nothing came before them


@dataclass(frozen=True)
class Item:
    """One pair, scored."""

    name: str
    task: str
    sha256: list[str]  # hashes of the two files
    seconds: list[float]
    window: list[int] | None  # frames of the local score
    level_step_db: list[float] | None  # change of level where the span begins
    model: Nats
    bigram: Nats | None  # by counts of codes; None where there are too few pairs to count on


def open_run(folder: Path, header: dict[str, Any]) -> dict[str, Item]:
    """Begin a run in `folder`, or go on with one -> the items that are there, by name.

    Raises ValueError where the folder holds a run with another header.
    """
    path = folder / HEADER
    if not path.exists():
        (folder / ITEMS).unlink(missing_ok=True)
        write_whole(path, json.dumps(header, indent=2) + "\n")
        return {}
    stored = read_object(path)
    if differing := [key for key in header if stored.get(key) != header[key]]:
        key = differing[0]
        raise ValueError(
            f"{readable(folder)}: holds a run with another {key} ({stored.get(key)}, not {header[key]}); "
            "choose another --out"
        )
    items = read_items(folder)
    write_whole(folder / ITEMS, "".join(map(_line, items)))  # without a line that was cut off
    return {item.name: item for item in items}


def append_items(folder: Path, items: Iterable[Item]) -> None:
    with (folder / ITEMS).open("a", encoding="utf-8") as file:
        file.write("".join(map(_line, items)))
        file.flush()
        os.fsync(file.fileno())


def read_items(folder: Path) -> list[Item]:
    """The items of a run, finished or not. Raises FileNotFoundError or ValueError for a folder that holds none."""
    check_run(folder)
    path, items = folder / ITEMS, []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else [], 1):
        if not line.endswith(b"\n"):  # left by a run that was killed
            break
        try:
            values = json.loads(line)
            nats = [None if values[key] is None else Nats(**values[key]) for key in ("model", "bigram")]
            items.append(Item(**(values | {"model": nats[0], "bigram": nats[1]})))
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{readable(path)}, line {number}: is not an item of this codeclm; delete it") from None
    return items


def check_run(folder: Path) -> None:
    """Raise FileNotFoundError for a folder that no run has written to. Needs no torch."""
    if not (folder / HEADER).is_file():
        raise FileNotFoundError(f"{readable(folder)}: holds no results of pairs ({HEADER} is missing)")


def _line(item: Item) -> str:
    return json.dumps(asdict(item)) + "\n"
