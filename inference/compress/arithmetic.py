"""Arithmetic coding: classes of known probability <-> bytes, as few as the probabilities allow.

    logits -> integer frequencies that sum to TOTAL -> Encoder -> bytes -> Decoder, given the same frequencies

The decoder needs the encoder's frequencies to the last unit, from logits that it computes itself: in another batch,
with other threads, on another machine. Float64 logits differ there by some 1e-13. So they are first rounded to a grid,
and everything after that is integer arithmetic. Where a logit is so close to a jump of the rounding that it might land
on the other side elsewhere (once in a few minutes of speech), the encoder says so in the stream and codes that one
class with equal frequencies: logits may move by MARGIN / 2 and what is decoded stays the same. Logits computed in
float32 move further than that. N distributions, C classes.
"""

import math
from dataclasses import dataclass
from decimal import Decimal
from functools import cache

import numpy as np

TOTAL_BITS = 32
TOTAL = 1 << TOTAL_BITS  # frequencies of a distribution sum to this
GRID = 32  # logits are rounded to 1 / GRID nats: 1 / (8 GRID^2) nats a class at most, less than 0.05 % of its entropy
MARGIN = 2.0**-32  # nats; a difference of two logits this close to a jump of the rounding is not trusted
PHASE = 0.382  # where in its cell the largest logit lies: no simple fraction, so round differences are far from jumps
MAX_NATS = 21  # a class this far below the likeliest has frequency 1
WEIGHT_BITS = 30  # times TOTAL still fits into an int64
# trusted or not: saying "not" costs 20 bits, about once in 65,000 distributions over 1024 classes
TRUST = np.array([TOTAL - (1 << 12), 1 << 12])

LEAST_BITS = -math.log2(TRUST[0] / TOTAL)  # least price of a code, however likely

TOP = 1 << 64  # the coder's interval is at most this wide
BOTTOM = 1 << 56  # and at least this: a byte leaves when it gets narrower


@dataclass(frozen=True)
class Distributions:
    """Integer frequencies of N distributions over C classes."""

    frequencies: np.ndarray  # [N, C] int64, at least 1, each row sums to TOTAL
    trusted: np.ndarray  # [N] bool: no other machine can come to other frequencies


def distributions(logits: np.ndarray) -> Distributions:
    """Logits [N, C] in float64 -> their frequencies.

    Raises FloatingPointError if a logit is NaN or +inf, ValueError for another dtype or more classes than fit.
    """
    if logits.dtype != np.float64 or logits.ndim != 2 or not 1 <= logits.shape[1] <= 1 << 16:
        raise ValueError(f"logits must be float64 [N, C] with C up to 65536, not {logits.dtype} {list(logits.shape)}")
    largest = logits.max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():
        raise FloatingPointError("the model gave NaN or infinite logits: its weights or its input are broken")
    position = np.maximum((logits - largest) * GRID, -MAX_NATS * GRID) + PHASE
    cell = np.floor(position)
    from_jump = np.minimum(position - cell, cell + 1 - position)
    weights = _weights()[-cell.astype(np.int64)]  # [N, C], the largest is 2^WEIGHT_BITS
    spare = TOTAL - logits.shape[1]
    frequencies = 1 + weights * spare // weights.sum(axis=1, keepdims=True)
    rows, likeliest = np.arange(len(logits)), weights.argmax(axis=1)
    frequencies[rows, likeliest] += TOTAL - frequencies.sum(axis=1)  # what rounding down has left over
    return Distributions(frequencies, from_jump.min(axis=1) >= MARGIN * GRID)


@cache
def _weights() -> np.ndarray:
    """exp(-i / GRID) in integers, for every cell i of the grid."""
    # decimal's exp is correctly rounded by its specification; a C library's may differ in the last bit
    exact = [(Decimal(-i) / GRID).exp() for i in range(MAX_NATS * GRID + 1)]
    return np.array([int(value * (1 << WEIGHT_BITS)) for value in exact], np.int64)


@cache
def _equal(num_classes: int) -> np.ndarray:
    frequencies = np.full(num_classes, TOTAL // num_classes, np.int64)
    frequencies[0] += TOTAL % num_classes
    return frequencies


class Encoder:
    """Classes in, bytes out: a range coder with carry, which spends -log2(frequency / TOTAL) bits on a class."""

    def __init__(self) -> None:
        self._low, self._width, self._output = 0, TOP, bytearray()

    def encode(self, index: int, frequencies: np.ndarray) -> None:
        """Append class `index` of a distribution [C]. Raises ValueError if there is no such class."""
        if not 0 <= index < len(frequencies):
            raise ValueError(f"class {index} is not in a distribution over {len(frequencies)}")
        unit = self._width >> TOTAL_BITS
        self._low += unit * int(frequencies[:index].sum())
        self._width = unit * int(frequencies[index])
        self._carry()
        while self._width < BOTTOM:
            self._output.append(self._low >> 56)
            self._low, self._width = (self._low << 8) % TOP, self._width << 8

    def encode_from(self, index: int, source: Distributions, row: int) -> None:
        """Append class `index` of one row, in a way that `Decoder.decode_from` understands on any machine."""
        trusted = bool(source.trusted[row])
        self.encode(int(not trusted), TRUST)
        self.encode(index, source.frequencies[row] if trusted else _equal(source.frequencies.shape[1]))

    def finish(self) -> bytes:
        """All bytes; the encoder must not be used afterwards."""
        self._low += BOTTOM - 1  # the first byte of this, followed by zeros, lies in the interval
        self._carry()
        self._output.append(self._low >> 56)
        return bytes(self._output)

    def _carry(self) -> None:
        if self._low < TOP:
            return
        self._low -= TOP
        last = len(self._output) - 1
        while self._output[last] == 0xFF:
            self._output[last] = 0
            last -= 1
        self._output[last] += 1


class Decoder:
    """The bytes of an `Encoder` in, its classes out, given the same distributions in the same order.

    Other bytes give other classes, or a ValueError as soon as no encoder could have written them.
    """

    def __init__(self, data: bytes):
        self._data, self._position, self._width = data, 8, TOP
        self._offset = int.from_bytes(data[:8].ljust(8, b"\0"))  # where the coded point lies in the interval

    def decode(self, frequencies: np.ndarray) -> int:
        """The next class of a distribution [C]. Raises ValueError if the data are damaged or used up."""
        unit = self._width >> TOTAL_BITS
        cumulative = frequencies.cumsum()
        index = int(np.searchsorted(cumulative, self._offset // unit, side="right"))
        if index == len(frequencies):
            raise ValueError("the coded data are damaged")
        frequency = int(frequencies[index])
        self._offset -= unit * (int(cumulative[index]) - frequency)
        self._width = unit * frequency
        while self._width < BOTTOM:
            self._offset, self._width = self._offset << 8 | self._next_byte(), self._width << 8
        return index

    def decode_from(self, source: Distributions, row: int) -> int:
        """The next class, of one row, as `Encoder.encode_from` has written it."""
        trusted = self.decode(TRUST) == 0
        return self.decode(source.frequencies[row] if trusted else _equal(source.frequencies.shape[1]))

    def _next_byte(self) -> int:
        # an encoder writes the first of the last eight bytes that are looked at; the others are zeros
        if self._position > len(self._data) + 6:
            raise ValueError("the coded data are cut off")
        byte = self._data[self._position] if self._position < len(self._data) else 0
        self._position += 1
        return byte
