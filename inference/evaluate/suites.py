"""The published layouts of pairs of recordings: a folder of a benchmark -> its pairs. Needs no torch.

    salmon      PART/sample_12_....wav: the number after the first "_" is the pair; by name, the better one comes first
    swuggy      lexical/{dev,test}/*.wav with gold.csv (ZeroSpeech 2021: a word and a pseudo-word of each id and voice),
                or files whose names begin with a number and "_", in whose order each two are a pair, the word first
    sblimp      syntactic/{dev,test} with gold.csv in the same way, or flat with "+" after the number
    storycloze  flat, with "_" after the number

Names and order are those of slp-rl/salmon's and slp-rl/slamkit's readers and of zerospeech/benchmarks.
"""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from ...model.files import readable
from .pairs import Pair, checked

SEPARATORS = {"swuggy": "_", "sblimp": "+", "storycloze": "_"}
SUITES = (*SEPARATORS, "salmon")
GOLD = "gold.csv"


def read_suite(folder: Path, suite: str) -> list[Pair]:
    """All pairs below a folder. Raises FileNotFoundError, or ValueError for what is not in the suite's layout."""
    if suite not in SUITES:
        raise ValueError(f"--suite '{suite}' is unknown; choose one of {', '.join(SUITES)}")
    if not folder.is_dir():
        raise FileNotFoundError(f"{readable(folder)}: no such folder")
    golds = sorted(folder.rglob(GOLD)) if suite in ("swuggy", "sblimp") else []
    if golds:
        pairs = [pair for gold in golds for pair in _gold_pairs(gold, folder, suite)]
    else:
        groups = sorted({path.parent for path in folder.rglob("*.wav")})
        read = _salmon_pairs if suite == "salmon" else _numbered_pairs
        pairs = [pair for group in groups for pair in read(group, folder, suite)]
    return checked(pairs, folder)


def _gold_pairs(gold: Path, folder: Path, suite: str) -> Iterator[Pair]:
    """Rows with the same id and voice: one is correct, the other is not."""
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    with gold.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if missing := [key for key in ("id", "filename", "voice", "correct") if not row.get(key)]:
                raise ValueError(f"{readable(gold)}: a row has no '{missing[0]}'; is it a {suite} gold file?")
            found[row["id"], row["voice"]][row["correct"]] = row["filename"]
    task = _task(gold.parent, folder, suite)
    for (number, voice), files in found.items():
        if set(files) != {"0", "1"}:
            raise ValueError(f"{readable(gold)}: id {number}, voice {voice} is not one correct and one other row")
        better, worse = (gold.parent / _wav(files[key]) for key in ("1", "0"))
        yield Pair(f"{task}/{number}/{voice}", task, better, worse)


def _numbered_pairs(group: Path, folder: Path, suite: str) -> Iterator[Pair]:
    """Files sorted by the number that their names begin with: better, worse, better, worse, ...

    Where each two files share a number, the rest of their names decides ("correct" before "incorrect").
    """
    separator, numbers = SEPARATORS[suite], []
    for path in sorted(group.glob("*.wav")):
        number = path.name.split(separator)[0]
        if not re.fullmatch(r"\d+", number):
            raise ValueError(f"{readable(path)}: its name does not begin with a number and '{separator}' ({suite})")
        numbers.append((int(number), path))
    numbers.sort()
    shared = set(Counter(number for number, _ in numbers).values())
    if len(numbers) % 2 or shared not in ({1}, {2}):
        raise ValueError(f"{readable(group)}: holds {len(numbers)} recordings that are not two for each pair ({suite})")
    task = _task(group, folder, suite)
    for (_, better), (_, worse) in zip(numbers[::2], numbers[1::2], strict=True):
        yield Pair(f"{task}/{better.stem}", task, better, worse)


def _salmon_pairs(group: Path, folder: Path, suite: str) -> Iterator[Pair]:
    samples: dict[int, list[Path]] = defaultdict(list)
    for path in sorted(group.glob("*.wav")):
        parts = path.stem.split("_")
        if len(parts) < 2 or not parts[1].isdecimal():
            raise ValueError(f"{readable(path)}: has no number after the first '_' of its name ({suite})")
        samples[int(parts[1])].append(path)
    task = group.name
    for number, files in sorted(samples.items()):
        if len(files) != 2:
            raise ValueError(f"{readable(group)}: sample {number} has {len(files)} recordings, not two")
        yield Pair(f"{task}/{number}", task, files[0], files[1])


def _wav(name: str) -> str:
    return name if name.endswith(".wav") else f"{name}.wav"


def _task(group: Path, folder: Path, suite: str) -> str:
    inner = group.relative_to(folder).as_posix()
    return suite if inner == "." else f"{suite}/{inner}"
