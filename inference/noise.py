"""Random numbers that belong to a row: a function of (seed, column, slot, class) and of nothing else.

So a row draws the same codes alone, in any batch, streamed or not, and whatever other rows do. Counter-based: a hash of
32 bits (the mixing steps of Ettinger's "lowbias32"), keyed by seed and column, computed where the model is. Its
integers are int32, which wrap around.
B rows, J slots of a column, C classes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MASK = (1 << 32) - 1
COLUMNS = 16  # computed at once, for few rows: fewer calls than one for each column
MOST = 64  # all rows together
BITS = 23  # a uniform number's: as many as float32 tells apart between 0 and 1


class Noise:
    """Gumbel noise for the slots of each column: the largest of logits + noise is a draw from their softmax."""

    def __init__(self, seeds: Sequence[int], sizes: Sequence[int], device: torch.device, stream: int = 0):
        """sizes: the classes of each slot. stream: another number gives other noise."""
        self.sizes, self.stream = sizes, stream
        keys = [[key_of(seed, stream, half) for half in (0, 1)] for seed in seeds]
        self.keys = torch.tensor(keys, dtype=torch.int32, device=device)
        self.ahead: Tensor | None = None  # [B] columns that a row's own number is ahead of the number here
        self.counter = torch.arange(sum(sizes), dtype=torch.int32, device=device)
        self.num_dropped = 0  # columns before the one that is number 0
        self.count = max(1, min(COLUMNS, MOST // len(seeds)))  # columns that are computed at once
        self.first = -COLUMNS
        self.columns: list[Sequence[Tensor]] = []

    def at(self, column: int) -> Sequence[Tensor]:
        """Of each slot [B, C], float32."""
        if not self.first <= column < self.first + self.count:
            self.first, self.columns = column, []  # those before go first
            self.columns = [part.split(list(self.sizes), dim=-1) for part in self.of(column, self.count).unbind()]
        return self.columns[column - self.first]

    def set_row(self, row: int, seed: int, ahead: int) -> None:
        """Another seed for a row, whose own column is `ahead` of the number that columns had before any was dropped."""
        keys = [key_of(seed, self.stream, half) for half in (0, 1)]
        self.keys[row] = torch.tensor(keys, dtype=torch.int32, device=self.keys.device)
        self.ahead = self.keys.new_zeros(len(self.keys)) if self.ahead is None else self.ahead
        self.ahead[row] = ahead
        self.first = -COLUMNS

    def select(self, rows: Tensor) -> None:
        """These rows [R] in place of all."""
        self.keys = self.keys[rows]
        self.ahead = None if self.ahead is None else self.ahead[rows]
        self.first = -COLUMNS

    def drop(self, count: int) -> None:
        """Number the columns from a later one on."""
        self.num_dropped += count
        self.first -= count

    def of(self, first: int, num_columns: int) -> Tensor:
        """[columns, B, all classes of all slots]."""
        first += self.num_dropped
        column = torch.arange(first, first + num_columns, dtype=torch.int32, device=self.counter.device)[:, None]
        column = column if self.ahead is None else column + self.ahead
        # [columns, B, 1] each
        first_key, second_key = mix(mix(self.keys + column[..., None]) ^ self.keys).split(1, dim=-1)
        # [columns, B, classes], in place from here on
        bits = mix(mix(self.counter ^ first_key).add_(second_key))
        uniform = bits.bitwise_right_shift_(32 - BITS).bitwise_and_((1 << BITS) - 1).float()
        uniform.add_(0.5).mul_(2.0**-BITS)  # never 0 or 1, and exact in float32
        return uniform.log_().neg_().log_().neg_()


def mix(x: Tensor) -> Tensor:
    """32-bit integers -> others, each bit of which depends on every bit of x; in place."""
    x = shifted(x, 16).mul_(0x21F0AAAD)
    x = shifted(x, 15).mul_(wrapped(0xD35A2D97))
    return shifted(x, 15)


def shifted(x: Tensor, shift: int) -> Tensor:
    """x ^ (x >> shift), where zeros come in from the left whatever the sign; in place."""
    return x.bitwise_xor_((x >> shift).bitwise_and_(MASK >> shift))


def wrapped(x: int) -> int:
    """As a signed integer of 32 bits."""
    return (x + (1 << 31) & MASK) - (1 << 31)


def key_of(seed: int, stream: int, half: int) -> int:
    """A 32-bit key; all bits of a seed count, however large it is."""
    words = [half + 2 * stream]
    seed = abs(seed) * 2 + (seed < 0)
    words += [seed >> shift & MASK for shift in range(0, max(64, math.ceil(seed.bit_length() / 32) * 32), 32)]
    key = torch.zeros(1, dtype=torch.int32)
    for word in words:
        key = mix(key + wrapped(word + 0x9E3779B9))
    return int(key)
