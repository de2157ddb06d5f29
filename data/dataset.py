"""Training batches of codes from a token store: a pure function of (seed, step).

A checkpoint needs no state from here: step n is the same batch in every run and on every rank.
N utterances, M segments (utterance, start, stop) in frames, B rows of a batch, K codebooks, T frames. With text, T
counts columns: frames and the columns that hold text only (grids.py).
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..model.delay_pattern import ABSENT
from ..model.shapes import TextConfig
from .config import FormShares
from .grids import StoreGrids
from .rows import Rows, by_row, place, stack, starts
from .text_tokenizer import TextTokenizer
from .token_store import TokenStore

POOL_BATCHES = 50  # padded rows are sorted by length within this many batches: little padding, and still well mixed


@dataclass(frozen=True)
class Plan:
    """The batches of an epoch; each is a list of rows, a row its segments [M, 3]."""

    grids: StoreGrids  # of the segments, in this epoch
    segments: np.ndarray  # [M, 3] of all rows, one row after another
    first_segment: np.ndarray  # [number of rows + 1] of each row
    first_row: np.ndarray  # [number of batches + 1] of each batch

    @property
    def num_rows(self) -> int:
        return len(self.first_segment) - 1

    def __len__(self) -> int:
        return len(self.first_row) - 1

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        return map(self.batch, range(len(self)))

    def batch(self, number: int) -> list[np.ndarray]:
        return [self.row(row) for row in range(self.first_row[number], self.first_row[number + 1])]

    def row(self, number: int) -> np.ndarray:
        return self.segments[self.first_segment[number] : self.first_segment[number + 1]]


class Batches(ABC):
    """Training batches as a function of the step: what `TokenBatches` and `MixedBatches` share."""

    seed: int
    packed: bool
    num_codebooks: int
    num_frames: int  # to train on
    frames_per_batch: int
    max_frames: int
    row_columns: int  # in a packed row
    codebook_dropout: float

    @property
    @abstractmethod
    def most_rows(self) -> int:
        """Rows of the largest batch."""

    @abstractmethod
    def batch(self, step: int) -> list[tuple[StoreGrids, np.ndarray]]:
        """The rows of a step: segments [M, 3] of the store of these grids."""

    def rows(self, step: int, rank: int = 0, world_size: int = 1) -> Rows:
        """Rows rank::world_size of a step's batch, as long as all of its rows; there may be none ([0, K, T])."""
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of 0..{world_size - 1}")
        batch = self.batch(step)
        num_columns = self.row_columns if self.packed else max(int(grids.lengths(row).sum()) for grids, row in batch)
        mine = batch[rank::world_size]
        pieces = [[grids.piece(*segment) for segment in row.tolist()] for grids, row in mine]
        rows = stack(pieces, self.num_codebooks, num_columns)
        for codes, left in zip(rows.codes, self.codebooks_left(step, len(batch))[rank::world_size], strict=True):
            codes[left:] = ABSENT
        return rows

    def announce(self, step: int, rank: int = 0, world_size: int = 1) -> None:
        """These rows will be asked for soon: the system reads their codes from the disk meanwhile."""
        for grids, row in self.batch(step)[rank::world_size]:
            for utterance, start, stop in row.tolist():
                grids.announce(utterance, start, stop)

    def codebooks_left(self, step: int, num_rows: int) -> list[int]:
        """Leading codebooks of each row of a step; the others are ABSENT."""
        rng = np.random.default_rng([self.seed, step, 1])
        dropped = rng.random(num_rows) < self.codebook_dropout
        few = rng.integers(1, max(2, self.num_codebooks), num_rows)
        return np.where(dropped & (self.num_codebooks > 1), few, self.num_codebooks).tolist()


