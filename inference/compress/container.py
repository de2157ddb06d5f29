"""The .clm file: codes that a speech LM has compressed, and what is needed to refuse what cannot become them again.

    magic "clm\\0", version, K, V, T, samples of audio, model, codec, CRC-32 of the codes, length of the payload, CRC-32
    of everything else in the file; then the payload: the arithmetic-coded codes of compress.py

68 bytes and the payload, little-endian. Model and codec are the first 16 bytes of their sha256.
K codebooks, V codebook size, T frames.
"""

import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...model.codecs import Codec
from ...model.files import write_whole
from .arithmetic import LEAST_BITS

MAGIC = b"clm\0"
VERSION = 1  # this header, and every rule that the payload depends on: arithmetic.py, the order of the codes
HEADER = struct.Struct("<4sHHIIQ16s16sIII")
HASH_DIGITS = 32  # hexadecimal, of a sha256


@dataclass(frozen=True)
class ClmFile:
    """The content of a .clm file. Hashes are hexadecimal; only their first 32 digits are kept and compared."""

    model_hash: str  # sha256 over settings and weights
    codec_fingerprint: str
    num_codebooks: int
    codebook_size: int
    num_frames: int
    num_samples: int  # audio at the codec's rate; the last frame may be longer
    codes_crc: int
    payload: bytes

    @property
    def num_bytes(self) -> int:
        return HEADER.size + len(self.payload)

    def to_bytes(self) -> bytes:
        """Raises ValueError for more frames or codebooks than the header can count."""
        try:
            return self._header(zlib.crc32(self.payload, zlib.crc32(self._header(0)))) + self.payload
        except struct.error:
            raise ValueError(
                f"{self.num_codebooks} codebooks of {self.codebook_size} codes, {self.num_frames} frames, "
                f"{self.num_samples} samples do not fit into one .clm file; compress shorter recordings"
            ) from None

    def write(self, path: Path) -> None:
        """Write the file whole, or leave nothing. Raises OSError if the disk does not take it."""
        write_whole(path, self.to_bytes())

    @classmethod
    def read(cls, path: Path) -> "ClmFile":
        """Raises FileNotFoundError, or ValueError in one line for what is not a whole .clm file of this version."""
        if not path.is_file():
            raise FileNotFoundError(f"{path}: {'is a folder, not a .clm file' if path.is_dir() else 'no such file'}")
        data = path.read_bytes()
        if data[: len(MAGIC)] != MAGIC:
            raise ValueError(f"{path}: is not a .clm file; give one that 'codeclm codec compress' has written")
        version = int.from_bytes(data[4:6], "little")
        if len(data) >= 6 and version != VERSION:
            raise ValueError(
                f"{path}: has format {version}, this codeclm reads {VERSION}; use the codeclm it came from"
            )
        if len(data) < HEADER.size:
            raise ValueError(f"{path}: is cut off ({len(data)} bytes); copy it again")
        _, _, num_codebooks, size, num_frames, num_samples, model, codec, codes_crc, length, crc = HEADER.unpack_from(
            data
        )
        payload = data[HEADER.size :]
        if len(payload) < length:
            raise ValueError(f"{path}: is cut off ({len(data)} of {HEADER.size + length} bytes); copy it again")
        content = cls(model.hex(), codec.hex(), num_codebooks, size, num_frames, num_samples, codes_crc, payload)
        if len(payload) > length or zlib.crc32(payload, zlib.crc32(content._header(0))) != crc:
            raise ValueError(f"{path}: is damaged (its checksum does not fit its content); copy it again")
        return content

    def require(self, path: Path, model_hash: str, codec: Codec, model_name: str) -> None:
        """Raise ValueError, naming `path`, unless it was compressed with this model and its codec."""
        for what, stored, given in (
            ("model", self.model_hash, model_hash),
            ("codec", self.codec_fingerprint, codec.fingerprint),
        ):
            if stored[:HASH_DIGITS] != given[:HASH_DIGITS]:
                raise ValueError(
                    f"{path}: was compressed with {what} {stored[:12]}, but that of '{model_name}' is {given[:12]}; "
                    f"give --model the model that it was compressed with"
                )
        shape = codec.num_codebooks, codec.codebook_size, codec.num_frames(self.num_samples)
        most = 8 * (len(self.payload) + 8) / LEAST_BITS  # codes that the payload can hold
        is_whole = 0 < self.num_frames * self.num_codebooks <= most
        if shape != (self.num_codebooks, self.codebook_size, self.num_frames) or not is_whole:
            raise ValueError(f"{path}: was not written by codeclm: its header contradicts itself")

    def check_codes(self, path: Path, codes: np.ndarray | None) -> None:
        """Raise ValueError, naming `path`, unless decompressed codes [K, T] (None: there are none) are what went in."""
        if codes is None or codes_crc(codes) != self.codes_crc:
            raise ValueError(
                f"{path}: did not come out as it went in, because this machine computes other probabilities; "
                f"decompress it with the codeclm and torch that compressed it"
            )

    def sizes(self, codec: Codec, predicted_bits: float) -> str:
        """For the terminal: how large the file is beside what the model predicts, the raw codes and a WAV file."""
        seconds, coded = self.num_samples / codec.sample_rate, 8 * len(self.payload)
        raw = self.num_frames * self.num_codebooks * math.log2(self.codebook_size) / 8  # bytes
        wav = 44 + 2 * self.num_samples
        return "\n".join([
            f"{self.num_bytes} bytes for {seconds:.2f} s, {8 * self.num_bytes / seconds:.0f} bits/s",
            f"  codes      {len(self.payload):8} bytes, {coded} bits; the model predicts {predicted_bits:.1f} "
            f"({coded / predicted_bits - 1:+.2%})",
            f"  header     {HEADER.size:8} bytes, {HEADER.size / self.num_bytes:.1%} of the file",
            f"  raw codes  {math.ceil(raw):8} bytes, {raw / self.num_bytes:.2f} times the file",
            f"  16-bit WAV {wav:8} bytes, {wav / self.num_bytes:.0f} times the file",
        ])  # fmt: skip

    def _header(self, crc: int) -> bytes:
        hashes = (bytes.fromhex(text[:HASH_DIGITS]) for text in (self.model_hash, self.codec_fingerprint))
        return HEADER.pack(
            MAGIC, VERSION, self.num_codebooks, self.codebook_size, self.num_frames, self.num_samples, *hashes,
            self.codes_crc, len(self.payload), crc,
        )  # fmt: skip


def codes_crc(codes: np.ndarray) -> int:
    """CRC-32 of codes [K, T] as time-major 32-bit integers."""
    return zlib.crc32(np.ascontiguousarray(codes.T, "<u4").tobytes())
