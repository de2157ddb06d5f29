"""A token store in as many bits as its codes need, ten of 1,024 codes: to travel; nothing reads codes from it.

store.json, SHARD.json    as in the store
SHARD.bits                the codes of SHARD.bin, most significant bit first, without gaps
"""

import shutil
from pathlib import Path

import numpy as np

from .....data.store_index import CODE, HEADER, StoreHeader, read_shards
from .....data.store_writer import commit_store
from .....data.text_times import times_file
from .....data.token_store import TokenStore
from .....model.files import file_sha256

AT_ONCE = 1 << 20  # codes; a multiple of 8, so that whole bytes are written


def pack_store(store: Path, folder: Path) -> None:
    """Write the packed files into `folder`. Raises ValueError or FileNotFoundError for a store that is not whole."""
    opened = TokenStore(store)
    opened.verify()
    header = StoreHeader.read(store)
    folder.mkdir(parents=True)
    shutil.copyfile(store / HEADER, folder / HEADER)
    for index in read_shards(store, header):
        codes = np.fromfile(store / f"{index.name}.bin", CODE)
        with (folder / f"{index.name}.bits").open("wb") as file:
            for first in range(0, len(codes), AT_ONCE):
                file.write(pack_codes(codes[first : first + AT_ONCE], header.codec.codebook_size))
        (folder / f"{index.name}.json").write_text(index.to_json())
    if (times := times_file(opened)).is_file():
        shutil.copyfile(times, folder / times.name)


def unpack_store(packed: Path, folder: Path) -> TokenStore:
    """The same store again, to the byte of its codes and with its `data_hash`, in a new folder.

    Raises ValueError if a file is not what was packed.
    """
    header = StoreHeader.read(packed)
    folder.mkdir(parents=True)
    indices = read_shards(packed, header)
    for index in indices:
        path = folder / f"{index.name}.bin"
        count = index.num_frames * header.codec.num_codebooks
        data = np.fromfile(packed / f"{index.name}.bits", np.uint8)
        with path.open("wb") as file:
            for first in range(0, count, AT_ONCE):
                codes = min(AT_ONCE, count - first)
                start = first * num_bits(header.codec.codebook_size) // 8
                file.write(unpack_codes(data[start:], codes, header.codec.codebook_size).tobytes())
        if file_sha256(path) != index.sha256:
            raise ValueError(f"{packed / index.name}.bits: does not hold the codes that were packed; bring it again")
        shutil.copyfile(packed / f"{index.name}.json", folder / f"{index.name}.json")
    commit_store(folder, header.codec, indices)
    for times in packed.glob("times-*.arrow"):
        shutil.copyfile(times, folder / times.name)
    return TokenStore(folder)


def num_bits(codebook_size: int) -> int:
    return max(1, (codebook_size - 1).bit_length())


def pack_codes(codes: np.ndarray, codebook_size: int) -> bytes:
    """Codes [N] -> N x num_bits bits, the last byte filled with zeros."""
    places = np.arange(num_bits(codebook_size))[::-1].astype(CODE)
    return np.packbits((codes[:, None] >> places & 1).astype(np.uint8)).tobytes()


def unpack_codes(data: np.ndarray, count: int, codebook_size: int) -> np.ndarray:
    """Bytes [at least N x num_bits / 8] -> the first N codes. Raises ValueError if there are fewer."""
    size = num_bits(codebook_size)
    if 8 * len(data) < count * size:
        raise ValueError(f"{len(data)} bytes are too few for {count} codes of {size} bits")
    bits = np.unpackbits(data[: -(-count * size // 8)], count=count * size).reshape(count, size)
    return bits @ (1 << np.arange(size)[::-1]).astype(CODE)
