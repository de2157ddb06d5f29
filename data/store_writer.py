"""Writing a token store: shard by shard, then its index and store.json; the format is token_store.py's. T frames."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from ..model.codec_reference import CodecReference
from ..model.files import file_sha256, whole_file, whole_folder, write_whole
from .store_index import (
    CODE,
    HEADER,
    Entry,
    IndexInfo,
    Rejected,
    ShardIndex,
    ShardInfo,
    StoreHeader,
    check_storable,
    read_shards,
    shard_name,
)
from .text_times import keep_times
from .token_store import TokenStore
from .utterance_table import numbers, table_of, to_bytes


@dataclass(frozen=True)
class Utterance:
    """One utterance on its way to disk."""

    name: str
    num_samples: int  # audio samples at the codec's sample rate
    codes: np.ndarray  # [T, K] integers, T >= 1
    text: str | None = None  # what is said
    goes_on: bool = False  # a piece of a longer recording, and not its last
    speaker: str | None = None
    source: str | None = None  # the file, address or row that it came from, as people would look it up
    times: np.ndarray | None = None  # [L] the frame in which each character of the text begins, where that is known

    @property
    def entry(self) -> Entry:
        words = self.text, self.goes_on, self.speaker, self.source
        times = None if self.times is None else self.times.tolist()
        return Entry(self.name, len(self.codes), self.num_samples, *words, times)


def write_shard(
    folder: Path, key: str | int, entries: Iterable[Utterance | Rejected], codec: CodecReference
) -> ShardIndex:
    """Write shard-KEY.bin as `entries` come, then its .json: the shard is finished when the .json is there.

    key: what the shard is made from, or a number, the first being 0. Raises ValueError for codes of the wrong shape or
    range, OSError if the disk does not take them.
    """
    path = folder / f"{shard_name(key)}.bin"
    digest, utterances, rejected = hashlib.sha256(), [], []
    with whole_file(path) as file:
        for entry in entries:
            if isinstance(entry, Rejected):
                rejected.append(entry)
                continue
            data = _packed(entry, codec)
            digest.update(data)
            file.write(data)
            utterances.append(entry.entry)
    index = ShardIndex(path.stem, str(key), digest.hexdigest(), utterances, rejected)
    write_whole(path.with_suffix(".json"), index.to_json())
    return index


def commit_store(folder: Path, codec: CodecReference, shards: Sequence[ShardIndex]) -> None:
    """Write the index and store.json over these shards, which must be finished: from now on they are the store in
    `folder`, and what they know of when texts are said is its own. Whoever has an older index open keeps it, though its
    file is removed."""
    check_storable(codec)
    index = _write_index(folder, shards)
    infos = [
        ShardInfo(shard.name, shard.sha256, shard.index_sha256, len(shard.utterances), shard.num_frames)
        for shard in shards
    ]
    write_whole(folder / HEADER, StoreHeader.of(codec, infos, index).to_json())
    for path in folder.glob("index-*.arrow"):
        if path.name != index.name:
            path.unlink()
    known = [entry.times or [] for shard in shards for entry in shard.utterances]
    if any(known):
        keep_times(TokenStore(folder), known)


def convert_store(old: Path, new: Path) -> None:
    """A store of an older format -> one of today's in the new folder `new`, whose shards are the same files on the disk
    where it can link them, else copies. Raises ValueError if the old one is damaged, FileExistsError if `new` is there.
    """
    header = StoreHeader.read(old)
    with whole_folder(new) as folder:
        indices = _link_shards(old, header, folder)
        if (old / "rejected.jsonl").is_file():
            shutil.copy2(old / "rejected.jsonl", folder)
        commit_store(folder, header.codec, indices)


def join_stores(stores: Sequence[Path], new: Path) -> None:
    """Stores of one codec -> one in the new folder `new`, with the utterances of the first, of the second, ...; its
    shards are as `convert_store` has them. Raises ValueError for stores of several codecs, or the same shard twice.
    """
    headers = [StoreHeader.read(store) for store in stores]
    for store, header in zip(stores, headers, strict=True):
        if header.codec != headers[0].codec:
            raise ValueError(f"{store}: has tokens of another codec than {stores[0]}; encode it with the same")
    with whole_folder(new) as folder:
        indices = [_link_shards(store, header, folder) for store, header in zip(stores, headers, strict=True)]
        commit_store(folder, headers[0].codec, list(chain(*indices)))


def _link_shards(store: Path, header: StoreHeader, folder: Path) -> list[ShardIndex]:
    indices = read_shards(store, header)
    for index in indices:
        for suffix in (".bin", ".json"):
            source = store / f"{index.name}{suffix}"
            if (folder / source.name).exists():
                raise ValueError(f"{source}: a shard of that name is in another of the stores, too; leave one out")
            try:
                os.link(source, folder / source.name)
            except OSError:
                shutil.copy2(source, folder / source.name)
    return indices


def _write_index(folder: Path, shards: Sequence[ShardIndex]) -> IndexInfo:
    table = table_of([shard.utterances for shard in shards])
    data = to_bytes(table)
    sha256 = hashlib.sha256(data).hexdigest()
    path = folder / f"index-{sha256[:16]}.arrow"
    if not path.is_file() or file_sha256(path) != sha256:
        with whole_file(path) as file:
            file.write(data)
    num_frames, num_samples = (int(numbers(table[name]).sum()) for name in ("num_frames", "num_samples"))
    num_texts = len(table) - table["text"].null_count
    return IndexInfo(path.name, sha256, data.size, len(table), num_frames, num_samples, num_texts)


def _packed(utterance: Utterance, codec: CodecReference) -> bytes:
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
