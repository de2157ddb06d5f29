"""Which audio files become which shards, and what each shard is made from: equal keys mean equal content."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..model.codec_reference import CodecReference
from ..model.files import readable
from .config import PrepareConfig
from .encode_files import transcript_path
from .store_index import ShardIndex
from .store_writer import finished_shard

QUIET_CUTS = "cut where it is quiet"  # part of the key


@dataclass(frozen=True)
class Shard:
    number: int
    files: list[tuple[Path, str]]  # with the name of the utterance
    key: str
    key_before_cuts: str  # what it was before long files were cut where it is quiet

    def found(self, out: Path) -> ShardIndex | None:
        """The finished shard in `out`, unless it was made from something else."""
        index = finished_shard(out, self.number, self.key)
        if index is None:
            index = finished_shard(out, self.number, self.key_before_cuts)
            names = {name for _, name in self.files}
            if index is not None and any(re.sub(r"~\d+$", "", entry.name) not in names for entry in index.utterances):
                return None
        return index


def plan_shards(
    audio: Path,
    files: Sequence[Path],
    info: CodecReference,
    config: PrepareConfig,
    only: Collection[Path] | None = None,
) -> list[Shard]:
    """only: of the files; names, and with them the order, are as if all were there."""
    named = list(zip(files, utterance_names(audio, files), strict=True))
    named = named if only is None else [pair for pair in named if pair[0] in only]
    shards = []
    for first in range(0, len(named), config.files_per_shard):
        members = named[first : first + config.files_per_shard]
        made_from = [
            info.fingerprint,
            float(config.max_utterance_s),
            config.copies,
            [[name, *stamp(path), *_transcript_stamp(path)] for path, name in members],
        ]
        keys = [hashlib.sha256(json.dumps(made_from + rest).encode()).hexdigest() for rest in ([QUIET_CUTS], [])]
        shards.append(Shard(len(shards), members, *keys))
    return shards


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
