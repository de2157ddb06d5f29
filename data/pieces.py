"""A long recording in pieces: it is cut where it is quiet. S samples."""

from collections.abc import Iterable, Iterator

import numpy as np

CUT_FROM = 0.8  # share of the longest piece after which the quietest place is sought
CUT_WINDOW_S = 0.02


def pieces_of(
    blocks: Iterable[np.ndarray], limit: int, least: int, hop_length: int, sample_rate: int
) -> Iterator[np.ndarray]:
    """Blocks [S] -> pieces of at most `limit` samples, each but the last a whole number of frames.

    The last may be up to `least` samples longer: never a mere scrap.
    """
    held = np.zeros(0, np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) >= limit + least:
            cut = quietest_cut(held, limit, hop_length, sample_rate)
            yield held[:cut]
            held = held[cut:]
    yield held


def quietest_cut(audio: np.ndarray, limit: int, hop_length: int, sample_rate: int) -> int:
    """Where to cut audio [S > limit]: the last of the quietest places in the last fifth before `limit`, on a frame."""
    half = round(CUT_WINDOW_S * sample_rate / 2)
    cuts = hop_length * np.arange(-(-round(CUT_FROM * limit) // hop_length), limit // hop_length + 1)
    first = max(0, int(cuts[0]) - half)
    energy = np.cumsum(np.square(audio[first : limit + half], dtype=np.float64))
    energy = np.concatenate([[0.0], energy])  # energy of the samples before each
    starts, stops = cuts - half - first, np.minimum(cuts + half - first, len(energy) - 1)
    energies = energy[stops] - energy[np.maximum(starts, 0)]
    return int(cuts[len(cuts) - 1 - np.argmin(energies[::-1])])
