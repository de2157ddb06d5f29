"""The folder of a run: whose it is, that one process at a time writes there, and its two records.

config.json says what the run is; metrics.jsonl has a line for each look at it. Checkpoints are checkpoint.py's.
Nothing heavy is imported, so that a wrong folder is refused at once.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..model.files import locked_folder, write_whole

CONFIG, METRICS = "config.json", "metrics.jsonl"
LANGUAGE_MODEL, CODEC = "the training of a language model", "the training of a codec"
PATTERNS, TOKENIZERS = "a pattern comparison", "a comparison of codecs as tokenizers"


def is_main() -> bool:
    """Whether this is the process that writes: the only one, or rank 0 of torchrun's or accelerate's."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def claim(out: Path, kind: str) -> Iterator[None]:
    """`out` exists, can be written, holds this kind of run or none, and is ours alone while the block lasts.

    A claim within a claim of the same process is fine. Under torchrun the main process claims for all.
    Raises ValueError if `out` holds something else, OSError if another process is writing there or it cannot be.
    """
    if not is_main():
        yield
        return
    check_kind(out, kind)
    with locked_folder(out, "run"):
        yield


def check_kind(out: Path, kind: str) -> None:
    """Raise ValueError if the config.json in `out` is not that of a run of this kind."""
    if not (out / CONFIG).is_file():
        return
    try:
        config = json.loads((out / CONFIG).read_text())
    except ValueError:
        raise ValueError(f"{out / CONFIG}: is not valid JSON; remove it, or give another --out") from None
    held = config.get("run", "something that is no run") if isinstance(config, dict) else "something that is no run"
    if held != kind:
        raise ValueError(f"{out}: holds {held} ({CONFIG}), not {kind}; give another --out")


def write_config(out: Path, kind: str, settings: dict[str, Any]) -> None:
    write_whole(out / CONFIG, json.dumps({"run": kind, **settings}, indent=2) + "\n")


def cut_metrics(out: Path, step: int) -> None:
    """Forget what metrics.jsonl says of the steps after `step` (-1: of all): a resumed run takes them again."""
    path = out / METRICS
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if 0 <= step_of(line) <= step]
    if kept != lines:
        write_whole(path, b"".join(kept))


def step_of(line: bytes) -> int:
    """The step of a line of metrics.jsonl; -1 for one that was cut off."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else -1
    except (ValueError, KeyError, TypeError):
        return -1
