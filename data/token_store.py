"""The token store: codes of many utterances on disk, memory-mapped, checksummed, committed atomically.

    shard-KEY.bin      codes of its utterances one after another, time-major uint16 [T, K], little-endian, no header
    shard-KEY.json     name, length and the like of each utterance, and what was rejected; written after the .bin.
                       It is for `prepare`, whose unit of work a shard is; readers do not need it
    index-HASH.arrow   all utterances in one table (utterance_table.py), named by its content
    store.json         the codec, the shards in order with the checksum of each, the index, `data_hash`, and a checksum
                       of this file; written last: without it there is no store

KEY tells what a shard was made from (in older stores it is a number), so that other content never gets the name of a
shard that is there: a store grows by shards, another index and another store.json, and whoever has it open sees no
change. Stores of formats 1 to 4 have no index; theirs is put together from the JSON files when they are opened.

A code takes 16 bits, not the 10 that a codebook of 1,024 needs: unpacking would take 2.3 times the time of reading
(24 us against 10 us of one core for 12 s of speech at 25 Hz and 8 codebooks).

How audio becomes codes is preparation.py, how codes become batches dataset.py. N utterances, T frames, K codebooks.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..model.codec_reference import CodecReference
from ..model.codecs import Codec
from ..model.files import file_sha256, readable
from .known_files import KnownFiles
from .store_index import AGAIN, CODE, IndexInfo, ShardInfo, StoreHeader, read_shards, require_codec
from .utterance_table import Strings, flags, from_bytes, numbers, table_of

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

    from ..model.speech_lm_config import SpeechLMConfig


class TokenStore:
    """A finished token store, read-only. `len(store)` is N; utterance i has codes [num_frames[i], K].

    What was opened stays as it is, whatever `prepare` does in the folder meanwhile.
    """

    def __init__(self, folder: str | Path):
        """Raises FileNotFoundError or ValueError, in one line, for what is not a whole token store."""
        self.folder = Path(folder)
        self.table = self._open(StoreHeader.read(self.folder))
        self.names = Strings(self.table["name"])
        self.num_frames = numbers(self.table["num_frames"])  # [N]
        self.num_samples = numbers(self.table["num_samples"])  # [N]
        self.recordings = numbers(self.table["recording"])  # [N] uint64: equal for pieces and copies of one recording
        self._shard_of = numbers(self.table["shard"])  # [N]
        self._offset = numbers(self.table["offset"])  # [N] frames into the shard
        self._goes_on = flags(self.table["goes_on"])  # [N]

    def __len__(self) -> int:
        return len(self.table)

    def codes(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Frames start..stop of utterance i -> uint16 [T, K], a read-only view of the file.

        Raises IndexError outside the store or the utterance.
        """
        self._check_index(i)
        length = int(self.num_frames[i])
        stop = length if stop is None else stop
        if not 0 <= start <= stop <= length:
            raise IndexError(f"frames {start}..{stop} are not in '{self.names[i]}', which has {length}")
        offset = int(self._offset[i])
        codes = self._codes[self._shard_of[i]][offset + start : offset + stop]
        if len(codes) < stop - start:
            raise ValueError(f"{self.folder}: '{self.names[i]}' is not within its shard; {AGAIN}")
        return codes

    def announce(self, i: int, start: int, stop: int) -> None:
        """Frames start..stop of utterance i will be asked for soon: the system reads them from the disk meanwhile."""
        if not hasattr(os, "posix_fadvise"):
            return
        frame = self.codec.num_codebooks * CODE.itemsize  # bytes
        with suppress(OSError):  # a later `prepare` may have removed the file: what is mapped is still there
            file = os.open(self.folder / f"{self._shards[self._shard_of[i]].name}.bin", os.O_RDONLY)
            try:
                first = (int(self._offset[i]) + start) * frame
                os.posix_fadvise(file, first, (stop - start) * frame, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(file)

    def text(self, i: int) -> str | None:
        """What is said in utterance i, if that is known. Raises IndexError outside the store."""
        self._check_index(i)
        return self.table["text"][int(i)].as_py()

    def speaker(self, i: int) -> str | None:
        """Who speaks in utterance i, if that is known. Raises IndexError outside the store."""
        self._check_index(i)
        return self.table["speaker"][int(i)].as_py()

    def source(self, i: int) -> str | None:
        """The file, address or row that it came from, if that is known. Raises IndexError outside the store."""
        self._check_index(i)
        return self.table["source"][int(i)].as_py()

    def ends(self, i: int) -> bool:
        """Whether the recording ends where utterance i does, so that EOS is right there.

        Of the pieces of a long recording only the last does, also where the pieces after it could not be used: the
        recording went on. Raises IndexError outside the store.
        """
        self._check_index(i)
        return not self._goes_on[i]

    def dataset(self) -> "Dataset":
        """The index as a Hugging Face dataset, with a row for each utterance (extra `data`)."""
        try:
            from datasets import Dataset
        except ImportError:
            raise ImportError("a store as a dataset needs more packages: pip install 'codeclm[data]'") from None
        import pyarrow as pa

        return Dataset(pa.Table.from_batches([self.table]))

    def require_codec(self, codec: Codec | CodecReference) -> None:
        """Raise ValueError, naming what differs, unless the codes were made by this codec."""
        require_codec(self.codec, codec if isinstance(codec, CodecReference) else CodecReference.of(codec), self.folder)

    def require_model(self, config: "SpeechLMConfig") -> None:
        """The same for the codec that a model was trained on. Raises ValueError also if its config names none."""
        if not config.codec.fingerprint or not config.codec.hop_length:
            raise ValueError("the model's config.json does not say which codec its codes come from (codec.fingerprint)")
        self.require_codec(config.codec)

    def verify(self, full: bool = False) -> None:
        """Read every byte. Raises ValueError naming the first shard that differs or holds codes out of range.

        A file that this machine has found right (known_files.py) is not read again while its size and the time of its
        last change stay; full: all are.
        """
        with KnownFiles(self.folder) as known:
            for shard, codes in zip(self._shards, self._codes, strict=True):
                path = self.folder / f"{shard.name}.bin"
                if path.is_file():
                    if full or not known.has(path, shard.sha256):
                        with known.reading(path, shard.sha256):
                            self._check(path, shard.sha256, _blocks(path))
                else:  # removed by a later `prepare`, and still mapped
                    self._check(path, shard.sha256, [codes])

    def _check(self, path: Path, sha256: str, blocks: Iterable[np.ndarray]) -> None:
        digest = hashlib.sha256()
        for block in blocks:
            digest.update(block.data)
            if block.size and int(block.max()) >= self.codec.codebook_size:
                raise ValueError(
                    f"{path}: holds code {int(block.max())}; allowed are 0..{self.codec.codebook_size - 1}"
                )
        if digest.hexdigest() != sha256:
            raise ValueError(f"{path}: does not have the content it was written with; {AGAIN}")

    def _check_index(self, i: int) -> None:
        if not 0 <= i < len(self):
            raise IndexError(f"utterance {i} is not in a store of {len(self)}")

    def _open(self, header: StoreHeader) -> "pa.RecordBatch":
        """Open index and shards; if `prepare` has removed one meanwhile, those of the store that is there now."""
        self.codec, self.data_hash, self._shards = header.codec, header.data_hash, header.shards
        try:
            table = self._open_index(header.index) if header.index else self._table_of_shards(header)
            self._codes = [self._open_codes(shard) for shard in self._shards]
        except FileNotFoundError:
            now = StoreHeader.read(self.folder)
            if now == header:
                raise
            return self._open(now)
        return table

    def _table_of_shards(self, header: StoreHeader) -> "pa.RecordBatch":
        return table_of([index.utterances for index in read_shards(self.folder, header)])

    def _open_index(self, index: IndexInfo) -> "pa.RecordBatch":
        path = self.folder / index.name
        _check_size(path, index.num_bytes)
        with KnownFiles(self.folder) as known:
            if not known.has(path, index.sha256):
                with known.reading(path, index.sha256):
                    if file_sha256(path) != index.sha256:
                        raise ValueError(f"{path}: does not have the content it was written with; {AGAIN}")
        return from_bytes(mapped(path, index.num_bytes))

    def _open_codes(self, shard: ShardInfo) -> np.ndarray:
        path, shape = self.folder / f"{shard.name}.bin", (shard.num_frames, self.codec.num_codebooks)
        size = shape[0] * shape[1] * CODE.itemsize
        _check_size(path, size)
        return mapped(path, size).view(CODE).reshape(shape)


def _check_size(path: Path, expected: int) -> None:
    """Raise FileNotFoundError or ValueError unless the file is there, and of this size."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: is missing; {AGAIN}") from None
    if size != expected:
        raise ValueError(f"{path}: is cut off or changed ({size} of {expected} bytes); {AGAIN}")


def _blocks(path: Path) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            yield np.frombuffer(block, CODE)


def mapped(path: Path, size: int) -> np.ndarray:
    """The `size` bytes of a file, read-only and mapped; it may be removed or replaced meanwhile."""
    if size == 0:  # such a file cannot be mapped
        return np.zeros(0, np.uint8)
    if readable(path) != str(path):  # torch wants UTF-8
        return np.memmap(path, np.uint8, "r")
    # numpy's maps hold a file descriptor each, and a process may have 1,024
    with path.open("rb"):  # torch does not say in one line why a file cannot be read
        data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    data.flags.writeable = False
    return data
