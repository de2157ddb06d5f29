"""The token store: codes of many utterances on disk, memory-mapped, checksummed, committed atomically.

    shard-KEY.bin      codes of its utterances one after another, time-major uint16 [T, K], little-endian, no header
    shard-KEY.json     name, num_frames, num_samples and, if known, text of each utterance, and whether its recording
                       goes on after it; what was rejected; written after the .bin
    store.json         the codec, the shards in order with the checksum of each, `data_hash`, and a checksum of this
                       file; written last: without it there is no store

KEY tells what a shard was made from (in older stores it is a number), so that other content never gets the name of a
shard that is there: a store grows by shards and another store.json, and whoever has it open sees no change.

What the JSON files say is store_index.py, how audio becomes codes preparation.py, how codes become batches dataset.py.
N utterances, T frames, K codebooks.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..model.codec_reference import CodecReference
from ..model.codecs import Codec
from ..model.files import readable
from .store_index import (
    AGAIN,
    CODE,
    ShardIndex,
    ShardInfo,
    StoreHeader,
    require_codec,
)

if TYPE_CHECKING:
    from ..model.speech_lm_config import SpeechLMConfig


class TokenStore:
    """A finished token store, read-only. `len(store)` is N; utterance i has codes [num_frames[i], K].

    What was opened stays as it is, whatever `prepare` does in the folder meanwhile.
    """

    def __init__(self, folder: str | Path):
        """Raises FileNotFoundError or ValueError, in one line, for what is not a whole token store."""
        self.folder = Path(folder)
        header, indices = self._open(StoreHeader.read(self.folder))
        if not header.sha256:
            indices = [index.with_cuts_by_name() for index in indices]
        entries = [entry for index in indices for entry in index.utterances]
        self.names: list[str] = [entry.name for entry in entries]
        self.num_frames = np.array([entry.num_frames for entry in entries], np.int64)  # [N]
        self.num_samples = np.array([entry.num_samples for entry in entries], np.int64)  # [N]
        sizes = [len(index.utterances) for index in indices]
        self._texts = [entry.text for entry in entries]
        self._goes_on = [entry.goes_on for entry in entries]
        self._shard_of = np.repeat(np.arange(len(sizes)), sizes)  # [N]
        first = np.concatenate([[0], np.cumsum([index.num_frames for index in indices])])
        ends = np.cumsum(self.num_frames)
        self._offset = ends - self.num_frames - first[self._shard_of]  # [N] frames into the shard

    def __len__(self) -> int:
        return len(self.names)

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
        return self._codes[self._shard_of[i]][offset + start : offset + stop]

    def text(self, i: int) -> str | None:
        """What is said in utterance i, if that is known. Raises IndexError outside the store."""
        self._check_index(i)
        return self._texts[i]

    def ends(self, i: int) -> bool:
        """Whether the recording ends where utterance i does, so that EOS is right there.

        Of the pieces of a long recording only the last does, also where the pieces after it could not be used: the
        recording went on. Raises IndexError outside the store.
        """
        self._check_index(i)
        return not self._goes_on[i]

    def require_codec(self, codec: Codec | CodecReference) -> None:
        """Raise ValueError, naming what differs, unless the codes were made by this codec."""
        require_codec(self.codec, codec if isinstance(codec, CodecReference) else CodecReference.of(codec), self.folder)

    def require_model(self, config: "SpeechLMConfig") -> None:
        """The same for the codec that a model was trained on. Raises ValueError also if its config names none."""
        if not config.codec.fingerprint or not config.codec.hop_length:
            raise ValueError("the model's config.json does not say which codec its codes come from (codec.fingerprint)")
        self.require_codec(config.codec)

    def verify(self) -> None:
        """Read every byte. Raises ValueError naming the first shard that differs or holds codes out of range."""
        for shard, codes in zip(self._shards, self._codes, strict=True):
            path = self.folder / f"{shard.name}.bin"
            if hashlib.sha256(codes.data).hexdigest() != shard.sha256:
                raise ValueError(f"{path}: does not have the content it was written with; {AGAIN}")
            if codes.size and int(codes.max()) >= self.codec.codebook_size:
                raise ValueError(
                    f"{path}: holds code {int(codes.max())}; allowed are 0..{self.codec.codebook_size - 1}"
                )

    def _check_index(self, i: int) -> None:
        if not 0 <= i < len(self):
            raise IndexError(f"utterance {i} is not in a store of {len(self)}")

    def _open(self, header: StoreHeader) -> tuple[StoreHeader, list[ShardIndex]]:
        """Open the shards; if `prepare` has removed one meanwhile, those of the store that is there now."""
        self.codec, self.data_hash, self._shards = header.codec, header.data_hash, header.shards
        try:
            indices = [self._open_index(shard) for shard in self._shards]
            self._codes = [self._open_codes(shard) for shard in self._shards]
        except FileNotFoundError:
            now = StoreHeader.read(self.folder)
            if now == header:
                raise
            return self._open(now)
        return header, indices

    def _open_index(self, shard: ShardInfo) -> ShardIndex:
        path = self.folder / f"{shard.name}.json"
        index = ShardIndex.read(path)
        found = index.index_sha256, len(index.utterances), index.num_frames
        if found != (shard.index_sha256, shard.num_utterances, shard.num_frames):
            raise ValueError(f"{path}: is not the index this store was finished with; {AGAIN}")
        return index

    def _open_codes(self, shard: ShardInfo) -> np.ndarray:
        path, shape = self.folder / f"{shard.name}.bin", (shard.num_frames, self.codec.num_codebooks)
        expected = shape[0] * shape[1] * CODE.itemsize
        if not path.is_file():
            raise FileNotFoundError(f"{path}: is missing; {AGAIN}")
        size = path.stat().st_size
        if size != expected:
            raise ValueError(f"{path}: is cut off or changed ({size} of {expected} bytes); {AGAIN}")
        return mapped(path, size).view(CODE).reshape(shape)


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
