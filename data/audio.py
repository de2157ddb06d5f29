"""Audio files in, mono float32 at one sample rate out; audio_out.py writes them, ffmpeg.py reads unusual formats.

Everything a file can be wrong about is found here and told in one line (`AudioError`); nothing here knows about
codecs or tokens. S samples.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import numpy as np

from ..model.files import readable

Item = TypeVar("Item")

EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf")
FOREIGN = (".m4a", ".m4b", ".mp4", ".aac", ".webm", ".wma", ".amr", ".3gp", ".mka", ".ac3", ".ape", ".wv")  # ffmpeg's
# first bytes of Matroska and WebM, ASF (WMA), AMR, WavPack, Monkey's Audio and AC-3
FOREIGN_STARTS = (b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75", b"#!AMR", b"wvpk", b"MAC ", b"\x0b\x77")
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 192_000
MIN_DURATION_S = 0.1
SILENCE_DBFS = -60.0
MAX_PEAK = 8.0  # some headroom over full scale; integers written as floats are far above it
END_TOLERANCE_S = 0.1  # a part of a recording may end this much after the recording: numbers in lists are rounded
UNKNOWN_FRAMES = 2**60  # libsndfile gives more than that where a header does not say how many there are
BLOCK_S = 60.0  # a long file is read and resampled in blocks, so that memory stays near the result's own size

logger = logging.getLogger(__name__)


class AudioError(ValueError):
    """An audio file that cannot be used; the message names the file and says why, in one line."""


def find_audio(path: Path) -> list[Path]:
    """The audio file itself, or every audio file below a folder, sorted by name.

    What is left out although it may hold audio is logged by name: formats that only ffmpeg reads, and names that are
    not UTF-8. Raises AudioError if the path does not exist or holds no file whose name ends like audio.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise AudioError(f"{readable(path)}: no such file or folder")
    found, left_out = [], []
    for file in sorted(path.rglob("*")):
        suffix = file.suffix.lower()
        if suffix not in (*EXTENSIONS, *FOREIGN) or file.is_dir():
            continue
        if not _is_utf8(file.relative_to(path)):
            left_out.append(f"{readable(file)}: its name is not UTF-8; rename it")
        elif suffix in EXTENSIONS:
            found.append(file)
        elif any(file.with_suffix(other).exists() for other in EXTENSIONS):
            continue  # it has been converted
        elif find_spec("av") is not None:
            found.append(file)
        else:
            left_out.append(
                f"{file}: {suffix} cannot be read; pip install 'codeclm[formats]', or {_conversion(readable(file))}"
            )
    if not found:
        others = f"; {left_out[0]}" if left_out else ""
        raise AudioError(f"{readable(path)}: no audio file in this folder (looked for {', '.join(EXTENSIONS)}){others}")
    for line in left_out:
        logger.warning("skipped %s", line)
    return found


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the files, say, evenly spread over their order."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _is_utf8(path: Path) -> bool:
    return os.fsencode(path) == str(path).encode("utf-8", "replace")


def _conversion(name: str) -> str:
    return f"convert it with: ffmpeg -i '{name}' '{Path(name).with_suffix('.wav')}'"


def audio_header(path: Path) -> tuple[int, float]:
    """Sample rate in Hz and duration in s of an audio file, as its header says; zeros where that does not."""
    import soundfile

    if not path.is_file():  # a pipe would never answer
        return 0, 0.0
    try:
        name: Any = os.fsencode(path) if os.name == "posix" else path  # a name need not be UTF-8
        header = soundfile.info(name)
    except (RuntimeError, OSError):
        return 0, 0.0
    return header.samplerate, header.duration if header.frames < UNKNOWN_FRAMES else 0.0


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

    @property
    def level(self) -> float:
        """In dBFS."""
        return _dbfs(self.energy / max(1, self.num_samples))

    def check(self, sample_rate: int, name: str) -> None:
        duration = self.num_samples / sample_rate
        if duration < MIN_DURATION_S:
            raise AudioError(f"{name}: too short ({duration:.3f} s; at least {MIN_DURATION_S} s is needed)")
        if self.level < SILENCE_DBFS:
            raise AudioError(f"{name}: silent ({self.level:.0f} dBFS; at least {SILENCE_DBFS:.0f} dBFS is needed)")
        if self.peak > MAX_PEAK:
            raise AudioError(f"{name}: samples reach {self.peak:.0f}; float audio must lie in -1..1")


