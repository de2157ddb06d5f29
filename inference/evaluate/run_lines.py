"""What is kept of a run in its folder: its settings in a file, and a line of JSON for each item that is done.

A line is written once its item is done, so a run that was killed goes on after it; settings that differ are refused.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...model.files import readable, write_whole
from ...model.strict import read_object


def begin_run(settings_file: Path, lines_file: Path, settings: dict[str, Any]) -> bool:
    """Begin a run, or go on with one -> whether there was one. Raises ValueError if it had other settings."""
    if not settings_file.exists():
        lines_file.unlink(missing_ok=True)
        write_whole(settings_file, json.dumps(settings, indent=2) + "\n")
        return False
    stored = read_object(settings_file)
    if differing := [key for key in settings if stored.get(key) != settings[key]]:
        key = differing[0]
        raise ValueError(
            f"{readable(settings_file.parent)}: holds a run with another {key} ({stored.get(key)}, not "
            f"{settings[key]}); choose another --out"
        )
    return True


def append_lines(lines_file: Path, values: Iterable[dict[str, Any]]) -> None:
    with lines_file.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(value) + "\n" for value in values))
        file.flush()
        os.fsync(file.fileno())


def rewrite_lines(lines_file: Path, values: Iterable[dict[str, Any]]) -> None:
    """All lines anew, without one that was cut off."""
    write_whole(lines_file, "".join(json.dumps(value) + "\n" for value in values))


def read_lines(lines_file: Path) -> Iterator[tuple[int, Any]]:
    """(number from 1, value) of each whole line; one that was cut off when a run was killed is left out.

    Raises ValueError for a line that is not JSON.
    """
    content = lines_file.read_bytes() if lines_file.exists() else b""
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            return
        try:
            yield number, json.loads(line)
        except ValueError:
            raise not_an_item(lines_file, number) from None


def not_an_item(lines_file: Path, number: int) -> ValueError:
    return ValueError(f"{readable(lines_file)}, line {number}: is not an item of this codeclm; delete it")
