"""What is kept of a run over pairs: suite.json, its settings and hashes, and items.jsonl, a line for each pair.

run_lines.py says how. K codebooks. `Nats`: of the better and of the worse recording.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...model.files import readable
from .run_lines import append_lines, begin_run, not_an_item, read_lines, rewrite_lines

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
    if not begin_run(folder / HEADER, folder / ITEMS, header):
        return {}
    items = read_items(folder)
    rewrite_lines(folder / ITEMS, map(asdict, items))
    return {item.name: item for item in items}


def append_items(folder: Path, items: Iterable[Item]) -> None:
    append_lines(folder / ITEMS, map(asdict, items))


def read_items(folder: Path) -> list[Item]:
    """The items of a run, finished or not. Raises FileNotFoundError or ValueError for a folder that holds none."""
    check_run(folder)
    items = []
    for number, values in read_lines(folder / ITEMS):
        try:
            nats = [None if values[key] is None else Nats(**values[key]) for key in ("model", "bigram")]
            items.append(Item(**(values | {"model": nats[0], "bigram": nats[1]})))
        except (TypeError, KeyError):
            raise not_an_item(folder / ITEMS, number) from None
    return items


def check_run(folder: Path) -> None:
    """Raise FileNotFoundError for a folder that no run has written to. Needs no torch."""
    if not (folder / HEADER).is_file():
        raise FileNotFoundError(f"{readable(folder)}: holds no results of pairs ({HEADER} is missing)")
