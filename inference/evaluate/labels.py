"""Phone labels of a recording: a file NAME.lab beside NAME.flac, in HTK's format. T frames.

4520000 5520000 a она       start and end in units of 100 ns, phone, and the word where one begins
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...model.files import readable

SUFFIX = ".lab"
UNITS = 10_000_000  # in a second


@dataclass(frozen=True)
class Label:
    start_s: float
    stop_s: float
    phone: str
    begins_word: bool


def read_labels(path: Path) -> list[Label]:
    """Raises ValueError, naming the line, for what is not HTK's format."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) not in (3, 4) or not (parts[0].isdigit() and parts[1].isdigit()):
            raise ValueError(f"{readable(path)}, line {number}: must be START END PHONE [WORD], times in 100 ns")
        found.append(Label(int(parts[0]) / UNITS, int(parts[1]) / UNITS, parts[2], len(parts) == 4))
    return found


def phones_at(labels: list[Label], num_frames: int, frame_rate: float) -> list[str | None]:
    """The phone in the middle of each frame; None outside of all labels."""
    middles = (np.arange(num_frames) + 0.5) / frame_rate
    phones: list[str | None] = [None] * num_frames
    for label in labels:
        for frame in np.flatnonzero((middles >= label.start_s) & (middles < label.stop_s)):
            phones[frame] = label.phone
    return phones


def word_begins_at(labels: list[Label], num_frames: int, frame_rate: float) -> np.ndarray | None:
    """[T] bool, the frames in which a word begins; None where the labels tell no words."""
    starts = [int(label.start_s * frame_rate) for label in labels if label.begins_word]
    if not starts:
        return None
    begins = np.zeros(num_frames, dtype=bool)
    begins[[start for start in starts if start < num_frames]] = True
    return begins
