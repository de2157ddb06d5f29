"""Audio out: mono WAV, FLAC, Ogg, Opus or MP3, as the name's suffix says, whole or not at all. S samples.

Samples beyond full scale are clipped; where that can be heard, it is told in one line. WAV files need no library.
"""

import logging
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..model.files import check_file, readable, whole_file

FORMATS = {  # libsndfile's (format, subtype)
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
MAX_WAV_BYTES = 2**32 - 1 - 36  # bytes of samples: the header's lengths have 32 bits
HEARD_SHARE = 0.001  # share of clipped samples from which on a warning is due
UNKNOWN_LENGTH = 2**32 - 1  # what a pipe, which cannot be written a second time, is told

logger = logging.getLogger(__name__)

Write = Callable[[np.ndarray], None]


def save_audio(path: str | Path, audio: np.ndarray, sample_rate: int) -> None:
    """Write float samples [S], full scale at -1 and 1, as the suffix says: 16-bit .wav or .flac, .ogg, .opus, .mp3.

    A name without a suffix, or a device, gets WAV. Raises ValueError for another suffix or a rate that the format does
    not have, OSError if the file cannot be written.
    """
    with audio_writer(path, sample_rate) as write:
        write(audio)


@contextmanager
def audio_writer(path: str | Path, sample_rate: int) -> Iterator[Write]:
    """`save_audio` block by block: gives a function that takes samples [S]. Nothing is left of a block that fails."""
    path = Path(path)
    suffix, clipping = check_audio_file(path), _Clipping()
    with whole_file(path) as file:
        writer = _wav if suffix == ".wav" else _encoded
        with writer(file, path, suffix, sample_rate) as write:
            yield lambda audio: write(clipping.clipped(audio))
    if clipping.count > HEARD_SHARE * clipping.num_samples:
        logger.warning(
            "%s: %d samples beyond full scale were clipped (peak %.2f)", readable(path), clipping.count, clipping.peak
        )


def audio_to(file: BinaryIO, chunks: Iterable[np.ndarray], sample_rate: int, with_header: bool = True) -> None:
    """Write chunks of samples [S] into a pipe as they come: 16 bits, after a WAV header of unknown length, or bare."""
    clipping = _Clipping()
    if with_header:
        file.write(wav_header(UNKNOWN_LENGTH, sample_rate))
        file.flush()
    for audio in chunks:
        file.write(int16_samples(clipping.clipped(audio)).tobytes())
        file.flush()  # whoever plays it must not wait for a full buffer


def check_audio_file(path: Path) -> str:
    """The suffix whose format `path` gets. Raises ValueError or OSError, before any work, if it cannot be written."""
    check_file(path)
    suffix = path.suffix.lower() or ".wav"
    if suffix not in FORMATS:
        raise ValueError(f"{readable(path)}: '{suffix}' cannot be written; choose one of {', '.join(FORMATS)}")
    return suffix


class _Clipping:
    def __init__(self) -> None:
        self.num_samples, self.count, self.peak = 0, 0, 0.0

    def clipped(self, audio: np.ndarray) -> np.ndarray:
        levels = np.abs(audio)
        self.num_samples += len(levels)
        self.count += int((levels > 1).sum())
        self.peak = max(self.peak, float(levels.max(initial=0.0)))
        return np.clip(audio, -1.0, 1.0)


def int16_samples(audio: np.ndarray) -> np.ndarray:
    """Samples [S] as 16-bit integers, little-endian; what lies beyond full scale is clipped."""
    return (np.clip(audio, -1.0, 1.0) * 32767).round().astype("<i2")


@contextmanager
def _wav(file: BinaryIO, path: Path, suffix: str, sample_rate: int) -> Iterator[Write]:
    num_bytes = 0

    def write(audio: np.ndarray) -> None:
        nonlocal num_bytes
        num_bytes += 2 * len(audio)
        if num_bytes > MAX_WAV_BYTES:
            raise OSError(f"{readable(path)}: a WAV file cannot hold more than 4 GiB; give shorter audio, or .flac")
        file.write(int16_samples(audio).tobytes())

    # not by libsndfile, which not every machine has
    file.write(wav_header(UNKNOWN_LENGTH, sample_rate))
    yield write
    if file.seekable():
        file.seek(0)
        file.write(wav_header(num_bytes, sample_rate))


def wav_header(num_bytes: int, sample_rate: int) -> bytes:
    """The header of 16-bit mono samples. num_bytes: of the samples; UNKNOWN_LENGTH where nobody knows yet."""
    whole = min(36 + num_bytes, UNKNOWN_LENGTH)
    wave_format = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", whole, b"WAVE") + wave_format + struct.pack("<4sI", b"data", num_bytes)


@contextmanager
def _encoded(file: BinaryIO, path: Path, suffix: str, sample_rate: int) -> Iterator[Write]:
    import soundfile

    sink: Any = _Sink(file)
    name, subtype = FORMATS[suffix]

    def write(audio: np.ndarray) -> None:
        sound.write(int16_samples(audio) if subtype == "PCM_16" else audio.astype(np.float32))
        sink.check()

    try:
        with soundfile.SoundFile(sink, "w", sample_rate, 1, subtype, format=name) as sound:
            yield write
        sink.check()
    except soundfile.LibsndfileError as error:
        sink.check()
        reason = f"{suffix} at {sample_rate} Hz ({error.error_string.removeprefix('Error : ').rstrip('.')})"
        raise ValueError(f"{readable(path)}: cannot be written as {reason}; choose .wav or .flac") from None


class _Sink:
    """A file for libsndfile, which does not say why a disk does not take its bytes: the error is kept until asked."""

    def __init__(self, file: BinaryIO):
        self.file, self.error = file, None

    def write(self, data: Any) -> int:
        return self._tried(self.file.write, data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._tried(self.file.seek, offset, whence)

    def tell(self) -> int:
        return self._tried(self.file.tell)

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def _tried(self, act: Callable[..., int], *arguments: Any) -> int:
        try:
            return act(*arguments) if self.error is None else 0
        except OSError as error:
            self.error = error
            return 0
