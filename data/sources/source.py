"""What is to be encoded: stretches of speech, each with the place of its bytes and what is known of it."""

import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from ...model.files import readable
from ..audio import AudioError, audio_blocks
from ..store_index import Rejected

Fact = int | float | str | None


@dataclass(frozen=True)
class ByteRange:
    """Bytes of a file: a member of a tar, or a file at an address that fsspec reads."""

    file: str  # a path, or an address such as s3://bucket/a.wav
    first: int = 0
    size: int | None = None  # None: to the end

    def open(self) -> BinaryIO:
        if self.size == 0:
            raise AudioError("the file is empty (0 bytes)")
        stop = None if self.size is None else self.first + self.size
        if "://" not in self.file:
            with Path(self.file).open("rb") as file:
                file.seek(self.first)
                data = file.read(-1 if self.size is None else self.size)
        else:
            from fsspec.core import url_to_fs

            system, path = url_to_fs(self.file)
            data = system.cat_file(path, start=self.first, end=stop)
        if self.size is not None and len(data) < self.size:
            raise AudioError(f"cut off ({len(data)} of {self.size} bytes are there)")
        return io.BytesIO(data)


@dataclass(frozen=True)
class TableCell:
    """The audio of one row of a parquet or Arrow file."""

    file: str
    row: int
    column: str

    def open(self) -> Path | BinaryIO:
        from .tables import read_audio

        return read_audio(self.file, self.row, self.column)


@dataclass(frozen=True)
class Source:
    """One stretch of speech. It is small, and can be sent to another process or machine that sees the same files."""

    name: str  # the utterance's, before it is cut
    audio: Path | ByteRange | TableCell
    stamp: tuple[Fact, ...]  # changes when the content does
    size: int  # bytes of its audio, or nearly
    start_s: float = 0.0
    end_s: float | None = None  # None: to the end
    text: str | None = None
    has_transcript: bool = False  # its text is in NAME.txt beside it, and read with the audio
    speaker: str | None = None
    origin: str | None = None  # where it is from, for people; None: as the name says
    words_in: Path | ByteRange | None = None  # JSON that says when its words are said, read with the audio

    @property
    def label(self) -> str:
        """What messages call it."""
        return readable(self.audio) if isinstance(self.audio, Path) else self.origin or self.name

    @property
    def voice(self) -> str:
        """The speaker where one is named, or else the first folder of the name; "" without either."""
        folder, _, name = self.name.partition("/")
        return self.speaker or (folder if name else "")

    def open(self) -> Path | BinaryIO:
        """The file, or its bytes. Raises AudioError, naming the source, where there are none."""
        if isinstance(self.audio, Path):
            return self.audio
        try:
            return self.audio.open()
        except AudioError as error:
            raise AudioError(f"{self.label}: {error}") from None
        except (OSError, ImportError) as error:
            raise AudioError(f"{self.label}: cannot be read ({getattr(error, 'strerror', None) or error})") from None

    def load(self, sample_rate: int) -> np.ndarray:
        """float32 [S], as `load_audio` reads a file. Raises AudioError, naming the source, for what is no speech."""
        part = self.label, self.start_s, self.end_s
        return np.concatenate(list(audio_blocks(self.open(), sample_rate, True, *part)))


@dataclass
class Found:
    """What a reader found: sources in order, and what it had to skip."""

    sources: list[Source] = field(default_factory=list)
    skipped: list[Rejected] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sources) + len(self.skipped)


def file_stamp(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns; (-1, -1) for a link to nowhere."""
    try:
        stat = path.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def words_stamp(words_in: Path | None) -> tuple[int, ...]:
    return () if words_in is None else file_stamp(words_in)


def place_stamp(place: str) -> tuple[Fact, ...]:
    """`file_stamp` of a path or an address: size, and what its file system says of the version."""
    if "://" not in place:
        return file_stamp(Path(place))
    from fsspec.core import url_to_fs

    system, path = url_to_fs(place)
    try:
        return int(system.info(path).get("size") or 0), str(system.ukey(path))
    except OSError:
        return -1, -1


def stems(paths: Iterable[str]) -> list[str]:
    """Names of files without suffix; with it where two files would have the same name."""
    whole = [PurePosixPath(path) for path in paths]
    counts = Counter(path.with_suffix("") for path in set(whole))
    taken = set(whole)
    return [
        readable((path if counts[stem] > 1 or stem in taken else stem).as_posix())
        for path, stem in ((path, path.with_suffix("")) for path in whole)
    ]


def files_below(place: str | Path, *suffixes: str) -> list[str]:
    """The file at a path or address itself, or those below a folder that end so, sorted."""
    if "://" not in str(place):
        path = Path(place)
        if path.is_file():
            return [str(path)]
        return sorted(str(file) for suffix in suffixes for file in path.rglob(f"*{suffix}") if file.is_file())
    from fsspec.core import url_to_fs

    system, path = url_to_fs(str(place))
    if system.isfile(path):
        return [str(place)]
    return sorted(system.unstrip_protocol(file) for file in system.find(path) if file.endswith(suffixes))


def prefixes(place: str | Path, files: Sequence[str]) -> list[str]:
    """What the names in each of several files begin with: `sub/train-0/`; nothing where there is one file."""
    if len(files) == 1:
        return [""]
    root = os.path.commonpath([os.path.dirname(file) for file in files]) if "://" not in files[0] else str(place)
    return [f"{stem}/" for stem in stems(os.path.relpath(file, root).replace(os.sep, "/") for file in files)]
