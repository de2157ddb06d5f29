"""The token store: codes of many utterances on disk, memory-mapped, checksummed, committed atomically.

    shard-00000.bin    codes of its utterances one after another, time-major uint16 [T, K], little-endian, no header
    shard-00000.json   name, num_frames, num_samples and, if known, text of each utterance; what was rejected; written
                       after the .bin
    store.json         the codec, the checksum of every shard, `data_hash`; written last: without it there is no store

How audio becomes codes is prepare.py, how codes become batches is dataset.py. N utterances, T frames, K codebooks.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..model.codecs import Codec
from ..model.files import file_sha256, whole_file

atomic_file = whole_file

FORMAT = 2  # of a store with texts; without any it is 1
HEADER = "store.json"
CODE = np.dtype("<u2")


@dataclass(frozen=True)
class CodecInfo:
    """What a store remembers of the codec that made its codes."""

    name: str
    fingerprint: str
    sample_rate: int  # Hz
    hop_length: int  # samples per frame
    num_codebooks: int  # K
    codebook_size: int  # V

    @classmethod
    def of(cls, codec: Codec) -> "CodecInfo":
        """Raises ValueError for a codebook size that uint16 cannot hold."""
        if codec.codebook_size > 2**16:
            raise ValueError(f"codec '{codec.name}' has {codec.codebook_size} codes; a token store holds up to {2**16}")
        return cls(
            codec.name,
            codec.fingerprint,
            codec.sample_rate,
            codec.hop_length,
            codec.num_codebooks,
            codec.codebook_size,
        )

    @property
    def frame_rate(self) -> float:
        """Frames per second (Hz)."""
        return self.sample_rate / self.hop_length


@dataclass(frozen=True)
class Utterance:
    """One utterance on its way to disk."""

    name: str
    num_samples: int  # of audio at the codec's sample rate
    codes: np.ndarray  # [T, K] integers, T >= 1
    text: str | None = None  # what is said


@dataclass(frozen=True)
class Rejected:
    """What could not become an utterance, and why, in one line."""

    name: str
    reason: str


@dataclass(frozen=True)
class Entry:
    """One utterance in the index of a shard."""

    name: str
    num_frames: int
    num_samples: int
    text: str | None = None

    def stored(self) -> dict[str, Any]:
        """As in the file: an utterance without text is written, and hashed, as if there were no such thing."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class ShardIndex:
    """The content of shard-NNNNN.json."""

    key: str  # what the shard was made from; equal keys mean equal content
    sha256: str  # of the .bin
    utterances: list[Entry]
    rejected: list[Rejected]

    @property
    def num_frames(self) -> int:
        return sum(entry.num_frames for entry in self.utterances)

    @property
    def index_sha256(self) -> str:
        """sha256 over names, lengths and texts, so that the checksums cover which code belongs to whom."""
        return hashlib.sha256(json.dumps([entry.stored() for entry in self.utterances]).encode()).hexdigest()

    @classmethod
    def read(cls, path: Path) -> "ShardIndex":
        """Raises ValueError if the file is not a shard's index, FileNotFoundError if it is missing."""
        try:
            stored = json.loads(path.read_bytes())
            utterances = [Entry(**entry) for entry in stored["utterances"]]
            rejected = [Rejected(**entry) for entry in stored["rejected"]]
            return cls(stored["key"], stored["sha256"], utterances, rejected)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: is missing; run codeclm prepare again") from None
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: is not the index of a token shard; run codeclm prepare again") from None


@dataclass(frozen=True)
class ShardInfo:
    """What store.json says of one shard."""

    name: str
    sha256: str  # of the .bin
    index_sha256: str
    num_utterances: int
    num_frames: int


@dataclass(frozen=True)
class StoreHeader:
    """The content of store.json."""

    codec: CodecInfo
    data_hash: str  # sha256 over the hashes of the shards
    shards: list[ShardInfo]


class TokenStore:
    """A finished token store, read-only. `len(store)` is N; utterance i has codes [num_frames[i], K]."""

    def __init__(self, folder: str | Path):
        """Raises FileNotFoundError or ValueError, in one line, for what is not a whole token store."""
        self.folder = Path(folder)
        header = read_header(self.folder)
        self.codec, self.data_hash, self._shards = header.codec, header.data_hash, header.shards
        indices = [self._open_index(number) for number in range(len(self._shards))]
        if _data_hash(self._shards) != self.data_hash:
            raise ValueError(f"{self.folder / HEADER}: data_hash does not fit the shards; run codeclm prepare again")
        entries = [entry for index in indices for entry in index.utterances]
        self.names: list[str] = [entry.name for entry in entries]
        self.num_frames = np.array([entry.num_frames for entry in entries], np.int64)  # [N]
        self.num_samples = np.array([entry.num_samples for entry in entries], np.int64)  # [N]
        sizes = [len(index.utterances) for index in indices]
        self._texts = [entry.text for entry in entries]
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
        if not 0 <= i < len(self):
            raise IndexError(f"utterance {i} is not in a store of {len(self)}")
        length = int(self.num_frames[i])
        stop = length if stop is None else stop
        if not 0 <= start <= stop <= length:
            raise IndexError(f"frames {start}..{stop} are not in '{self.names[i]}', which has {length}")
        offset = int(self._offset[i])
        return self._map(int(self._shard_of[i]))[offset + start : offset + stop]

    def text(self, i: int) -> str | None:
        """What is said in utterance i, if that is known. Raises IndexError outside the store."""
        if not 0 <= i < len(self):
            raise IndexError(f"utterance {i} is not in a store of {len(self)}")
        return self._texts[i]

    def require_codec(self, fingerprint: str, name: str) -> None:
        """Raise ValueError unless the codes were made by the codec with this fingerprint; `name` is what to call it."""
        require_codec(self.folder, self.codec, fingerprint, name)

    def verify(self) -> None:
        """Read every byte. Raises ValueError naming the first shard that differs or holds codes out of range."""
        for number, shard in enumerate(self._shards):
            path = self._path(number)
            if file_sha256(path) != shard.sha256:
                raise ValueError(f"{path}: does not have the content it was written with; run codeclm prepare again")
            codes = self._map(number)
            if codes.size and int(codes.max()) >= self.codec.codebook_size:
                raise ValueError(
                    f"{path}: holds code {int(codes.max())}; allowed are 0..{self.codec.codebook_size - 1}"
                )

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
        if index.index_sha256 != shard.index_sha256 or index.num_frames != shard.num_frames:
            raise ValueError(
                f"{path.with_suffix('.json')}: is not the index this store was finished with; prepare again"
            )
        expected = shard.num_frames * self.codec.num_codebooks * CODE.itemsize
        size = path.stat().st_size if path.is_file() else 0
        if size != expected:
            raise ValueError(f"{path}: is cut off or changed ({size} of {expected} bytes); run codeclm prepare again")
        return index


