"""Rows of a batch: pieces of speech behind one another, kept apart by `documents`, so that hardly anything is padding.

    codes      a a a a a b b c c c .        documents  0 0 0 0 0 1 1 2 2 2 2
               d d d d d d d d e . .                   0 0 0 0 0 0 0 0 1 1 1

B rows, K codebooks, T columns of a row, L columns of a piece.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..model.delay_pattern import ABSENT
from ..model.speech_lm_config import SpeechLMConfig


class Piece(NamedTuple):
    """Columns of an utterance."""

    text: np.ndarray  # [L]
    codes: np.ndarray  # [K, L]
    end: int | None  # the column after which the recording has ended, if it is here


@dataclass(frozen=True)
class Rows:
    """Arguments of SpeechLM.forward; ABSENT where there is no text or no audio."""

    codes: Tensor  # [B, K, T] int64
    ends: Tensor  # [B, T] bool
    text: Tensor  # [B, T] int64
    documents: Tensor | None  # [B, T] the piece of each column, padding with the last; None: one piece in every row

    def __len__(self) -> int:
        return len(self.codes)

    def lengths(self) -> list[int]:
        """Columns of every piece; of the last in a row with its padding."""
        if self.documents is None:
            return [self.text.shape[1]] * len(self)
        return [n for row in self.documents for n in row.unique_consecutive(return_counts=True)[1].tolist()]

    def take(self, rows: slice) -> "Rows":
        documents = None if self.documents is None else self.documents[rows]
        return Rows(self.codes[rows], self.ends[rows], self.text[rows], documents)

    def pinned(self) -> "Rows":
        """In memory from which a GPU reads while the host goes on."""
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Rows":
        return self._map(lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Rows":
        documents = None if self.documents is None else change(self.documents)
        return Rows(change(self.codes), change(self.ends), change(self.text), documents)


def can_be_packed(config: SpeechLMConfig) -> bool:
    """Whether several pieces may share a row of this model; elsewhere each has a row of its own, and is padded.

    Not without BOS, as a piece's first step could not be told from the one before it, and not with flash attention,
    which takes documents in another form.
    """
    return config.bos and "flash" not in (config._attn_implementation or "")


def pack(lengths: Sequence[int] | np.ndarray, num_columns: int) -> list[list[int]]:
    """Lengths of pieces -> rows of at most `num_columns` with the numbers of their pieces.

    Longest first, each goes where it leaves the least room; one that is longer than a row has one of its own.
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (columns left, row), in order
    for piece in sorted(range(len(lengths)), key=lambda piece: -lengths[piece]):
        length = int(lengths[piece])
        fullest = bisect_left(rooms, (length, -1))
        if fullest < len(rooms):
            room, row = rooms.pop(fullest)
        else:
            room, row = max(num_columns, length), len(rows)
            rows.append([])
        rows[row].append(piece)
        if room > length:
            insort(rooms, (room - length, row))
    return rows


def stack(rows: Sequence[Sequence[Piece]], num_codebooks: int, num_columns: int) -> Rows:
    """The pieces of each row, of which there may be none -> rows of `num_columns`."""
    shape = len(rows), num_columns
    text = torch.full(shape, ABSENT)
    codes = torch.full((len(rows), num_codebooks, num_columns), ABSENT)
    ends = torch.zeros(shape, dtype=torch.bool)
    documents = torch.zeros(shape, dtype=torch.int64)
    for row, pieces in enumerate(rows):
        start = 0
        for number, piece in enumerate(pieces):
            stop = start + len(piece.text)
            text[row, start:stop] = torch.from_numpy(piece.text)
            codes[row, :, start:stop] = torch.from_numpy(piece.codes)
            documents[row, start:] = number
            if piece.end is not None:
                ends[row, start + piece.end] = True
            start = stop
    shared = any(len(pieces) > 1 for pieces in rows)
    return Rows(codes, ends, text, documents if shared else None)