def audio_blocks(
    audio: str | Path | BinaryIO,
    sample_rate: int,
    check_speech: bool = False,
    name: str | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Iterator[np.ndarray]:
    """The audio of `load_audio` in blocks of about a minute [S], so that a file of any length can be read.

    audio: a file, or one that is open. name: for messages. start_s, end_s: only this part of it, as if it were a file.
    Raises AudioError like `load_audio`, some reasons only once the last block has been read.
    """
    if isinstance(audio, str | Path):
        audio = Path(audio)
        name = readable(audio) if name is None else name
        _check_file(audio, name)
    name = name or "audio"
    num_samples, levels = 0, _Levels()
    for block in _resampled_blocks(audio, name, sample_rate, start_s, end_s):
        num_samples += len(block)
        if check_speech:
            levels.add(block)
        yield block
    if num_samples == 0:
        raise AudioError(f"{name}: the file has a header but no samples")
    if check_speech:
        levels.check(sample_rate, name)


def _check_file(path: Path, name: str) -> None:
    if not path.exists():
        raise AudioError(f"{name}: no such file")
    if not path.is_file():
        raise AudioError(f"{name}: is a folder, not an audio file" if path.is_dir() else f"{name}: is not a file")
    if path.stat().st_size == 0:
        raise AudioError(f"{name}: the file is empty (0 bytes)")
    if not os.access(path, os.R_OK):
        raise AudioError(f"{name}: cannot be read (permission denied)")


def _resampled_blocks(
    audio: Path | BinaryIO, name: str, sample_rate: int, start_s: float, end_s: float | None
) -> Iterator[np.ndarray]:
    import soxr

    rate, blocks = _decoded(audio, name, start_s, end_s)
    resampler = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1, "float32", "HQ")
    channels, mixed = _Levels(), _Levels()
    some = False
    for block in blocks:
        some = True
        mono = np.ascontiguousarray(block.mean(axis=1))
        if not np.isfinite(mono).all():
            raise AudioError(f"{name}: holds NaN or infinite samples")
        if block.shape[1] > 1:
            channels.add(block.reshape(-1))
            mixed.add(mono)
        yield mono if resampler is None else resampler.resample_chunk(mono)
    if resampler is not None and some:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
    if mixed.level < SILENCE_DBFS <= channels.level:
        to = readable(Path(name).with_suffix(".mono.wav"))
        raise AudioError(
            f"{name}: its channels cancel out (one is the other upside down); keep one of them: "
            f"ffmpeg -i '{name}' -af 'pan=mono|c0=c0' '{to}'"
        )


def _decoded(
    audio: Path | BinaryIO, name: str, start_s: float, end_s: float | None
) -> tuple[int, Iterator[np.ndarray]]:
    """Sample rate in Hz and blocks [n, channels] of the part from `start_s` to `end_s`."""
    try:
        rate, blocks = _opened(audio, name, start_s)
    except OSError as error:
        raise AudioError(f"{name}: cannot be read ({error.strerror or error})") from None
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise AudioError(f"{name}: sample rate {rate} Hz; {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz can be read")
    return rate, _part(blocks, name, rate, start_s, end_s)


def _opened(audio: Path | BinaryIO, name: str, start_s: float) -> tuple[int, Iterator[np.ndarray]]:
    """Sample rate in Hz and blocks [n, channels] from `start_s` on."""
    with ExitStack() as stack:
        file = stack.enter_context(audio.open("rb")) if isinstance(audio, Path) else audio
        if is_foreign(file.read(26)):
            if find_spec("av") is None:
                raise AudioError(f"{name}: cannot be read; pip install 'codeclm[formats]', or {_conversion(name)}")
            from .ffmpeg import ffmpeg_blocks

            return ffmpeg_blocks(audio, name, start_s)
        file.seek(0)
        _check_is_whole(file, name)
        file.seek(0)
    return _soundfile_blocks(audio, name, start_s)


