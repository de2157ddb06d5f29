"""Parquet and Arrow files with a column of undecoded audio, as Hugging Face `datasets` keeps them, here or on the hub.

Only the columns beside the audio are read to plan; a row's audio is read when it is encoded. A dataset of the hub is
downloaded by `datasets` (extra `data`), or, with `streaming`, its parquet files are read where they are, by row groups.
"""

import io
import json
import logging
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from ...model.files import readable
from ..audio import AudioError
from ..store_index import Rejected
from .manifest import COLUMNS, BadLine, Row, known_seconds, known_text, pick
from .source import Found, Source, TableCell, place_stamp, prefixes

Table = pq.ParquetFile | pa.Table

logger = logging.getLogger(__name__)


def read_tables(place: str, files: Sequence[str]) -> Found:
    """The rows of parquet or Arrow files, in their order. Raises AudioError, in one line, for what is none."""
    found = Found()
    for file, prefix in zip(files, prefixes(place, files), strict=True):
        _add(found, file, prefix)
    if not found.sources:
        reason = f"; {found.skipped[0].reason}" if found.skipped else ""
        raise AudioError(f"{readable(place)}: holds no audio that can be used{reason}")
    return found


def saved_files(folder: Path, split: str | None) -> list[str]:
    """The files of a dataset that `save_to_disk` wrote. Raises AudioError where it has parts and none is chosen."""
    try:
        if (folder / "dataset_dict.json").is_file():
            return saved_files(folder / _chosen(folder, split), None)
        state = json.loads((folder / "state.json").read_text())
        return [str(folder / entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, AudioError):
            raise
        raise AudioError(f"{readable(folder)}: is no whole dataset of save_to_disk ({error})") from None


def _chosen(folder: Path, split: str | None) -> str:
    splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None or split not in splits:
        given = "give --split" if split is None else f"split '{split}' is unknown;"
        raise AudioError(f"{readable(folder)}: {given} one of {', '.join(splits)}")
    return split


def hub_files(name: str, subset: str | None, split: str | None, streaming: bool) -> list[str]:
    """The files of a dataset of the hub, or of a folder that `datasets` understands; downloaded unless `streaming`."""
    import datasets

    try:
        if not streaming:
            dataset = datasets.load_dataset(name, subset, split=split or "train")
            return [entry["filename"] for entry in dataset.cache_files]
        known = datasets.load_dataset_builder(name, subset).config.data_files or {}
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise AudioError(f"{name}: no such file or folder, and no dataset that can be had ({reason})") from None
    if (split or "train") not in known:
        splits = ", ".join(map(str, known))
        raise AudioError(f"dataset {name}: has no split '{split or 'train'}'; choose one of {splits}")
    files = [str(file) for file in known[split or "train"]]
    if not all(file.endswith(".parquet") for file in files):
        raise AudioError(f"dataset {name}: only parquet files can be streamed; leave --streaming out")
    return files


def _add(found: Found, file: str, prefix: str) -> None:
    stem = prefix.rstrip("/") or PurePosixPath(file).stem
    try:
        column, rows, size = _described(file)
    except (pa.ArrowException, OSError) as error:
        reason = f"is no whole parquet or Arrow file ({' '.join(str(error).split())[:200]})"
        logger.warning("%s: %s; skipped", readable(file), reason)
        found.skipped.append(Rejected(stem, reason))
        return
    stamp, names = place_stamp(file), [pick(values, "name") for values in rows]
    named = all(isinstance(name, str | int) for name in names) and len(set(names)) == len(names)
    for number, values in enumerate(rows):
        name = f"{prefix}{names[number]}" if named else f"{stem}/{number}"
        try:
            row = Row(
                file,
                name,
                known_seconds(pick(values, "start"), "start") or 0.0,
                known_seconds(pick(values, "end"), "end"),
                known_text(pick(values, "text")),
                known_text(pick(values, "speaker")),
            )
        except BadLine as error:
            logger.warning("%s row %d: %s; skipped", readable(file), number, error)
            found.skipped.append(Rejected(name, str(error)))
            continue
        facts = (*stamp, number, row.start_s, row.end_s, row.text, row.speaker)
        about = row.start_s, row.end_s, row.text, False, row.speaker, f"{readable(file)} row {number}"
        found.sources.append(Source(name, TableCell(file, number, column), facts, size // len(rows), *about))


def _described(file: str) -> tuple[str, list[dict[str, Any]], int]:
    """The column of audio, the other columns that are known, row by row, and the size of the audio in bytes."""
    table = _opened(file)
    schema = table.schema_arrow if isinstance(table, pq.ParquetFile) else table.schema
    column = _audio_column(schema, file)
    known = {name for what, names in COLUMNS.items() if what != "audio" for name in names}
    used = [name for name in schema.names if name in known and name != column]
    others = [name for name in schema.names if name not in (*used, column)]
    if others:
        logger.info("%s: not used: %s", readable(file), ", ".join(others))
    if isinstance(table, pq.ParquetFile):
        groups = [table.metadata.row_group(number) for number in range(table.num_row_groups)]
        return column, _rows(table.read(columns=used), table.metadata.num_rows), sum(g.total_byte_size for g in groups)
    return column, _rows(table.select(used), table.num_rows), table.select([column]).nbytes


def _rows(table: pa.Table, num_rows: int) -> list[dict[str, Any]]:
    return table.to_pylist() if table.num_columns else [{} for _ in range(num_rows)]


def _audio_column(schema: pa.Schema, file: str) -> str:
    """One that is called as audio is, or else one of undecoded bytes."""
    undecoded = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type) and {"bytes", "path"} <= {part.name for part in field.type}
    ]
    named = [name for name in COLUMNS["audio"] if name in schema.names]
    for name in [*(name for name in named if name in undecoded), *named, *undecoded]:
        kind = schema.field(name).type
        if name in undecoded or any(is_kind(kind) for is_kind in _PLAIN):
            return name
    raise AudioError(
        f"{readable(file)}: has no column of audio (a struct of bytes and path, bytes, or a path); its columns are "
        f"{', '.join(schema.names)}"
    )


_PLAIN = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string)


