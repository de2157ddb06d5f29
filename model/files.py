"""Files and folders that appear whole or not at all, and their sha256. Imports neither torch nor numpy."""

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

LOCK = ".lock"


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file that appears at `path` whole, when the block ends without an error, or not at all.

    Folders that are missing are made, and removed again after an error. A link is followed. What is there and is no
    regular file (/dev/null, a pipe, a terminal) is written straight through. Raises OSError for what `check_file`
    refuses, and if the disk does not take it.
    """
    path = Path(path)
    check_file(path)
    target = Path(os.path.realpath(path))
    partial = path if _is_device(path) else target.with_name(f".{target.name}.partial")
    made = [] if partial == path else _missing_parents(target)
    try:
        with _told_as(path, partial, *made):
            for folder in reversed(made):
                folder.mkdir(exist_ok=True)
            with partial.open("wb") as file:
                yield file
                if partial != path:
                    file.flush()
                    os.fsync(file.fileno())
            if partial != path:
                os.replace(partial, target)
                made = []
                _sync_folder(target.parent)
    finally:
        if partial != path:
            with suppress(OSError):  # it may never have been there
                partial.unlink()
        _remove_empty(made)


def write_whole(path: str | Path, content: bytes | str) -> None:
    """`whole_file` for content that is at hand; text becomes UTF-8."""
    with whole_file(path) as file:
        file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def check_file(path: Path) -> None:
    """Raise OSError, before any work, if `path` cannot name a file to write: a folder, or "-"."""
    if str(path) == "-":
        raise OSError("-: writing to standard output is not possible yet; give the name of a file")
    if path.is_dir():
        raise IsADirectoryError(f"{readable(path)}: is a folder; give the name of a file to write")


@contextmanager
def whole_folder(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """Gives a new folder that is called `path` from when the block ends without an error, and is removed otherwise.

    replace: what was at `path` before goes, once the new folder is whole; else FileExistsError if anything is there.
    Its files get the permissions of any new file, also those that a library made private. Raises OSError if the disk
    does not take it.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    partial, old = partial_folder(path), target.with_name(f".{target.name}.old")
    if not replace:
        check_absent(path)
    elif path.is_file():
        raise NotADirectoryError(f"{readable(path)}: is a file, not a folder; give another place")
    made = _missing_parents(target)
    try:
        with _told_as(path, partial, target, old, *made):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    ordinary_permissions(file)
                    _sync_file(file)
            shutil.rmtree(old, ignore_errors=True)
            if target.exists():
                target.rename(old)  # a folder that is not empty cannot be replaced in one go
            partial.rename(target)
            made = []
            _sync_folder(target.parent)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _remove_empty(made)


def partial_folder(path: Path) -> Path:
    """Where the folder is while `whole_folder` makes it."""
    target = Path(os.path.realpath(path))
    return target.with_name(f".{target.name}.partial")


@contextmanager
def locked_folder(path: str | Path, work: str, patience_s: float = 0.0) -> Iterator[None]:
    """The folder exists, can be written, and is this process's alone while the block lasts.

    If it is new and nothing is put there, it is gone afterwards. Again within the block is fine.
    Raises OSError if another process is at `work` ("codeclm prepare") there and does not end within `patience_s`, or
    the folder cannot be made or written.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    lock = FileLock(path / LOCK, timeout=0, is_singleton=True)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=patience_s)
    except Timeout:
        raise OSError(f"{path}: another {work} is writing here; wait for it or choose another folder") from None
    except FileExistsError:
        raise OSError(f"{path}: is a file, not a folder; choose another place") from None
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from None
    try:
        yield
    finally:
        if made and [file.name for file in path.iterdir()] == [LOCK]:
            (path / LOCK).unlink()
        lock.release()
        _remove_empty(made)


def check_absent(folder: Path) -> None:
    """Raise FileExistsError if `folder` is a file or holds something."""
    if folder.is_file() or folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{readable(folder)}: exists already; give a new folder")


def ordinary_permissions(path: Path) -> None:
    """Those of any file that this process makes (umask); safetensors writes files that only their owner can read."""
    if os.name == "posix":
        mask = os.umask(0o077)  # can only be read by setting it
        os.umask(mask)
        path.chmod(0o666 & ~mask)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def readable(path: str | Path) -> str:
    """A path as text that can be printed and stored: bytes of a name that are not UTF-8 as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _is_device(path: Path) -> bool:
    """Whether something is at `path` (links followed) that must not be replaced by a file."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _cannot(path, error) from None


@contextmanager
def _told_as(path: Path, *ours: Path) -> Iterator[None]:
    """The system's errors about `ours`, and those of writing, which name no file, become a line about `path`."""
    try:
        yield
    except OSError as error:
        about = None if error.filename is None else Path(os.fsdecode(error.filename))
        known = about is None or any(our == about or our in about.parents for our in (path, *ours))
        if error.errno is None or not known:
            raise
        raise _cannot(path, error) from None


def _cannot(path: Path, error: OSError) -> OSError:
    return type(error)(f"{readable(path)}: cannot be written ({error.strerror or error})")


def _missing_parents(path: Path) -> list[Path]:
    """Folders that are not there, innermost first."""
    return [folder for folder in path.parents if not os.path.exists(folder)]


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # others may have put files there
        for folder in folders:  # innermost first
            folder.rmdir()


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """A rename must survive a power cut, too."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems cannot
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