class TokenBatches(Batches):
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
        indices: Sequence[int] | np.ndarray | None = None,
        tokenizer: TextTokenizer | None = None,
        text: TextConfig = TextConfig(),
        packed: bool = True,
        codebook_dropout: float = 0.0,
        shares: FormShares = FormShares(),
    ):
        """indices: the utterances to use (default all). tokenizer: for their transcripts (default: no text).
        codebook_dropout: share of the rows of which only the first codebooks are left, 1 to K - 1 of them. shares: for
        tagged layouts.

        Raises ValueError if there is no utterance or no row would fit.
        """
        if max_frames < 1:
            raise ValueError(f"max_frames is {max_frames}; it must be at least 1")
        if frames_per_batch < max_frames:
            raise ValueError(
                f"frames_per_batch {frames_per_batch} is less than max_frames {max_frames}: a full row would not fit"
            )
        self.store, self.frames_per_batch, self.max_frames, self.seed = store, frames_per_batch, max_frames, seed
        self.shares = shares
        self.packed, self.codebook_dropout, self.num_codebooks = packed, codebook_dropout, store.codec.num_codebooks
        self.indices = _chosen(store, indices)
        self.grids = StoreGrids(store, tokenizer, text, max_frames, self.indices)
        self.num_frames = int(store.num_frames[self.indices].sum())
        # columns of a packed row: the remainder of the division is shared among the rows
        self.row_columns = frames_per_batch // (frames_per_batch // max_frames)
        if not text.is_tagged:  # else an epoch may have more columns than another
            total = self.num_frames + int(self.grids.num_columns[self.indices].sum())
            self.row_columns = min(self.row_columns, total)
        self._ends: list[int] = []  # the step after the last one of each epoch planned so far
        self._plans: dict[int, Plan] = {}  # the two newest epochs': what is announced may be in the next one

    @property
    def most_rows(self) -> int:
        return int(np.diff(self.epoch_batches(0).first_row).max())

    def batch(self, step: int) -> list[tuple[StoreGrids, np.ndarray]]:
        epoch, index = self.locate(step)
        plan = self.epoch_batches(epoch)
        return [(plan.grids, row) for row in plan.batch(index)]

    def locate(self, step: int) -> tuple[int, int]:
        """Step -> (epoch, index of the batch in it). The first call in epoch n plans the epochs before it too."""
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        return locate(step, self._ends, lambda epoch: len(self.epoch_batches(epoch)))

    def epoch_batches(self, epoch: int) -> Plan:
        if epoch not in self._plans:
            self._plans = {kept: plan for kept, plan in self._plans.items() if kept == epoch - 1}
            self._plans[epoch] = self._plan(epoch)
        return self._plans[epoch]

    def _plan(self, epoch: int) -> Plan:
        rng, grids = np.random.default_rng([self.seed, epoch]), self.grids.of_epoch(self.shares, self.seed, epoch)
        room = self.max_frames - grids.num_columns  # [N] frames that the first segment may have
        segments = rng.permutation(_cut(self.indices, self.store.num_frames, self.max_frames, room, rng))
        return self._packed(grids, segments, rng) if self.packed else self._padded(grids, segments, rng)

    def _packed(self, grids: StoreGrids, segments: np.ndarray, rng: np.random.Generator) -> Plan:
        lengths = grids.lengths(segments)
        row_of = place(lengths, self.row_columns)
        num_rows = int(row_of.max()) + 1
        order = rng.permutation(num_rows)  # the first rows have the longest segments
        place_of = np.argsort(order)
        pieces, rows = by_row(place_of[row_of], lengths)
        count = -(-num_rows // (self.frames_per_batch // self.row_columns))
        # as evenly as can be: a last batch of few rows would weigh as much as the others
        sizes = np.full(count, num_rows // count) + (np.arange(count) < num_rows % count)
        return Plan(grids, segments[pieces], rows, starts(sizes))

    def _padded(self, grids: StoreGrids, segments: np.ndarray, rng: np.random.Generator) -> Plan:
        total = np.cumsum(grids.lengths(segments))
        num_pools = max(1, round(int(total[-1]) / (POOL_BATCHES * self.frames_per_batch)))
        pool_of = (total - 1) * num_pools // total[-1]
        pools = np.split(segments, np.flatnonzero(np.diff(pool_of)) + 1)
        batches = [batch for pool in pools for batch in _neighbours(pool, grids, self.frames_per_batch)]
        batches = [batches[i] for i in rng.permutation(len(batches))]
        sizes = [len(batch) for batch in batches]
        return Plan(grids, np.concatenate(batches), np.arange(len(segments) + 1), starts(sizes))


def locate(number: int, ends: list[int], size: Callable[[int], int]) -> tuple[int, int]:
    """A step or row -> (epoch, number in it). ends: the numbers after each epoch as far as known, which grows."""
    while not ends or ends[-1] <= number:
        ends.append((ends[-1] if ends else 0) + size(len(ends)))
    epoch = bisect_right(ends, number)
    return epoch, number - (ends[epoch - 1] if epoch else 0)


def _chosen(store: TokenStore, indices: Sequence[int] | np.ndarray | None) -> np.ndarray:
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
