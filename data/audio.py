"""Audio files in, mono float32 at one sample rate out; and WAV files out.

Everything a file can be wrong about is found here and told in one line (`AudioError`); nothing here knows about
codecs or tokens. S samples.
"""

import os
import struct
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf")
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 192_000
MIN_DURATION_S = 0.1
SILENCE_DBFS = -60.0
MAX_PEAK = 8.0  # some headroom over full scale; integers written as floats are far above it
BLOCK_S = 60.0  # a long file is read and resampled in blocks, so that memory stays near the result's own size


class AudioError(ValueError):
    """An audio file that cannot be used; the message names the file and says why, in one line."""


def find_audio(path: Path) -> list[Path]:
    """The audio file itself, or every audio file below a folder, sorted by name.

    Raises AudioError if the path does not exist or holds no file whose name ends like audio.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise AudioError(f"{path}: no such file or folder")
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and not file.is_dir())
    if not found:
        raise AudioError(f"{path}: no audio file in this folder (looked for {', '.join(EXTENSIONS)})")
    return found


def loudness_dbfs(audio: np.ndarray) -> float:
    """Root-mean-square level in dB relative to full scale; -inf for digital silence."""
    return _dbfs(float(np.mean(np.square(audio, dtype=np.float64))) if audio.size else 0.0)


def _dbfs(power: float) -> float:
    return 10 * float(np.log10(power)) if power > 0 else float("-inf")


def load_audio(path: str | Path, sample_rate: int, check_speech: bool = True) -> np.ndarray:
    """Read, mix to mono and resample (soxr, high quality) -> float32 [S] at `sample_rate`, full scale at -1 and 1.

    check_speech: also refuse what is too short or silent. Raises AudioError, naming the file, if it is missing, empty,
    not audio, cut off, holds NaN or infinite samples, or has a rate outside 4-192 kHz.
    """
    return np.concatenate(list(audio_blocks(path, sample_rate, check_speech)))


def check_usable(audio: np.ndarray, sample_rate: int, name: str) -> None:
    """Raise AudioError if `audio` [S] is too short, silent, not finite or not in -1..1. `name` is for the message."""
    if not np.isfinite(audio).all():
        raise AudioError(f"{name}: holds NaN or infinite samples")
    levels = _Levels()
    levels.add(audio)
    levels.check(sample_rate, name)


class _Levels:
    """What is known of a recording when all of it has been heard."""

    def __init__(self) -> None:
        self.num_samples, self.energy, self.peak = 0, 0.0, 0.0

    def add(self, audio: np.ndarray) -> None:
        self.num_samples += len(audio)
        self.energy += float(np.square(audio, dtype=np.float64).sum())
        self.peak = max(self.peak, float(np.abs(audio).max(initial=0.0)))

    def check(self, sample_rate: int, name: str) -> None:
        duration = self.num_samples / sample_rate
        if duration < MIN_DURATION_S:
            raise AudioError(f"{name}: too short ({duration:.3f} s; at least {MIN_DURATION_S} s is needed)")
        level = _dbfs(self.energy / self.num_samples)
        if level < SILENCE_DBFS:
            raise AudioError(f"{name}: silent ({level:.0f} dBFS; at least {SILENCE_DBFS:.0f} dBFS is needed)")
        if self.peak > MAX_PEAK:
            raise AudioError(f"{name}: samples reach {self.peak:.0f}; float audio must lie in -1..1")


def audio_blocks(path: str | Path, sample_rate: int, check_speech: bool = False) -> Iterator[np.ndarray]:
    """The audio of `load_audio` in blocks of about a minute [S], so that a file of any length can be read.

    Raises AudioError like `load_audio`, some reasons only once the last block has been read.
    """
    path = Path(path)
    if not path.exists():
        raise AudioError(f"{path}: no such file")
    if not path.is_file():
        raise AudioError(f"{path}: is a folder, not an audio file" if path.is_dir() else f"{path}: is not a file")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes)")
    if not os.access(path, os.R_OK):
        raise AudioError(f"{path}: cannot be read (permission denied)")
    num_samples, levels = 0, _Levels()
    for block in _resampled_blocks(path, sample_rate):
        num_samples += len(block)
        if check_speech:
            levels.add(block)
        yield block
    if num_samples == 0:
        raise AudioError(f"{path}: the file has a header but no samples")
    if check_speech:
        levels.check(sample_rate, str(path))


def _resampled_blocks(path: Path, sample_rate: int) -> Iterator[np.ndarray]:
    import soundfile
    import soxr

    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
                raise AudioError(
                    f"{path}: sample rate {rate} Hz; {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz can be read"
                )
            _check_is_whole(path)
            resampler = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1, "float32", "HQ")
            frames_read = 0
            while True:
                block = file.read(round(BLOCK_S * rate), dtype="float32", always_2d=True)
                if len(block) == 0:
                    break
                frames_read += len(block)
                mono = np.ascontiguousarray(block.mean(axis=1))
                if not np.isfinite(mono).all():
                    raise AudioError(f"{path}: holds NaN or infinite samples")
                yield mono if resampler is None else resampler.resample_chunk(mono)
            if resampler is not None and frames_read:
                yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            # libsndfile's frame count of a compressed file can be an estimate: only a real shortfall is a cut
            if frames_read < 0.98 * file.frames and file.frames < 2**60:
                raise AudioError(f"{path}: cut off ({frames_read} of {file.frames} samples can be read)")
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = str(error).splitlines()[0].split(": ", 1)[-1]
        raise AudioError(f"{path}: cannot be read as audio ({reason.rstrip('.')})") from None
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror or error})") from None


def _check_is_whole(path: Path) -> None:
    """libsndfile reads what is left of a cut WAV, AIFF or Ogg file without a word, so sizes are compared here."""
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(4)
        if magic in (b"RIFF", b"FORM"):
            file.seek(12)
            end = _end_of_samples(file, "little" if magic == b"RIFF" else "big")
        elif magic == b"OggS":
            end = _end_of_pages(file)
        else:
            return
    if end > size:
        raise AudioError(f"{path}: cut off (its headers promise {end} bytes, {size} are there)")


def _end_of_samples(file: BinaryIO, byteorder: Literal["little", "big"]) -> int:
    """Where the chunk of samples of a WAV or AIFF file should end, in bytes; 0 if the header does not know."""
    while len(header := file.read(8)) == 8:
        length = int.from_bytes(header[4:], byteorder)
        if header[:4] in (b"data", b"SSND"):
            streamed = length >= 0x7FFFFFF0 or length == 0  # written by a pipe that could not seek back
            return 0 if streamed else file.tell() + length
        file.seek(length + length % 2, os.SEEK_CUR)
    return 0


def _end_of_pages(file: BinaryIO) -> int:
    """Where the last page of an Ogg file should end, in bytes."""
    end = 0
    while file.seek(end) == end and (header := file.read(27)).startswith(b"OggS"):
        lengths = file.read(header[26]) if len(header) == 27 else b""
        end += 27 + (header[26] + sum(lengths) if len(header) == 27 else 0)
    return end


def save_wav(path: str | Path, audio: np.ndarray, sample_rate: int) -> None:
    """Write float samples [S] as 16-bit WAV, whole or not at all (a temporary file, then a rename).

    Samples beyond full scale are clipped. Raises OSError if the folder cannot be written.
    """
    with wav_writer(path, sample_rate) as write:
        write(audio)


@contextmanager
def wav_writer(path: str | Path, sample_rate: int) -> Iterator[Callable[[np.ndarray], None]]:
    """`save_wav` block by block: gives a function that takes samples [S]. Nothing is left of a block that fails."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # not by libsndfile, which would not say why a disk does not take its bytes
        with partial.open("wb") as file, wave.open(file, "wb") as wav:
            wav.setparams((1, 2, sample_rate, 0, "NONE", ""))
            yield lambda audio: wav.writeframes((np.clip(audio, -1.0, 1.0) * 32767).round().astype("<i2").tobytes())
        os.replace(partial, path)
        made = []
    except struct.error:
        raise OSError(f"{path}: a WAV file cannot hold more than 4 GiB; give shorter audio") from None
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):  # it may never have been there, and others may have put files beside it
            partial.unlink()
        with suppress(OSError):
            for folder in made:  # innermost first
                folder.rmdir()
