"""A folder that travels: a compressed tar, cut into parts that are small enough, with a manifest of their sha256.

Standard library only, but for model/files.py.
"""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from .....model.files import file_sha256, whole_folder
from .....model.strict import read_object

MANIFEST = "parcel.json"
BLOCK = 1 << 20  # bytes


def send(folder: Path, to: Path, part_bytes: int) -> list[Path]:
    """What is in `folder` -> the parts in `to`, whose earlier content goes."""
    with whole_folder(to, replace=True) as partial:
        cutter = _Cutter(partial, part_bytes)
        with tarfile.open(fileobj=cutter, mode="w|gz") as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
            for path in sorted(folder.iterdir()):
                tar.add(path, path.name)
        cutter.close()
        hashes = {path.name: file_sha256(path) for path in cutter.parts}
        (partial / MANIFEST).write_text(json.dumps({"parts": hashes}, indent=2) + "\n")
    return [to / path.name for path in cutter.parts]


def receive(parcel: Path, folder: Path) -> None:
    """The inverse of `send`, into a folder that is there.

    Raises FileNotFoundError or ValueError if a part is missing or not what was sent.
    """
    hashes = manifest(parcel)
    for name, expected in hashes.items():
        path = parcel / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: is missing; the parcel has {len(hashes)} parts: bring all of them")
        if file_sha256(path) != expected:
            raise ValueError(f"{path}: is not what was sent; bring it again")
    joined: Any = io.BufferedReader(_Joined([parcel / name for name in hashes]), BLOCK)
    with joined, tarfile.open(fileobj=joined, mode="r|gz") as tar:
        tar.extractall(folder, filter="data")


def manifest(parcel: Path) -> dict[str, str]:
    """Part -> sha256, in order."""
    try:
        parts = read_object(parcel / MANIFEST)["parts"]
    except FileNotFoundError:
        raise FileNotFoundError(f"{parcel}: holds no parcel ({MANIFEST} is missing)") from None
    except (KeyError, ValueError):
        parts = None
    if not isinstance(parts, dict) or not all(Path(name).name == name for name in parts):
        raise ValueError(f"{parcel / MANIFEST}: is not a parcel's manifest; bring it again")
    return parts


class _Cutter:
    """A file to write, which becomes part-00, part-01, ..., none larger than a given size."""

    def __init__(self, folder: Path, part_bytes: int):
        self.folder, self.part_bytes = folder, part_bytes
        self.parts: list[Path] = []
        self.room, self.file = 0, io.BytesIO()

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        while len(rest):
            if not self.room:
                self.close()
                self.parts.append(self.folder / f"part-{len(self.parts):02d}")
                self.file, self.room = self.parts[-1].open("wb"), self.part_bytes
            piece = rest[: self.room]
            self.file.write(piece)
            self.room -= len(piece)
            rest = rest[len(piece) :]
        return len(data)

    def close(self) -> None:
        self.file.close()


class _Joined(io.RawIOBase):
    """Files read as one."""

    def __init__(self, paths: list[Path]):
        self.files = iter([path.open("rb") for path in paths])
        self.file = next(self.files, io.BytesIO())

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not (count := self.file.readinto(buffer)):
            following = next(self.files, None)
            if following is None:
                break
            self.file.close()
            self.file = following
        return count
