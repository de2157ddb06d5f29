"""Training batches of codes from a token store: a pure function of (seed, step).

A checkpoint needs no state from here: step n is the same batch in every run and on every rank.
N utterances, M segments (utterance, start, stop) in frames, B rows of a batch, K codebooks, T frames. With text, T
counts columns: frames and the columns that hold text only (grids.py).
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from ..model.delay_pattern import ABSENT
from ..model.shapes import TextLayout
from .grids import StoreGrids
from .rows import Rows, pack, stack
from .text_tokenizer import TextTokenizer
from .token_store import TokenStore

POOL_BATCHES = 50  # padded rows are sorted by length within this many batches: little padding, and still well mixed


class TokenBatches:
    """Training batches of at most `frames_per_batch` frames, padding included, in segments of at most `max_frames`.

    An epoch shows every frame of the chosen utterances exactly once. An utterance longer than `max_frames` is cut
    into consecutive segments, at other places in every epoch. Steps count on across epochs.
    Packed, all rows have one length, about `max_frames`, and hold several segments each; otherwise a row is one
    segment, padded to the longest of its batch (rows.py's `can_be_packed` decides which models take packed rows).
    With a tokenizer segments have text where `StoreGrids` says, and both limits count columns.
    """

    def __init__(
        self,
        store: TokenStore,
        frames_per_batch: int,
        max_frames: int,
        seed: int,
        indices: Sequence[int] | None = None,
        tokenizer: TextTokenizer | None = None,
        layout: TextLayout = "first",
        packed: bool = True,
        codebook_dropout: float = 0.0,
    ):
        """indices: the utterances to use (default all). tokenizer: for their transcripts (default: no text).
        codebook_dropout: share of the rows of which only the first codebooks are left, 1 to K - 1 of them.

        Raises ValueError if there is no utterance or no row would fit.
        """
        if max_frames < 1:
            raise ValueError(f"max_frames is {max_frames}; it must be at least 1")
        if frames_per_batch < max_frames:
            raise ValueError(
                f"frames_per_batch {frames_per_batch} is less than max_frames {max_frames}: a full row would not fit"
            )
        self.store, self.frames_per_batch, self.max_frames, self.seed = store, frames_per_batch, max_frames, seed
        self.packed, self.codebook_dropout = packed, codebook_dropout
        self.indices = _chosen(store, indices)
        self.grids = StoreGrids(store, tokenizer, layout, max_frames, self.indices.tolist())
        self.num_frames = int(store.num_frames[self.indices].sum())  # in one epoch
        total = self.num_frames + int(self.grids.num_columns[self.indices].sum())
        # columns of a packed row: the remainder of the division is shared among the rows
        self.row_columns = min(frames_per_batch // (frames_per_batch // max_frames), total)
        self._ends: list[int] = []  # the step after the last one of each epoch planned so far
        self._newest: tuple[int, list[list[np.ndarray]]] = (-1, [])

    def rows(self, step: int, rank: int = 0, world_size: int = 1) -> Rows:
        """Rows rank::world_size of a step's batch, as long as all of its rows; there may be none ([0, K, T])."""
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of 0..{world_size - 1}")
        epoch, index = self.locate(step)
        batch = self.epoch_batches(epoch)[index]
        longest = max(int(self.grids.lengths(segments).sum()) for segments in batch)
        pieces = [[self.grids.piece(*segment) for segment in row.tolist()] for row in batch[rank::world_size]]
        rows = stack(pieces, self.store.codec.num_codebooks, self.row_columns if self.packed else longest)
        for codes, left in zip(rows.codes, self.codebooks_left(step, len(batch))[rank::world_size], strict=True):
            codes[left:] = ABSENT
        return rows

    def row_numbers(self, step: int, rank: int = 0, world_size: int = 1) -> list[int]:
        """The number, in the whole batch, of each of these rows; rank 0 has the most."""
        epoch, index = self.locate(step)
        return list(range(len(self.epoch_batches(epoch)[index])))[rank::world_size]

    def codebooks_left(self, step: int, num_rows: int) -> list[int]:
        """Leading codebooks of each row of a step; the others are ABSENT."""
        num_codebooks, rng = self.store.codec.num_codebooks, np.random.default_rng([self.seed, step, 1])
        dropped = rng.random(num_rows) < self.codebook_dropout
        few = rng.integers(1, max(2, num_codebooks), num_rows)
        return np.where(dropped & (num_codebooks > 1), few, num_codebooks).tolist()

    def locate(self, step: int) -> tuple[int, int]:
        """Step -> (epoch, index of the batch in it). The first call in epoch n plans the epochs before it too."""
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        while not self._ends or self._ends[-1] <= step:
            first = self._ends[-1] if self._ends else 0
            self._ends.append(first + len(self.epoch_batches(len(self._ends))))
        epoch = bisect_right(self._ends, step)
        return epoch, step - (self._ends[epoch - 1] if epoch else 0)

    def epoch_batches(self, epoch: int) -> list[list[np.ndarray]]:
        """The plan of an epoch: the rows of each batch, as segments [M, 3]."""
        if self._newest[0] != epoch:
            self._newest = (epoch, self._plan(np.random.default_rng([self.seed, epoch])))
        return self._newest[1]

    def _plan(self, rng: np.random.Generator) -> list[list[np.ndarray]]:
        room = self.max_frames - self.grids.num_columns  # [N] frames that the first segment may have
        segments = rng.permutation(_cut(self.indices, self.store.num_frames, self.max_frames, room, rng))
        return self._packed(segments, rng) if self.packed else self._padded(segments, rng)

    def _packed(self, segments: np.ndarray, rng: np.random.Generator) -> list[list[np.ndarray]]:
        rows = [segments[row] for row in pack(self.grids.lengths(segments), self.row_columns)]
        order = rng.permutation(len(rows))  # the first rows have the longest segments
        count = -(-len(rows) // (self.frames_per_batch // self.row_columns))
        # as evenly as can be: a last batch of few rows would weigh as much as the others
        return [[rows[i] for i in part] for part in np.array_split(order, count)]

    def _padded(self, segments: np.ndarray, rng: np.random.Generator) -> list[list[np.ndarray]]:
        total = np.cumsum(self.grids.lengths(segments))
        num_pools = max(1, round(int(total[-1]) / (POOL_BATCHES * self.frames_per_batch)))
        pool_of = (total - 1) * num_pools // total[-1]
        pools = np.split(segments, np.flatnonzero(np.diff(pool_of)) + 1)
        batches = [batch for pool in pools for batch in _neighbours(pool, self.grids, self.frames_per_batch)]
        return [[row[None] for row in batches[i]] for i in rng.permutation(len(batches))]


def _chosen(store: TokenStore, indices: Sequence[int] | None) -> np.ndarray:
    chosen = np.arange(len(store)) if indices is None else np.asarray(indices, np.int64)
    if len(chosen) == 0:
        raise ValueError(f"{store.folder}: no utterance to use ({len(store)} in the store, none chosen)")
    if chosen.min() < 0 or chosen.max() >= len(store):
        raise ValueError(f"{store.folder}: utterances are 0..{len(store) - 1}, not {chosen.min()}..{chosen.max()}")
    return chosen


def _cut(
    indices: np.ndarray, num_frames: np.ndarray, max_frames: int, room: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Utterances -> segments [M, 3] of at most `max_frames`, the first of `room` [N], that cover every frame once."""
    lengths, room = num_frames[indices], room[indices]
    # the first cut is random, the others follow at max_frames: in the next epoch all of them lie elsewhere
    drawn = rng.integers(1, max_frames + 1, len(indices))
    first = np.where(lengths > room, 1 + (drawn - 1) * room // max_frames, lengths)
    counts = 1 + -(-(lengths - first) // max_frames)
    owner = np.repeat(np.arange(len(indices)), counts)  # [M]
    position = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)  # [M] 0, 1, .. in its utterance
    stop = np.minimum(first[owner] + position * max_frames, lengths[owner])
    start = np.where(position == 0, 0, first[owner] + (position - 1) * max_frames)
    return np.stack([indices[owner], start, stop], axis=1)


def _neighbours(segments: np.ndarray, grids: StoreGrids, frames_per_batch: int) -> list[np.ndarray]:
    """Segments [M, 3] -> batches of neighbours in length: rows * longest <= frames_per_batch, or one row.

    The last two share what is left for them: a batch of few rows would weigh as much as the others.
    """
    lengths = grids.lengths(segments)
    order = np.argsort(-lengths, kind="stable")
    batches, i = [], 0
    while i < len(order):
        rows = max(1, frames_per_batch // int(lengths[order[i]]))
        batches.append(segments[order[i : i + rows]])
        i += rows
    if len(batches) > 1 and len(batches[-1]) < len(batches[-2]):
        batches[-2:] = np.array_split(np.concatenate(batches[-2:]), 2)
    return batches