def read_header(folder: Path) -> StoreHeader:
    """store.json alone, whatever the state of the shards. Raises FileNotFoundError or ValueError in one line."""
    path = folder / HEADER
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: not finished or not a token store ({HEADER} is missing); run codeclm prepare again"
        )
    try:
        stored = json.loads(path.read_bytes())
        version = int(stored["format"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: is not the header of a token store; run codeclm prepare again") from None
    if version > FORMAT:
        raise ValueError(f"{path}: has format {version}, this codeclm reads up to {FORMAT}; install a newer codeclm")
    try:
        shards = [ShardInfo(**shard) for shard in stored["shards"]]
        return StoreHeader(CodecInfo(**stored["codec"]), str(stored["data_hash"]), shards)
    except (KeyError, TypeError):
        raise ValueError(f"{path}: does not describe a codec and shards; run codeclm prepare again") from None


def require_codec(folder: Path, stored: CodecInfo, fingerprint: str, name: str) -> None:
    """Raise ValueError unless `stored` has this fingerprint."""
    if stored.fingerprint != fingerprint:
        raise ValueError(
            f"{folder}: holds tokens of codec '{stored.name}' ({stored.fingerprint[:12]}), not of '{name}' "
            f"({fingerprint[:12]}); prepare the audio with '{name}' into another folder"
        )


def name_hash(name: str) -> bytes:
    """Puts utterances in an order that has nothing to do with their names, and is always the same."""
    return hashlib.sha256(name.encode()).digest()


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def write_shard(
    folder: Path, number: int, entries: Iterable[Utterance | Rejected], codec: CodecInfo, key: str = ""
) -> ShardIndex:
    """Write shard-NNNNN.bin as `entries` come, then its .json: the shard is finished when the .json is there.

    Raises ValueError for codes of the wrong shape or range, OSError if the disk does not take them.
    """
    path = folder / f"{shard_name(number)}.bin"
    digest, utterances, rejected = hashlib.sha256(), [], []
    with whole_file(path) as file:
        for entry in entries:
            if isinstance(entry, Rejected):
                rejected.append(entry)
                continue
            data = _packed(entry, codec)
            digest.update(data)
            file.write(data)
            utterances.append(Entry(entry.name, len(entry.codes), entry.num_samples, entry.text))
    index = ShardIndex(key, digest.hexdigest(), utterances, rejected)
    with whole_file(path.with_suffix(".json")) as file:
        stored = asdict(index) | {"utterances": [entry.stored() for entry in utterances]}
        file.write(json.dumps(stored, indent=0).encode())
    return index


def finished_shard(folder: Path, number: int, key: str) -> ShardIndex | None:
    """The index of a shard that was made from `key` and is whole, or None."""
    path = folder / f"{shard_name(number)}.bin"
    try:
        index = ShardIndex.read(path.with_suffix(".json"))
        return index if index.key == key and index.sha256 == file_sha256(path) else None
    except (OSError, ValueError):
        return None


def commit_store(folder: Path, codec: CodecInfo, shards: Sequence[ShardIndex]) -> None:
    """Write store.json over the shards 0..len(shards)-1, which must be finished: from now on `folder` is a store."""
    infos = [
        ShardInfo(shard_name(number), shard.sha256, shard.index_sha256, len(shard.utterances), shard.num_frames)
        for number, shard in enumerate(shards)
    ]
    has_text = any(entry.text is not None for shard in shards for entry in shard.utterances)
    header = {"format": FORMAT if has_text else 1, **asdict(StoreHeader(codec, _data_hash(infos), infos))}
    with whole_file(folder / HEADER) as file:
        file.write(json.dumps(header, indent=2).encode() + b"\n")


def _packed(utterance: Utterance, codec: CodecInfo) -> bytes:
    codes = np.asarray(utterance.codes)
    if codes.ndim != 2 or codes.shape[1] != codec.num_codebooks or len(codes) == 0 or codes.dtype.kind not in "iu":
        raise ValueError(
            f"{utterance.name}: codes must be integers [T >= 1, K = {codec.num_codebooks}], "
            f"not {codes.dtype} {list(codes.shape)}"
        )
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= codec.codebook_size:
        raise ValueError(f"{utterance.name}: codes span {low}..{high}; allowed are 0..{codec.codebook_size - 1}")
    return codes.astype(CODE).tobytes()


def _data_hash(shards: Sequence[ShardInfo]) -> str:
    return hashlib.sha256("".join(shard.sha256 + shard.index_sha256 for shard in shards).encode()).hexdigest()