def _part(
    blocks: Iterator[np.ndarray], name: str, rate: int, start_s: float, end_s: float | None
) -> Iterator[np.ndarray]:
    """The blocks up to `end_s`, where it is given. Raises AudioError where the audio ends long before."""
    if end_s is None:
        yield from blocks
        return
    left = round(end_s * rate) - round(start_s * rate)
    for block in blocks:
        yield block[:left]
        left -= len(block)
        if left <= 0:
            return
    if left > END_TOLERANCE_S * rate:
        raise AudioError(f"{name}: is to be used up to {end_s:g} s, but ends at {end_s - left / rate:.2f} s")


def _soundfile_blocks(audio: Path | BinaryIO, name: str, start_s: float) -> tuple[int, Iterator[np.ndarray]]:
    import soundfile

    # as bytes: soundfile would not take a name that is not UTF-8
    place: Any = os.fsencode(audio) if isinstance(audio, Path) and os.name == "posix" else audio
    place = place if isinstance(audio, Path) else _Steady(audio)

    def told(error: Exception) -> AudioError:
        reason = getattr(error, "error_string", str(error)).splitlines()[0]
        hint = "" if Path(name).suffix.lower() in EXTENSIONS else f"; if it holds audio, {_conversion(name)}"
        return AudioError(f"{name}: cannot be read as audio ({reason.rstrip('.')}){hint}")

    try:
        file = soundfile.SoundFile(place)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise told(error) from None

    def blocks() -> Iterator[np.ndarray]:
        first, frames_read = round(start_s * file.samplerate), 0
        with file:
            if first >= file.frames > 0 and first:
                length = file.frames / file.samplerate
                raise AudioError(f"{name}: is to be used from {start_s:g} s on, but ends at {length:.2f} s")
            try:
                if first:
                    file.seek(first)
                while len(block := file.read(round(BLOCK_S * file.samplerate), dtype="float32", always_2d=True)):
                    frames_read += len(block)
                    yield block
            except (soundfile.LibsndfileError, RuntimeError) as error:
                raise told(error) from None
            # libsndfile's frame count of a compressed file can be an estimate: only a real shortfall is a cut
            if first + frames_read < 0.98 * file.frames and file.frames < UNKNOWN_FRAMES:
                raise AudioError(f"{name}: cut off ({first + frames_read} of {file.frames} samples can be read)")

    return file.samplerate, blocks()


class _Steady:
    """An open file for libsndfile, which looks for places before the start of broken ones: it then stays where it is.

    An error of Python's could not reach whoever called libsndfile; its traceback would be printed.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.read, self.tell = file, file.read, file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with suppress(ValueError, OSError):
            self.file.seek(offset, whence)
        return self.tell()


def is_foreign(head: bytes) -> bool:
    """Whether a file that starts with these bytes, 26 at least, is one that only FFmpeg reads."""
    if head[:4] == b"fLaC" and len(head) == 26 and not int.from_bytes(head[21:], "big") % 2**36:
        return True  # a streamed FLAC, which does not say how long it is: soundfile stumbles over its end
    if head[:2] in (b"\xff\xf1", b"\xff\xf9"):  # AAC; the layer bits tell it from MP3
        return True
    return head[4:8] == b"ftyp" or head.startswith(FOREIGN_STARTS)


def _check_is_whole(file: BinaryIO, name: str) -> None:
    """libsndfile reads what is left of a cut WAV, AIFF or Ogg file without a word, so sizes are compared here."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    magic = file.read(4)
    if magic in (b"RIFF", b"FORM"):
        file.seek(12)
        end = _end_of_samples(file, "little" if magic == b"RIFF" else "big")
    elif magic == b"OggS":
        end = _end_of_pages(file)
    else:
        return
    if end > size:
        raise AudioError(f"{name}: cut off (its headers promise {end} bytes, {size} are there)")


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
