"""What the JSON files of a token store say, read strictly: the codec, the utterances of each shard, the checksums.

The files themselves are token_store.py's; readers take the utterances from the table of utterance_table.py.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..model.codec_reference import CodecReference
from ..model.strict import read_object, strict

FORMAT = 5  # an index of all utterances; older ones had theirs in the JSON files of the shards alone
HEADER = "store.json"
AGAIN = "run codeclm prepare again"
CODE = np.dtype("<u2")  # of a code on disk


def shard_name(key: str | int) -> str:
    """key: what the shard was made from, in hexadecimal digits, or a number."""
    return f"shard-{str(key)[:16]:0>5}"


def check_storable(codec: CodecReference) -> None:
    """Raise ValueError for a codec whose codes a token store cannot hold."""
    for name, least, most in (
        ("sample_rate", 1, 2**31),
        ("hop_length", 1, 2**31),
        ("num_codebooks", 1, 2**16),
        ("codebook_size", 2, 2**16),
    ):
        value = getattr(codec, name)
        if not least <= value <= most:
            raise ValueError(
                f"codec '{codec.name}' has {name} {value}; a token store holds codecs with {least} to {most}"
            )


def require_codec(stored: CodecReference, given: CodecReference, folder: Path) -> None:
    """Raise ValueError, naming `folder` and what differs, unless `given` makes the codes of the store there."""
    mine, theirs = asdict(stored), asdict(given)
    facts = ("sample_rate", "hop_length", "num_codebooks", "codebook_size")
    differing = [name for name in facts if mine[name] != theirs[name]]
    if stored.fingerprint != given.fingerprint:
        this, other = (
            ", ".join([values["fingerprint"][:12], *(f"{name} {values[name]}" for name in differing)])
            for values in (mine, theirs)
        )
        raise ValueError(
            f"{folder}: holds tokens of codec '{stored.name}' ({this}), not of '{given.name}' ({other}); "
            f"prepare the audio with it into another folder"
        )
    if differing:
        name = differing[0]
        raise ValueError(
            f"{folder / HEADER}: says {name} {mine[name]}, but its codec '{given.name}' has {theirs[name]}; "
            f"it was changed: {AGAIN}"
        )


@dataclass(frozen=True)
class Rejected:
    """What could not become an utterance, and why, in one line."""

    name: str
    reason: str

    @property
    def kind(self) -> str:
        """The reason without its numbers and advice: others may have the same."""
        return re.split(r" \(|;", self.reason)[0]


@dataclass(frozen=True)
class Entry:
    """One utterance in the index of a shard."""

    name: str
    num_frames: int
    num_samples: int
    text: str | None = None
    goes_on: bool = False  # a piece of a longer recording, and not its last
    speaker: str | None = None
    source: str | None = None  # the file, address or row that it came from, as people would look it up
    times: list[int] | None = None  # the frame in which each character of the text begins, where that is known

    def stored(self) -> dict[str, Any]:
        """As in the file: what is not known is written, and hashed, as if there were no such thing."""
        return {key: value for key, value in vars(self).items() if value is not None and value is not False}

    def hashed(self) -> dict[str, Any]:
        """What belongs to the data: not who speaks, where it comes from, nor when its text is said."""
        return {key: value for key, value in self.stored().items() if key not in ("speaker", "source", "times")}

    @classmethod
    def read(cls, values: Any) -> "Entry":
        """Raises TypeError. Not by `strict`: a store may have a million of them."""
        entry = cls(**values)
        kinds = [type(value) for value in (entry.name, entry.num_frames, entry.num_samples, entry.goes_on)]
        words = entry.text, entry.speaker, entry.source
        if kinds != [str, int, int, bool] or entry.num_frames < 1 or not all(isinstance(w, str | None) for w in words):
            raise TypeError
        if entry.times is not None and not (entry.text and {*map(type, entry.times)} == {int}):
            raise TypeError
        return entry


@dataclass(frozen=True)
class ShardIndex:
    """The content of shard-KEY.json."""

    name: str  # of the file, without suffix
    key: str  # what the shard was made from; equal keys mean equal content
    sha256: str  # hash of the .bin
    utterances: list[Entry]
    rejected: list[Rejected]

    @property
    def num_frames(self) -> int:
        return sum(entry.num_frames for entry in self.utterances)

    @property
    def index_sha256(self) -> str:
        """sha256 over names, lengths, texts and cuts, so that the checksums cover which code belongs to whom."""
        return hashlib.sha256(json.dumps([entry.hashed() for entry in self.utterances]).encode()).hexdigest()

    @classmethod
    def read(cls, path: Path) -> "ShardIndex":
        """Raises ValueError if the file is not a shard's index, FileNotFoundError if it is missing."""
        try:
            stored = read_object(path)
            utterances = [Entry.read(entry) for entry in stored["utterances"]]
            rejected = [strict(Rejected, entry) for entry in stored["rejected"]]
            if not isinstance(stored["key"], str) or not isinstance(stored["sha256"], str):
                raise TypeError
            return cls(path.stem, stored["key"], stored["sha256"], utterances, rejected)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: is missing; {AGAIN}") from None
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: is not the index of a token shard; {AGAIN}") from None

    def to_json(self) -> str:
        stored = asdict(self) | {"utterances": [entry.stored() for entry in self.utterances]}
        del stored["name"]
        return json.dumps(stored, indent=0)

    def with_cuts_by_name(self) -> "ShardIndex":
        """For stores that did not say which pieces go on: NAME#k does where there is a NAME#k+1, used or rejected."""
        known = {re.sub(r"~\d+$", "", entry.name) for entry in (*self.utterances, *self.rejected)}

        def goes_on(name: str) -> bool:
            piece = re.fullmatch(r"(.*)#(\d+)(~\d+)?", name, re.DOTALL)
            return piece is not None and f"{piece[1]}#{int(piece[2]) + 1}" in known

        return replace(self, utterances=[replace(entry, goes_on=goes_on(entry.name)) for entry in self.utterances])


