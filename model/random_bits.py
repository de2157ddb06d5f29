"""Random bits that belong to a row in training: a function of the row's key, of a place in it, and of nothing else.

So a row draws the same on any number of processes, in any microbatch, and again where a block is computed twice.
SplitMix64: a counter, hashed, where the model is. (Generation has 32-bit noise of its own, which its kernels share.)
B rows, S steps, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LANES = 4  # 16-bit numbers in 64 bits
FRAMES, HEARD, TOLD, DEPTH_STEPS, DEPTH_DROPOUT = range(-5, 0)  # purposes of a key; the blocks' are 0 and on


def signed(value: int) -> int:
    """64 bits, as int64 has them."""
    value &= (1 << 64) - 1
    return value - (value >> 63 << 64)


GAMMA = signed(0x9E3779B97F4A7C15)
INVERSE = signed(pow(GAMMA, -1, 1 << 64))
FIRST, SECOND = signed(0xBF58476D1CE4E5B9), signed(0x94D049BB133111EB)


def random_bits(keys: Tensor, count: int) -> Tensor:
    """Keys [...] -> [..., count] random int64; the first ones are the same whatever the count."""
    # GAMMA outside: torch.compile takes arange * GAMMA for an index, and is wrong about products of more than 64 bits
    z = (keys[..., None] * INVERSE + torch.arange(1, count + 1, device=keys.device)) * GAMMA
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * FIRST
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * SECOND
    return z ^ (z >> 31 & (1 << 33) - 1)


def fold(keys: Tensor, number: int) -> Tensor:
    """Other keys [...], for each purpose that has a number."""
    return random_bits(keys ^ signed(number * FIRST), 1)[..., 0]


def row_keys(seed: int, step: int, rows: Sequence[int]) -> Tensor:
    """[B] the keys of some rows of a step's batch, by their numbers in the whole of it."""
    keys = torch.tensor(list(rows), dtype=torch.int64)
    return fold(keys + fold(fold(torch.tensor(seed), 0), step), 1)


def chosen(keys: Tensor, num_steps: int, width: int, share: float) -> Tensor:
    """[B, S, D] bool: true with probability `share`, to 1/65536. Keys: [B]; no step depends on the number of steps."""
    bits = random_bits(keys, num_steps * -(-width // LANES)).view(len(keys), num_steps, -1)
    last = max(0, round(share * 65536) - 1) - 32768  # what an int16 holds, also at share 1
    return bits.view(torch.int16)[..., :width] <= last


def dropout(x: Tensor, share: float, keys: Tensor) -> Tensor:
    """x [B, S, D] with a share of its values 0 and the others scaled up."""
    return x.masked_fill(chosen(keys, x.shape[1], x.shape[2], share), 0.0) / (1 - round(share * 65536) / 65536)
