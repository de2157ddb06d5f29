"""Training batches from several corpora that are mixed by weight: a pure function of (seed, step), as dataset.py's are.

unit      0 1 2 3 4 5 6 7 8 ..     unit: a packed row; where rows are padded, all rows of a batch
corpus    0 1 0 0 1 0 0 1 0 ..     weights 2 and 1
in it     0 0 1 2 1 3 4 2 5 ..     each corpus is gone through in its own epochs, at its own speed
"""

from collections.abc import Sequence

import numpy as np

from .dataset import Batches, TokenBatches, locate
from .grids import StoreGrids
from .utterance_table import GOLDEN

BLOCK_STEPS = 256  # steps whose units are drawn together


class MixedBatches(Batches):
    """Every batch has its rows from several corpora, whose share of the rows (padded: of the batches) are the weights.

    In any stretch of rows the shares are met to about one row: which corpus a row is from follows a sequence that is
    as even as can be, not dice.
    """

    def __init__(self, parts: Sequence[TokenBatches], weights: Sequence[float]):
        """parts: batches of each corpus, all with the same settings. Raises ValueError for weights that are none."""
        if len(weights) != len(parts) or not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"the weights {list(weights)} must be {len(parts)} numbers, each more than 0 and finite")
        first = parts[0]
        self.parts, self.seed, self.packed = list(parts), first.seed, first.packed
        self.num_codebooks, self.codebook_dropout = first.num_codebooks, first.codebook_dropout
        self.frames_per_batch, self.max_frames = first.frames_per_batch, first.max_frames
        self.row_columns = max(part.row_columns for part in parts)
        self.num_units = first.frames_per_batch // self.row_columns if self.packed else 1  # in a step
        self.num_frames = sum(part.num_frames for part in parts)
        shares = np.cumsum(weights)[:-1] / np.sum(weights)
        self._limits = (shares * 2.0**64).astype(np.uint64)  # between the corpora
        self._start = np.random.default_rng([self.seed, 2]).integers(2**64, dtype=np.uint64)
        self._counts = [np.zeros(len(parts), np.int64)]  # units of each corpus before each block
        self._ends: list[list[int]] = [[] for _ in parts]

    @property
    def most_rows(self) -> int:
        return self.num_units if self.packed else max(part.most_rows for part in self.parts)

    def batch(self, step: int) -> list[tuple[StoreGrids, np.ndarray]]:
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        block, first = step // BLOCK_STEPS, step % BLOCK_STEPS * self.num_units
        while len(self._counts) <= block + 1:
            drawn = self._corpora(len(self._counts) - 1)
            self._counts.append(self._counts[-1] + np.bincount(drawn, minlength=len(self.parts)))
        drawn, rows = self._corpora(block), []
        numbers = self._counts[block] + np.bincount(drawn[:first], minlength=len(self.parts))
        for corpus in drawn[first : first + self.num_units]:
            rows += self._unit(int(corpus), int(numbers[corpus]))
            numbers[corpus] += 1
        return rows

    def _corpora(self, block: int) -> np.ndarray:
        """The corpus of each unit of a block: multiples of the golden ratio, modulo 1, fill 0..1 evenly."""
        size = BLOCK_STEPS * self.num_units
        units = np.arange(block * size, (block + 1) * size, dtype=np.uint64)
        return np.searchsorted(self._limits, units * GOLDEN + self._start, "right")

    def _unit(self, corpus: int, number: int) -> list[tuple[StoreGrids, np.ndarray]]:
        part = self.parts[corpus]

        def size(epoch: int) -> int:
            plan = part.epoch_batches(epoch)
            return plan.num_rows if self.packed else len(plan)

        epoch, number = locate(number, self._ends[corpus], size)
        plan = part.epoch_batches(epoch)
        rows = [plan.row(number)] if self.packed else plan.batch(number)
        return [(plan.grids, row) for row in rows]
