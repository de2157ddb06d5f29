"""Speech that is there twice, found by its codes: whole utterances, and stretches of codebook 0 that recur.

What is found: the same codes under other names, the same recording with another start (by whole frames), cut, or
written again at another rate. A start that is off by part of a frame changes most codes: it is found only where one
side holds copies (`--copies`). F frames, N utterances, M grams.
"""

import math
from dataclasses import dataclass

import numpy as np

from ...data.token_store import TokenStore
from ...data.utterance_table import GOLDEN, mixed

GRAM, GRAM_BITS, GRAM_S = 5, 50, 0.15  # frames of a gram, and what it holds at least
LONGEST_GRAM = 64
NEAR = 0.2  # share of the grams of the shorter one
FEWEST, MUCH = 5, 40  # grams in common: at least, and whatever the share
COMMON = 32  # utterances in which a gram may be: more often it is a pause or a jingle, and tells nothing
KEPT = 20_000_000  # grams kept: of larger stores every second, third, .. by its hash
FRAMES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Sketch:
    """What is kept of the codes of a store to compare it by."""

    whole: np.ndarray  # [N] hash of all codes of an utterance
    grams: np.ndarray  # [M] hashes of codebook 0, each once for an utterance
    owner: np.ndarray  # [M] utterance of each
    every: int  # one gram in this many is kept


def gram_length(store: TokenStore) -> int:
    """Frames of codebook 0 that do not recur by chance."""
    least = max(GRAM_BITS / math.log2(store.codec.codebook_size), GRAM_S * store.codec.frame_rate)
    return min(LONGEST_GRAM, max(GRAM, math.ceil(least)))


def sketch(store: TokenStore) -> Sketch:
    total = int(store.num_frames.sum())
    every = max(1, total // KEPT)
    ends = np.cumsum(store.num_frames)
    cuts = np.searchsorted(ends, np.arange(FRAMES_AT_ONCE, total + FRAMES_AT_ONCE, FRAMES_AT_ONCE), "right")
    bounds = np.unique([0, *np.minimum(cuts, len(store)), len(store)])
    parts = [_sketch(store, int(a), int(b), every) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    whole, grams, owner = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Sketch(whole, grams, owner, every)


def _sketch(store: TokenStore, first: int, stop: int, every: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same for utterances first..stop, which are read at once."""
    codes = np.concatenate([store.codes(i) for i in range(first, stop)])  # [F, K]
    lengths = store.num_frames[first:stop]
    starts = np.cumsum(lengths) - lengths
    frames = np.zeros(len(codes), np.uint64)
    for column in codes.T:
        frames = mixed(frames * GOLDEN + column.astype(np.uint64))
    place = np.arange(len(codes)) - np.repeat(starts, lengths)  # in its utterance
    whole = np.add.reduceat(mixed(frames + place.astype(np.uint64) * GOLDEN), starts)
    length = gram_length(store)
    num_grams = max(0, len(codes) - length + 1)
    coarse, grams = codes[:, 0].astype(np.uint64), np.zeros(num_grams, np.uint64)
    changes = np.zeros(num_grams, np.int64)
    for j in range(length):
        grams = mixed(grams * GOLDEN + coarse[j : j + num_grams])
        if j:
            changes += coarse[j : j + num_grams] != coarse[j - 1 : j - 1 + num_grams]
    owner = np.repeat(np.arange(len(lengths)), lengths)[:num_grams]
    inside = place[:num_grams] + length <= lengths[owner]
    kept = inside & (changes >= length // 2) & (grams % np.uint64(every) == 0)
    grams, owner = once(grams[kept], owner[kept] + first)
    return whole, grams, owner.astype(np.int32)


def same_pairs(whole: np.ndarray) -> np.ndarray:
    """Hashes [N] -> pairs [P, 2] of utterances with equal codes: each with the next one that is equal."""
    order = np.argsort(whole, kind="stable")
    equal = np.flatnonzero(whole[order[1:]] == whole[order[:-1]])
    return np.stack([order[equal], order[equal + 1]], axis=1)


def near_pairs(grams: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """grams [M] and the recording of each [M], each gram once for a recording -> pairs [P, 2] that share many."""
    num_owners = int(owner.max(initial=-1)) + 1
    sizes = np.bincount(owner, minlength=num_owners)
    order = np.lexsort((owner, grams))
    grams, owner = grams[order], owner[order].astype(np.int64)
    _, sharers = np.unique(grams, return_counts=True)
    rare = np.repeat(sharers <= COMMON, sharers)
    # each that has a gram with the next one: enough to find a twin, and no square of their number
    linked = np.flatnonzero((grams[1:] == grams[:-1]) & rare[1:])
    keys, shared = np.unique(owner[linked] * num_owners + owner[linked + 1], return_counts=True)
    pairs = np.stack(np.divmod(keys, max(1, num_owners)), axis=1)
    return pairs[(shared >= FEWEST) & (shared >= np.minimum(MUCH, NEAR * sizes[pairs].min(axis=1)))]


@dataclass(frozen=True)
class Twins:
    """Recordings that hold the same speech. Numbers of recordings, over all stores that were compared."""

    pairs: np.ndarray  # [P, 2]
    whole: np.ndarray  # [P] bool: with equal codes from the first to the last
    local: np.ndarray  # [P, 2] numbers of recordings of their own store

    def within(self, part: np.ndarray, which: int) -> "Twins":
        """Those in one part; part: of each recording."""
        return self._chosen((part[self.pairs] == which).all(axis=1))

    def between(self, part: np.ndarray, a: int, b: int) -> "Twins":
        """Those with a side in part a and a side in part b, in this order."""
        sides = part[self.pairs]
        turned = (sides == [b, a]).all(axis=1)
        pairs, local = (np.where(turned[:, None], both[:, ::-1], both) for both in (self.pairs, self.local))
        return Twins(pairs, self.whole, local)._chosen((np.sort(sides, axis=1) == sorted((a, b))).all(axis=1))

    def _chosen(self, chosen: np.ndarray) -> "Twins":
        return Twins(self.pairs[chosen], self.whole[chosen], self.local[chosen])


def twins(sketches: list[tuple[Sketch, np.ndarray]], starts: np.ndarray) -> Twins:
    """sketches: each with the number of the recording [N] of its utterances, counted on from store to store.

    starts: the number [R] at which the count of each recording's store began.
    """
    every = max(one.every for one, _ in sketches)
    whole = np.concatenate([one.whole for one, _ in sketches])
    recording = np.concatenate([numbers for _, numbers in sketches])
    grams = np.concatenate([one.grams for one, _ in sketches])
    owner = np.concatenate([numbers[one.owner] for one, numbers in sketches])
    kept = grams % np.uint64(every) == 0
    grams, owner = once(grams[kept], owner[kept])
    same = np.sort(recording[same_pairs(whole)], axis=1)
    pairs, first = np.unique(np.concatenate([same, near_pairs(grams, owner)]), axis=0, return_index=True)
    chosen = pairs[:, 0] != pairs[:, 1]
    pairs = pairs[chosen]
    return Twins(pairs, (first < len(same))[chosen], pairs - starts[pairs])


def once(grams: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each gram once for an owner, by owner."""
    order = np.lexsort((grams, owner))
    grams, owner = grams[order], owner[order]
    new = np.ones(len(grams), bool)
    new[1:] = (grams[1:] != grams[:-1]) | (owner[1:] != owner[:-1])
    return grams[new], owner[new]
