"""The utterances of a token store as one Arrow table, which readers map: opening a million of them reads none.

The file is an Arrow IPC stream of one record batch, so that `datasets.Dataset.from_file` opens it as well. What holds
the codes is token_store.py's. N utterances.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

from .store_index import Entry

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 2**16  # strings that are made at a time
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 divided by the golden ratio: counters far from each other


def schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("name", pa.large_string(), nullable=False),
            pa.field("shard", pa.int32(), nullable=False),  # its place in store.json
            pa.field("offset", pa.int64(), nullable=False),  # frames of the shard before it
            pa.field("num_frames", pa.int64(), nullable=False),
            pa.field("num_samples", pa.int64(), nullable=False),
            pa.field("speaker", pa.large_string()),
            pa.field("source", pa.large_string()),  # the file, address or row that it came from
            pa.field("text", pa.large_string()),
            pa.field("goes_on", pa.bool_(), nullable=False),  # a piece of a longer recording, and not its last
            pa.field("recording", pa.uint64(), nullable=False),  # hash of `recording_name`
        ]
    )


def recording_name(name: str) -> str:
    """The recording of an utterance NAME, of a piece NAME#k, of a copy NAME~c or NAME#k~c."""
    return re.sub(r"(#\d+)?(~\d+)?$", "", name)


def text_hash(text: str) -> int:
    """64 bits of its sha256."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def mixed(values: np.ndarray) -> np.ndarray:
    """uint64 -> uint64, all bits of which depend on all bits (SplitMix64 without its counter)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def table_of(shards: Sequence[Sequence[Entry]]) -> "pa.RecordBatch":
    """The utterances of each shard, in order."""
    import pyarrow as pa

    entries = [entry for shard in shards for entry in shard]
    shard = np.repeat(np.arange(len(shards)), [len(shard) for shard in shards])
    num_frames = np.array([entry.num_frames for entry in entries], np.int64)
    ends = np.cumsum(num_frames)
    before = np.concatenate([[0], ends])[np.searchsorted(shard, shard)]  # [N] frames before its shard
    columns = {
        "shard": shard,
        "offset": ends - num_frames - before,
        "num_frames": num_frames,
        "recording": np.array([text_hash(recording_name(entry.name)) for entry in entries], np.uint64),
    }
    kinds = schema()
    rest = [name for name in kinds.names if name not in columns]
    columns |= {name: [getattr(entry, name) for entry in entries] for name in rest}
    return pa.record_batch([pa.array(columns[kind.name], kind.type) for kind in kinds], schema=kinds)


def to_bytes(table: "pa.RecordBatch") -> "pa.Buffer":
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_batch(table)
    return sink.getvalue()


def from_bytes(data: np.ndarray) -> "pa.RecordBatch":
    """The table in the bytes of its file, which are not copied. Raises ValueError for anything else."""
    import pyarrow as pa

    try:
        batches = list(pa.ipc.open_stream(pa.py_buffer(data)))
    except (pa.ArrowInvalid, OSError):
        batches = []
    if len(batches) != 1 or batches[0].schema != schema():
        raise ValueError("is not the index of a token store")
    return batches[0]


def numbers(column: "pa.Array") -> np.ndarray:
    """A column of numbers [N], read-only and not copied; pyarrow's own `to_numpy` loads pandas."""
    values = np.frombuffer(column.buffers()[1] or b"", column.type.to_pandas_dtype())
    return values[column.offset : column.offset + len(column)]


def flags(column: "pa.Array") -> np.ndarray:
    """A column of booleans without nulls -> [N] bool."""
    bits = np.unpackbits(np.frombuffer(column.buffers()[1] or b"", np.uint8), bitorder="little")
    return bits[column.offset : column.offset + len(column)].astype(bool)


class Strings(Sequence[str]):
    """A column of strings, each of which is made when it is asked for."""

    def __init__(self, column: "pa.Array"):
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.column[int(index)].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BLOCK):
            yield from self.column.slice(start, BLOCK).to_pylist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"Strings({len(self)})"
