"""Which audio files become which shards, and what each shard is made from: equal keys mean equal content."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..model.codec_reference import CodecReference
from ..model.files import file_sha256, readable
from .config import PrepareConfig
from .encode_files import transcript_path
from .store_index import ShardIndex, StoreHeader

QUIET_CUTS = "cut where it is quiet"  # part of the key


@dataclass(frozen=True)
class Shard:
    """One that is to be made."""

    files: list[tuple[Path, str]]  # with the name of the utterance
    key: str


def plan_shards(
    audio: Path,
    files: Sequence[Path],
    out: Path,
    stored: StoreHeader | None,
    info: CodecReference,
    config: PrepareConfig,
    only: Collection[Path] | None = None,
) -> list[ShardIndex | Shard]:
    """The shards of the files, by the first file of each: those in `out` that were made from files as they are now,
    and those that are to be made of the other files.

    stored: what `out` was finished with; its shards come before others of the same files. only: of the files; names,
    and with them the order, are as if all were there.
    """
    named = list(zip(files, utterance_names(audio, files), strict=True))
    named = named if only is None else [pair for pair in named if pair[0] in only]
    facts = [[name, *stamp(path), *_transcript_stamp(path)] for path, name in named]
    settings = [info.fingerprint, float(config.max_utterance_s), config.copies]
    listed = set() if stored is None else {shard.name for shard in stored.shards}
    paths = sorted(out.glob("shard-*.json"), key=lambda path: (path.stem not in listed, path))
    found = _finished(paths, {name: place for place, (_, name) in enumerate(named)}, facts, settings)
    done = {place for places, _ in found for place in places}
    rest = [place for place in range(len(named)) if place not in done]
    groups = [rest[first : first + config.files_per_shard] for first in range(0, len(rest), config.files_per_shard)]
    made = [(places, Shard([named[i] for i in places], _keys(settings, facts, places)[0])) for places in groups]
    return [shard for _, shard in sorted([*found, *made], key=lambda pair: pair[0][0])]


def _keys(settings: list, facts: list, places: Sequence[int]) -> list[str]:
    """The key of a shard of these files, and what it was before long files were cut where it is quiet."""
    made_from = [*settings, [facts[place] for place in places]]
    return [hashlib.sha256(json.dumps(made_from + rest).encode()).hexdigest() for rest in ([QUIET_CUTS], [])]


def _finished(
    paths: Iterable[Path], place_of: dict[str, int], facts: list, settings: list
) -> list[tuple[list[int], ShardIndex]]:
    """The whole shards of files as they are now, and the places of these files; no file is in two of them."""
    found, taken = [], set()
    for path in paths:
        try:
            index = ShardIndex.read(path)
        except (OSError, ValueError):
            continue
        files = {_file_of(entry.name, place_of) for entry in (*index.utterances, *index.rejected)}
        places = sorted(place_of[name] for name in files if name in place_of)
        if not places or not taken.isdisjoint(places):
            continue
        key, key_before_cuts = _keys(settings, facts, places)
        uncut = all(re.sub(r"~\d+$", "", entry.name) in place_of for entry in index.utterances)
        if index.key == key or (index.key == key_before_cuts and uncut):
            with suppress(OSError):
                if index.sha256 == file_sha256(path.with_suffix(".bin")):
                    found.append((places, index))
                    taken.update(places)
    return found


def _file_of(entry: str, known: Container[str]) -> str:
    """The name of the file that an entry `name`, `name#2`, `name~1` or `name#2~1` comes from."""
    names = (entry, re.sub(r"~\d+$", "", entry), re.sub(r"#\d+(~\d+)?$", "", entry))
    return next((name for name in names if name in known), entry)


def utterance_names(audio: Path, files: Sequence[Path]) -> list[str]:
    """Paths relative to the folder `audio` without suffix; with it where two files would have the same name."""
    root = audio.parent if audio.is_file() else audio
    whole = [file.relative_to(root) for file in files]
    stems = Counter(path.with_suffix("") for path in whole)
    taken = set(whole)
    return [
        readable((path if stems[stem] > 1 or stem in taken else stem).as_posix())
        for path, stem in ((path, path.with_suffix("")) for path in whole)
    ]


def stamp(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns; (-1, -1) for a link to nowhere."""
    try:
        stat = path.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _transcript_stamp(path: Path) -> tuple[int, ...]:
    """Nothing for an audio file without a transcript: a shard of such files has the key it always had."""
    found = stamp(transcript_path(path))
    return () if found == (-1, -1) else found
