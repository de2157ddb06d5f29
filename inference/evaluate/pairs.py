"""Pairs of recordings of which one is the better speech: how they are listed in a .jsonl file. Needs no torch.

    {"better": "a.wav", "worse": "b.wav", "span": [16000, 32000], "task": "speaker", "name": "speaker/12"}

Each line is a pair. Paths are relative to the file's folder. `span`, if given: samples, at the file's own rate, where
the two differ. `task`: what is asked (default: the file's name). `name`: of the pair (default: the number of its line).
Suites with a layout of their own are suites.py's.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...model.files import readable

KEYS = ("better", "worse", "span", "task", "name")


@dataclass(frozen=True)
class Pair:
    """Two recordings; a model that hears gives the better one the higher likelihood."""

    name: str
    task: str
    better: Path
    worse: Path
    span: tuple[int, int] | None = None  # samples where they differ; None: found from the samples that they share


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a .jsonl file. Raises ValueError or FileNotFoundError in one line."""
    if not path.is_file():
        raise FileNotFoundError(f"{readable(path)}: no such file")
    pairs = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            pairs.append(_pair(line, f"{readable(path)}, line {number}", path, str(number)))
    return checked(pairs, path)


def checked(pairs: list[Pair], path: Path) -> list[Pair]:
    """The pairs, if there are any, each with a name of its own. Raises ValueError otherwise."""
    if not pairs:
        raise ValueError(f"{readable(path)}: holds no pair of recordings")
    name, count = Counter(pair.name for pair in pairs).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{readable(path)}: {count} pairs are called '{name}'; give each a name of its own")
    return pairs


def to_json_lines(pairs: Sequence[Pair], folder: Path) -> str:
    """What `read_pairs` reads from a file in `folder`, below which the recordings lie."""
    lines = []
    for pair in pairs:
        values = {key: str(getattr(pair, key).relative_to(folder)) for key in ("better", "worse")}
        span = {} if pair.span is None else {"span": list(pair.span)}
        lines.append(json.dumps(values | span | {"task": pair.task, "name": pair.name}) + "\n")
    return "".join(lines)


def pairs_hash(pairs: Sequence[Pair]) -> str:
    """sha256 over names, tasks and spans; the recordings are hashed where they are read."""
    listed = [(pair.name, pair.task, pair.span) for pair in pairs]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _pair(line: bytes, place: str, path: Path, number: str) -> Pair:
    try:
        values = json.loads(line)
    except ValueError:
        raise ValueError(f"{place}: is not JSON") from None
    if not isinstance(values, dict):
        raise ValueError(f'{place}: must be an object such as {{"better": "a.wav", "worse": "b.wav"}}')
    if unknown := [key for key in values if key not in KEYS]:
        raise ValueError(f"{place}: '{unknown[0]}' is unknown; allowed are {', '.join(KEYS)}")
    for key in ("better", "worse"):
        if not isinstance(values.get(key), str) or not values[key]:
            raise ValueError(f"{place}: '{key}' must be the path of a recording")
    span = values.get("span")
    if span is not None and not (isinstance(span, list) and [type(value) for value in span] == [int, int]):
        raise ValueError(f"{place}: 'span' must be two whole numbers of samples, such as [16000, 32000]")
    better, worse = (path.parent / values[key] for key in ("better", "worse"))
    name, task = (str(values.get(key, default)) for key, default in (("name", number), ("task", path.stem)))
    return Pair(name, task, better, worse, None if span is None else (span[0], span[1]))
