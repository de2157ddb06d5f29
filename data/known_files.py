"""Files that were read once on this machine and found right: until they change they need not be read again.

What is known of a folder is a JSON file in `$XDG_CACHE_HOME/codeclm/known_files` (else ~/.cache/...), with the size,
the time of the last change and the sha256 of each file. Small files are read every time, and all are where nothing can
be written there.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..model.files import write_whole

SMALL = 2**20  # bytes
RACE_NS = 2 * 10**9  # a file may change twice within one tick of its clock; so young a one is read again


class KnownFiles:
    """What this machine knows of the files in a folder; kept when the `with` ends."""

    def __init__(self, folder: Path):
        self._path = _place(folder)
        self._known: dict[str, list] = {}
        self._added = False
        with suppress(OSError, ValueError):
            known = json.loads(self._path.read_bytes()) if self._path else None
            self._known = known if isinstance(known, dict) else {}

    def __enter__(self) -> "KnownFiles":
        return self

    def __exit__(self, *_: object) -> None:
        if self._path and self._added:
            with suppress(OSError):
                write_whole(self._path, json.dumps(self._known))

    def has(self, path: Path, sha256: str) -> bool:
        """Whether the file is as it was when it had this content. Raises OSError if it is not there."""
        return self._known.get(path.name) == [*_stamp(path), sha256]

    @contextmanager
    def reading(self, path: Path, sha256: str) -> Iterator[None]:
        """The block reads the file, and raises unless it has this content."""
        before, now = _stamp(path), time.time_ns()
        yield
        if before == _stamp(path) and before[1] < now - RACE_NS and before[0] >= SMALL:
            self._known[path.name] = [*before, sha256]
            self._added = True


def _stamp(path: Path) -> tuple[int, int]:
    """Size in bytes, and time of the last change in ns. Raises OSError if the file is not there."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _place(folder: Path) -> Path | None:
    """The file that says what is known of the folder; None for a user without a home."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return (
        cache / "codeclm" / "known_files" / f"{hashlib.sha256(os.path.realpath(os.fsencode(folder))).hexdigest()}.json"
    )
