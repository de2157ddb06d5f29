"""Rows of a batch: pieces of speech behind one another, kept apart by `documents`, so that hardly anything is padding.

    codes      a a a a a b b c c c .        documents  0 0 0 0 0 1 1 2 2 2 2
               d d d d d d d d e . .                   0 0 0 0 0 0 0 0 1 1 1

B rows, K codebooks, T columns of a row, L columns of a piece.
"""

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
    given: np.ndarray | None = None  # [L] bool, columns that are heard and not scored (default: none)


@dataclass(frozen=True)
class Rows:
    """Arguments of SpeechLM.forward; ABSENT where there is no text or no audio."""

    codes: Tensor  # [B, K, T] int64
    ends: Tensor  # [B, T] bool
    text: Tensor  # [B, T] int64
    documents: Tensor | None  # [B, T] the piece of each column, padding with the last; None: one piece in every row
    given: Tensor | None = None  # [B, T] bool, columns that are heard and not scored; None: none

    def __len__(self) -> int:
        return len(self.codes)

    def lengths(self) -> list[int]:
        """Columns of every piece; of the last in a row with its padding."""
        if self.documents is None:
            return [self.text.shape[1]] * len(self)
        return [n for row in self.documents for n in row.unique_consecutive(return_counts=True)[1].tolist()]

    def take(self, rows: slice) -> "Rows":
        return self._map(lambda tensor: tensor[rows])

    def pinned(self) -> "Rows":
        """In memory from which a GPU reads while the host goes on."""
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Rows":
        return self._map(lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Rows":
        documents, given = (None if x is None else change(x) for x in (self.documents, self.given))
        return Rows(change(self.codes), change(self.ends), change(self.text), documents, given)


def can_be_packed(config: SpeechLMConfig) -> bool:
    """Whether several pieces may share a row of this model; elsewhere each has a row of its own, and is padded.

    Not without BOS, as a piece's first step could not be told from the one before it, and not with flash attention,
    which takes documents in another form.
    """
    return config.bos and "flash" not in (config._attn_implementation or "")


def pack(lengths: Sequence[int] | np.ndarray, num_columns: int) -> list[list[int]]:
    """Lengths of pieces -> rows of at most `num_columns` with the numbers of their pieces; see `place`."""
    lengths = np.asarray(lengths, np.int64)
    order, first = by_row(place(lengths, num_columns), lengths)
    return [row.tolist() for row in np.split(order, first[1:-1])] if len(order) else []


def place(lengths: np.ndarray, num_columns: int) -> np.ndarray:
    """Lengths [M] of pieces -> the row [M] of each, in rows of at most `num_columns`.

    Longest first, each goes where it leaves the least room; one that is longer than a row has one of its own. Pieces of
    one length are placed together, as there are far fewer lengths than pieces: the fullest row that has room for one
    takes as many of them as it can, then the next.
    """
    row_of, num_rows = np.empty(len(lengths), np.int64), 0
    rooms: dict[int, np.ndarray] = {}  # columns left -> the rows, in order
    order = np.argsort(-lengths, kind="stable")
    for pieces in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        length = int(lengths[pieces[0]]) if len(pieces) else 0
        empty = max(num_columns, length)
        for room in [*sorted(room for room in rooms if room >= length), empty]:
            if not len(pieces):
                break
            most = room // length  # pieces of this length that fit into a row
            count = -(-len(pieces) // most)
            if room == empty:
                rooms[room] = np.arange(num_rows, num_rows + count)
                num_rows += count
            rows, others = np.split(rooms.pop(room), [count])
            placed = np.repeat(rows, most)[: len(pieces)]
            row_of[pieces[: len(placed)]] = placed
            last = len(placed) - most * (len(rows) - 1)  # pieces in the last of them
            for left, these in ((room, others), (room - most * length, rows[:-1]), (room - last * length, rows[-1:])):
                if left and len(these):
                    rooms[left] = np.sort(np.concatenate([rooms.get(left, these[:0]), these]))
            pieces = pieces[len(placed) :]
    return row_of


def by_row(row_of: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The row [M] of each piece -> the pieces [M], row after row and longest first, and where the rows begin."""
    return np.lexsort((-lengths, row_of)), starts(np.bincount(row_of))


def starts(sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """Sizes [B] of parts that follow one another -> where each begins, and where the last ends [B + 1]."""
    return np.concatenate([[0], np.cumsum(sizes)])


def stack(rows: Sequence[Sequence[Piece]], num_codebooks: int, num_columns: int) -> Rows:
    """The pieces of each row, of which there may be none -> rows of `num_columns`."""
    shape = len(rows), num_columns
    text = torch.full(shape, ABSENT)
    codes = torch.full((len(rows), num_codebooks, num_columns), ABSENT)
    ends = torch.zeros(shape, dtype=torch.bool)
    documents = torch.zeros(shape, dtype=torch.int64)
    given = torch.zeros(shape, dtype=torch.bool)
    for row, pieces in enumerate(rows):
        start = 0
        for number, piece in enumerate(pieces):
            stop = start + len(piece.text)
            text[row, start:stop] = torch.from_numpy(piece.text)
            codes[row, :, start:stop] = torch.from_numpy(piece.codes)
            documents[row, start:] = number
            if piece.given is not None:
                given[row, start:stop] = torch.from_numpy(piece.given)
            if piece.end is not None:
                ends[row, start + piece.end] = True
            start = stop
    shared = any(len(pieces) > 1 for pieces in rows)
    return Rows(codes, ends, text, documents if shared else None, given if given.any() else None)