@dataclass(frozen=True)
class ShardInfo:
    """What store.json says of one shard."""

    name: str
    sha256: str  # hash of the .bin
    index_sha256: str
    num_utterances: int
    num_frames: int

    @classmethod
    def read(cls, values: Any) -> "ShardInfo":
        """Raises TypeError. Not by `strict`: a store may have many thousands of them."""
        shard = cls(**values)
        words, counts = (shard.name, shard.sha256, shard.index_sha256), (shard.num_utterances, shard.num_frames)
        if {*map(type, words)} != {str} or {*map(type, counts)} != {int}:
            raise TypeError
        return shard


@dataclass(frozen=True)
class IndexInfo:
    """What store.json says of the table of all utterances."""

    name: str  # of the file
    sha256: str
    num_bytes: int
    num_utterances: int
    num_frames: int
    num_samples: int
    num_texts: int


@dataclass(frozen=True)
class StoreHeader:
    """The content of store.json."""

    format: int
    codec: CodecReference
    data_hash: str  # sha256 over the hashes of the shards
    shards: list[ShardInfo]
    sha256: str = ""  # hash of all the rest; older stores have none
    index: IndexInfo | None = None  # older stores have none

    def stored(self) -> dict[str, Any]:
        """As in the file."""
        values = vars(self) | {"codec": asdict(self.codec), "shards": [vars(shard) for shard in self.shards]}
        del values["index"]
        return values if self.index is None else values | {"index": asdict(self.index)}

    @property
    def checksum(self) -> str:
        """What `sha256` must be."""
        rest = self.stored() | {"sha256": ""}
        return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()

    @property
    def hash_of_shards(self) -> str:
        """What `data_hash` must be."""
        return hashlib.sha256("".join(shard.sha256 + shard.index_sha256 for shard in self.shards).encode()).hexdigest()

    @classmethod
    def of(cls, codec: CodecReference, shards: list[ShardInfo], index: IndexInfo) -> "StoreHeader":
        header = cls(FORMAT, codec, "", shards, index=index)
        header = replace(header, data_hash=header.hash_of_shards)
        return replace(header, sha256=header.checksum)

    @classmethod
    def read(cls, folder: Path) -> "StoreHeader":
        """store.json alone, whatever the state of the shards. Raises FileNotFoundError or ValueError in one line."""
        path = folder / HEADER
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: not finished or not a token store ({HEADER} is missing); {AGAIN}")
        try:
            stored = read_object(path)
            version = stored.get("format")
            if isinstance(version, int) and version > FORMAT:
                raise FutureFormat(
                    f"{path}: has format {version}, this codeclm reads up to {FORMAT}; install a newer codeclm"
                )
            header = cls._of_values(stored, path)
            check_storable(header.codec)
            if header.sha256 and header.sha256 != header.checksum:
                raise ValueError(f"{path}: does not have the content it was written with")
            names = [shard.name for shard in header.shards]
            if len(set(names)) < len(names) or not all(re.fullmatch(r"shard-[0-9a-f]{5,16}", name) for name in names):
                raise ValueError(f"{path}: has shards with names that no shard has")
            if (header.index is None) != (header.format < FORMAT):
                raise ValueError(f"{path}: has format {header.format}, and its index does not fit that")
            if header.index is not None and not re.fullmatch(r"index-[0-9a-f]{16}\.arrow", header.index.name):
                raise ValueError(f"{path}: has an index with a name that no index has")
            if header.data_hash != header.hash_of_shards:
                raise ValueError(f"{path}: data_hash does not fit the shards")
        except FutureFormat:
            raise
        except ValueError as error:
            raise ValueError(f"{error}; {AGAIN}") from None
        return header

    @classmethod
    def _of_values(cls, values: dict[str, Any], path: Path) -> "StoreHeader":
        try:
            shards = [ShardInfo.read(shard) for shard in values["shards"]]
        except (KeyError, TypeError):
            raise ValueError(f"{path}: its list of shards is not one") from None
        return replace(strict(cls, values | {"shards": []}, str(path)), shards=shards)

    def describes(self, shards: Sequence[ShardIndex]) -> bool:
        """Whether the store was finished with these shards, in today's format."""
        if self.format != FORMAT:
            return False
        mine = [(shard.name, shard.sha256, shard.index_sha256) for shard in self.shards]
        return mine == [(index.name, index.sha256, index.index_sha256) for index in shards]

    def to_json(self) -> str:
        return json.dumps(self.stored(), indent=2) + "\n"


class FutureFormat(ValueError):
    """A store that a newer codeclm has written."""


def read_shards(folder: Path, header: StoreHeader) -> list[ShardIndex]:
    """The JSON files of a store's shards.

    Raises FileNotFoundError or ValueError if they are not those it was finished with.
    """
    indices = []
    for shard in header.shards:
        path = folder / f"{shard.name}.json"
        index = ShardIndex.read(path)
        found = index.index_sha256, len(index.utterances), index.num_frames
        if found != (shard.index_sha256, shard.num_utterances, shard.num_frames):
            raise ValueError(f"{path}: is not the index this store was finished with; {AGAIN}")
        # the oldest did not say which pieces of a recording go on
        indices.append(index if header.sha256 else index.with_cuts_by_name())
    return indices
