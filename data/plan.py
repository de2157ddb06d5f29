"""Which sources become which shards, and what each shard is made from: equal keys mean equal content."""

import hashlib
import json
import re
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..model.codec_reference import CodecReference
from ..model.files import file_sha256
from .config import PrepareConfig
from .sources import Source
from .store_index import ShardIndex, StoreHeader, shard_name

QUIET_CUTS = "cut where it is quiet"  # part of the key


@dataclass(frozen=True)
class Shard:
    """One that is to be made."""

    sources: list[Source]
    key: str
    number: int  # the place of the group of sources that it was planned as

    @property
    def size(self) -> int:
        """Bytes of audio."""
        return sum(source.size for source in self.sources)


def plan_shards(
    sources: Sequence[Source],
    out: Path,
    stored: StoreHeader | None,
    info: CodecReference,
    config: PrepareConfig,
) -> list[ShardIndex | Shard]:
    """The shards of the sources, by the first source of each: those in `out` that were made from sources as they are
    now, and those that are to be made of the others.

    stored: what `out` was finished with; its shards come before others of the same sources. The other sources are
    grouped in order, and the groups do not depend on which of them are finished: several processes that make some
    each have the same plan.
    """
    facts = [[source.name, *source.stamp] for source in sources]
    settings = [info.fingerprint, float(config.max_utterance_s), config.copies]
    place_of = {source.name: place for place, source in enumerate(sources)}
    listed = [] if stored is None else [out / f"{shard.name}.json" for shard in stored.shards]
    planned: list[tuple[list[int], ShardIndex | Shard]] = [*_finished(sorted(listed), place_of, facts, settings)]
    done = {place for places, _ in planned for place in places}
    missing = []
    for number, places in enumerate(_groups([i for i in range(len(sources)) if i not in done], sources, config)):
        path = out / f"{shard_name(_keys(settings, facts, places)[0])}.json"
        if found := _finished([path], place_of, facts, settings, set(places)):
            planned += found
        else:
            missing.append((number, places))
    others = sorted(set(out.glob("shard-*.json")) - set(listed)) if missing else []
    leftover = {place for _, places in missing for place in places}
    for places, index in _finished(others, place_of, facts, settings, leftover):  # made by a run with other groups
        planned.append((places, index))
        leftover -= set(places)
    for number, places in missing:
        if places := [place for place in places if place in leftover]:
            key = _keys(settings, facts, places)[0]
            planned.append((places, Shard([sources[place] for place in places], key, number)))
    return [shard for _, shard in sorted(planned, key=lambda pair: pair[0][0])]


def _groups(places: Iterable[int], sources: Sequence[Source], config: PrepareConfig) -> list[list[int]]:
    """Places of sources in a row -> those of each shard: as many as it may have, in number and in bytes."""
    groups, total, most = [], 0, config.shard_mb * 1e6
    for place in places:
        size = sources[place].size
        if not groups or len(groups[-1]) == config.files_per_shard or total + size > most:
            groups.append([])
            total = 0
        groups[-1].append(place)
        total += size
    return groups


def _keys(settings: list, facts: list, places: Sequence[int]) -> list[str]:
    """The key of a shard of these sources, and what it was before long files were cut where it is quiet."""
    made_from = [*settings, [facts[place] for place in places]]
    return [hashlib.sha256(json.dumps(made_from + rest).encode()).hexdigest() for rest in ([QUIET_CUTS], [])]


def _finished(
    paths: Iterable[Path],
    place_of: dict[str, int],
    facts: list,
    settings: list,
    allowed: set[int] | None = None,
) -> list[tuple[list[int], ShardIndex]]:
    """The whole shards of sources as they are now, and the places of these; no source is in two of them.

    allowed: only shards of these places.
    """
    found, taken = [], set()
    for path in paths:
        try:
            index = ShardIndex.read(path)
        except (OSError, ValueError):
            continue
        names = {_source_of(entry.name, place_of) for entry in (*index.utterances, *index.rejected)}
        places = sorted(place_of[name] for name in names if name in place_of)
        if not places or not taken.isdisjoint(places) or not (allowed is None or allowed.issuperset(places)):
            continue
        key, key_before_cuts = _keys(settings, facts, places)
        uncut = all(re.sub(r"~\d+$", "", entry.name) in place_of for entry in index.utterances)
        if index.key == key or (index.key == key_before_cuts and uncut):
            with suppress(OSError):
                if index.sha256 == file_sha256(path.with_suffix(".bin")):
                    found.append((places, index))
                    taken.update(places)
    return found


def _source_of(entry: str, known: Container[str]) -> str:
    """The name of the source that an entry `name`, `name#2`, `name~1` or `name#2~1` comes from."""
    names = (entry, re.sub(r"~\d+$", "", entry), re.sub(r"#\d+(~\d+)?$", "", entry))
    return next((name for name in names if name in known), entry)