@lru_cache(maxsize=8)
def _opened(file: str) -> Table:
    system, path = url_to_fs(file)
    if file.endswith(".parquet"):
        return pq.ParquetFile(system.open(path, "rb") if "://" in file else path)
    source = pa.memory_map(path) if "://" not in file else system.open(path, "rb")
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(source).read_all()


@lru_cache(maxsize=2)
def _group(file: str, number: int, column: str) -> pa.ChunkedArray:
    table = _opened(file)
    assert isinstance(table, pq.ParquetFile)
    return table.read_row_group(number, columns=[column])[column]


def read_audio(file: str, row: int, column: str) -> Path | BinaryIO:
    """The audio of a row, or the file it names. Raises AudioError if it is neither."""
    try:
        table = _opened(file)
        if isinstance(table, pq.ParquetFile):
            counts = [table.metadata.row_group(number).num_rows for number in range(table.num_row_groups)]
            firsts = [sum(counts[:number]) for number in range(len(counts))]
            number = bisect_right(firsts, row) - 1
            value = _group(file, number, column)[row - firsts[number]].as_py()
        else:
            value = table[column][row].as_py()
    except pa.ArrowException as error:
        raise AudioError(f"cannot be read ({' '.join(str(error).split())[:200]})") from None
    path = value
    if isinstance(value, dict):
        path, value = value.get("path"), value.get("bytes")
    if isinstance(value, bytes):
        if not value:
            raise AudioError("the file is empty (0 bytes)")
        return io.BytesIO(value)
    if not isinstance(path, str):
        raise AudioError("has neither bytes nor a path")
    return Path(file).parent / path
