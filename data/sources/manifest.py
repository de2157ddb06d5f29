"""Lists of recordings, or of parts of them: JSON lines, CSV or TSV with a header, and lhotse's cuts (.jsonl.gz).

    {"audio": "talks/a.flac", "start": 12.5, "end": 17.0, "text": "what is said", "speaker": "anna"}

Paths are relative to the list, and may be addresses that fsspec reads. A line that cannot be used is skipped by number.
"""

import csv
import gzip
import io
import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from ...model.files import readable
from ..audio import AudioError
from ..store_index import Rejected
from ..text_encoder import clean_text
from ..word_times import words_beside
from .source import ByteRange, Fact, Found, Source, place_stamp, stems, words_stamp

SUFFIXES = (".jsonl", ".csv", ".tsv")
# what a column may be called, the first name that is there counts
COLUMNS = {
    "audio": ("audio", "path", "audio_filepath", "file_name", "file", "wav"),
    "text": ("text", "transcription", "transcript", "sentence"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "name": ("name", "id"),
    "start": ("start", "offset"),
    "end": ("end",),
    "duration": ("duration",),
}

logger = logging.getLogger(__name__)


class BadLine(ValueError):
    """A line that cannot be used; the message says why."""


@dataclass(frozen=True)
class Row:
    """A line, read."""

    place: str  # where its audio is, as the list has it
    name: str | None = None
    start_s: float = 0.0
    end_s: float | None = None
    text: str | None = None
    speaker: str | None = None

    def __post_init__(self) -> None:
        end = math.inf if self.end_s is None else self.end_s
        if not 0 <= self.start_s < end:
            raise BadLine(f"a part from {self.start_s:g} to {end:g} s is none")


def is_manifest(place: str | Path) -> bool:
    return str(place).removesuffix(".gz").endswith(SUFFIXES)


def read_manifest(place: str | Path) -> Found:
    """The recordings of a list, in its order. Raises AudioError, in one line, for what is no such list."""
    found, numbered = Found(), []
    label = PurePosixPath(readable(place)).name
    for number, row in _rows(str(place)):
        if isinstance(row, BadLine):
            logger.warning("%s line %d: %s; skipped", readable(place), number, row)
            found.skipped.append(Rejected(f"{label}:{number}", str(row)))
        else:
            numbered.append((number, row))
    if not numbered:
        reason = f"; {found.skipped[0].reason} (line {found.skipped[0].name.rpartition(':')[2]})" if found else ""
        raise AudioError(f"{readable(place)}: names no audio that can be used{reason}")
    root = str(place).rpartition("/")[0] if "/" in str(place) else "."
    names = _names(root, [row for _, row in numbered])
    stamp_of, words_of, lines = lru_cache(maxsize=None)(place_stamp), lru_cache(maxsize=1)(words_beside), {}
    for (number, row), name in zip(numbered, names, strict=True):
        if name in lines:
            reason = f"has the name of line {lines[name]}, '{name}'"
            logger.warning("%s line %d: %s; skipped", readable(place), number, reason)
            found.skipped.append(Rejected(f"{label}:{number}", reason))
            continue
        lines[name] = number
        where = _resolved(root, row.place)
        size, *version = stamp_of(where)
        audio = ByteRange(where) if "://" in where else Path(where)
        words_in = words_of(audio) if isinstance(audio, Path) else None
        facts = row.start_s, row.end_s, row.text, row.speaker
        stamp: tuple[Fact, ...] = (size, *version, *facts, *words_stamp(words_in))
        about = (row.start_s, row.end_s, row.text, False, row.speaker, readable(row.place))
        found.sources.append(Source(name, audio, stamp, _size(size, row), *about, words_in))
    return found


def _size(size: Fact, row: Row) -> int:
    """Bytes of its audio, or nearly: of a part that it is as long as it is, at 32 kB/s."""
    whole = max(0, int(size or 0))
    return whole if row.end_s is None else min(whole, round(32_000 * (row.end_s - row.start_s)))


def _resolved(root: str, place: str) -> str:
    if "://" in place or place.startswith("/"):
        return place
    return f"{root}/{place}" if "://" in root else str(Path(root) / place)


def _names(root: str, rows: list[Row]) -> list[str]:
    """Those in the list, else paths as for the files of a folder; a part has its times in its name."""
    paths = [_relative(root, row.place) for row in rows]
    return [row.name or stem + _times(row) for row, stem in zip(rows, stems(paths), strict=True)]


def _relative(root: str, place: str) -> str:
    path = place.rpartition("://")[2]
    folder = str(Path(root).resolve()) + "/"
    return path.removeprefix(folder).lstrip("/") if path.startswith("/") else path.removeprefix("./")


def _times(row: Row) -> str:
    if row.start_s == 0 and row.end_s is None:
        return ""
    times = [row.start_s] if row.end_s is None else [row.start_s, row.end_s]
    return "@" + "-".join(f"{time:.3f}".rstrip("0").rstrip(".") for time in times)


def _rows(place: str) -> Iterator[tuple[int, Row | BadLine]]:
    """The lines of a list that are not blank, by number, the first being 1."""
    data = _content(place)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AudioError(f"{readable(place)}: is not UTF-8 text (byte {error.start})") from None
    bare = place.removesuffix(".gz")
    objects = _json_lines(text) if bare.endswith(".jsonl") else _table(text, "\t" if bare.endswith(".tsv") else ",")
    told: set[str] = set()
    for number, values in objects:
        if isinstance(values, BadLine):
            yield number, values
            continue
        try:
            if "recording" in values or "tracks" in values:
                yield number, _cut(values)
            else:
                yield number, _row(values, place, told)
        except BadLine as error:
            yield number, error
        except (KeyError, TypeError, AttributeError):
            yield number, BadLine("is not a cut that is understood")


def _content(place: str) -> bytes:
    from fsspec.core import url_to_fs

    try:
        if "://" in place:
            system, path = url_to_fs(place)
            data = system.cat_file(path)
        else:
            data = Path(place).read_bytes()
        return gzip.decompress(data) if place.endswith(".gz") else data
    except (OSError, EOFError, ImportError) as error:
        raise AudioError(f"{readable(place)}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _json_lines(text: str) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            yield number, values if isinstance(values, dict) else BadLine("is not a JSON object")
        except ValueError as error:
            yield number, BadLine(f"is not JSON ({error})")


def _table(text: str, delimiter: str) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, BadLine(f"is not a line of this table ({error})")
            continue
        if not cells:
            continue
        if not header:
            header = [cell.strip() for cell in cells]
        elif len(cells) != len(header):
            yield reader.line_num, BadLine(f"has {len(cells)} cells, the header has {len(header)}")
        else:
            yield reader.line_num, {name: cell for name, cell in zip(header, cells, strict=True) if cell.strip()}


def pick(values: Mapping[str, Any], what: str) -> Any:
    """The value of the first column of this meaning that is there; None where there is none."""
    return next((values[name] for name in COLUMNS[what] if values.get(name) is not None), None)


def known_text(value: Any) -> str | None:
    """A text or a speaker; a number, as speakers often are, is one, too."""
    if isinstance(value, bool | dict | list):
        raise BadLine(f"has {json.dumps(value)[:40]} where a text should be")
    return None if value is None else clean_text(str(value)) or None


def known_seconds(value: Any, name: str) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if isinstance(value, bool) or not math.isfinite(seconds):
        raise BadLine(f"has {name} {json.dumps(value)[:40]}; it must be a number of seconds")
    return seconds


def _row(values: dict[str, Any], place: str, told: set[str]) -> Row:
    new = sorted(set(values) - {name for names in COLUMNS.values() for name in names} - told)
    if new:
        told.update(new)
        logger.info("%s: not used: %s", readable(place), ", ".join(new))
    audio = pick(values, "audio")
    if not isinstance(audio, str):
        raise BadLine(f"has no audio or path, only {', '.join(values) or 'nothing'}")
    start, end = known_seconds(pick(values, "start"), "start"), known_seconds(pick(values, "end"), "end")
    duration = known_seconds(pick(values, "duration"), "duration")
    if end is None and start is not None and duration is not None:
        end = start + duration
    about = known_text(pick(values, "text")), known_text(pick(values, "speaker"))
    return Row(audio.strip(), known_text(pick(values, "name")), start or 0.0, end, *about)


def _cut(values: dict[str, Any]) -> Row:
    """A cut of lhotse's: a part of one channel of a recording, with what was supervised in it."""
    if "tracks" in values:
        raise BadLine("is a mixed cut; give cuts of one recording")
    recording = values["recording"]
    sources = recording["sources"]
    if len(sources) != 1 or sources[0]["type"] not in ("file", "url"):
        raise BadLine("is not from one file")
    if recording.get("transforms") or len(sources[0].get("channels", [0])) > 1:
        raise BadLine("is one of several channels, or is to be transformed; save its audio first")
    start, duration = known_seconds(values["start"], "start"), known_seconds(values["duration"], "duration")
    whole = not start and abs((duration or 0) - recording["duration"]) < 1e-6
    spoken = values.get("supervisions") or []
    text = " ".join(entry["text"] for entry in spoken if entry.get("text"))
    speakers = {entry["speaker"] for entry in spoken if entry.get("speaker")}
    end = None if whole or duration is None else (start or 0.0) + duration
    about = clean_text(text) or None, known_text(speakers.pop()) if len(speakers) == 1 else None
    return Row(sources[0]["source"], values["id"], start or 0.0, end, *about)
