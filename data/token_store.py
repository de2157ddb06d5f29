"""The token store: codes of many utterances on disk, memory-mapped, checksummed, committed atomically.

    shard-00000.bin    codes of its utterances one after another, time-major uint16 [T, K], little-endian, no header
    shard-00000.json   name, num_frames, num_samples and, if known, text of each utterance, and whether its recording
                       goes on after it; what was rejected; written after the .bin
    store.json         the codec, the checksum of every shard, `data_hash`, and a checksum of this file; written last:
                       without it there is no store

What the JSON files say is store_index.py, how audio becomes codes preparation.py, how codes become batches dataset.py.
N utterances, T frames, K codebooks.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..model.codec_reference import CodecReference
from ..model.codecs import Codec
from ..model.files import file_sha256
from .store_index import (
    AGAIN,
    ShardIndex,
    StoreHeader,
    require_codec,
    shard_name,
)

if TYPE_CHECKING:
    from ..model.speech_lm_config import SpeechLMConfig

CODE = np.dtype("<u2")


class TokenStore:
    """A finished token store, read-only. `len(store)` is N; utterance i has codes [num_frames[i], K]."""

    def __init__(self, folder: str | Path):
        """Raises FileNotFoundError or ValueError, in one line, for what is not a whole token store."""
        self.folder = Path(folder)
        header = StoreHeader.read(self.folder)
        self.codec, self.data_hash, self._shards = header.codec, header.data_hash, header.shards
        indices = [self._open_index(number) for number in range(len(self._shards))]
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
        self._maps: dict[int, np.ndarray] = {}

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
        return self._map(int(self._shard_of[i]))[offset + start : offset + stop]

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
        for number, shard in enumerate(self._shards):
            path = self._path(number)
            if file_sha256(path) != shard.sha256:
                raise ValueError(f"{path}: does not have the content it was written with; {AGAIN}")
            codes = self._map(number)
            if codes.size and int(codes.max()) >= self.codec.codebook_size:
                raise ValueError(
                    f"{path}: holds code {int(codes.max())}; allowed are 0..{self.codec.codebook_size - 1}"
                )

    def _check_index(self, i: int) -> None:
        if not 0 <= i < len(self):
            raise IndexError(f"utterance {i} is not in a store of {len(self)}")

    def _path(self, number: int) -> Path:
        return self.folder / f"{shard_name(number)}.bin"

    def _map(self, number: int) -> np.ndarray:
        if number not in self._maps:
            shape = (self._shards[number].num_frames, self.codec.num_codebooks)
            empty = shape[0] == 0  # such a file cannot be mapped
            self._maps[number] = (
                np.zeros(shape, CODE) if empty else np.memmap(self._path(number), CODE, "r", shape=shape)
            )
        return self._maps[number]

    def _open_index(self, number: int) -> ShardIndex:
        shard, path = self._shards[number], self._path(number)
        index = ShardIndex.read(path.with_suffix(".json"))
        found = shard_name(number), index.index_sha256, len(index.utterances), index.num_frames
        if found != (shard.name, shard.index_sha256, shard.num_utterances, shard.num_frames):
            raise ValueError(f"{path.with_suffix('.json')}: is not the index this store was finished with; {AGAIN}")
        expected = shard.num_frames * self.codec.num_codebooks * CODE.itemsize
        size = path.stat().st_size if path.is_file() else 0
        if size != expected:
            raise ValueError(f"{path}: is cut off or changed ({size} of {expected} bytes); {AGAIN}")
        return index
