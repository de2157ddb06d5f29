"""The codes of a store: how evenly each codebook is used, and what counting alone makes of them.

K codebooks, V codebook size.
"""

import math

import numpy as np

from ...data.split import first_by_hash
from ..evaluate.score import baseline_scores
from .findings import Examination, count
from .speech import Speech

COUNTED_FRAMES = 500_000  # frames of the utterances that the bounds are counted on
FEWEST_FRAMES = 200  # frames from which something can be said of a codebook
DEAD_SHARE = 0.1  # share of the bits a code could carry
UTTERANCES_AT_ONCE = 4096


def examine_codes(speech: Speech, seen: Examination) -> None:
    info = speech.store.codec
    counts = code_counts(speech)
    bits = entropies(counts)
    used = (counts > 0).sum(axis=1)
    most = math.log2(info.codebook_size)
    seen.facts |= {"used_codes": used.tolist(), "entropy_bits": bits.tolist()}
    seen.lines.append(("used codes", f"{' '.join(map(str, used))} of {info.codebook_size}"))
    seen.lines.append(("entropy", f"{' '.join(f'{value:.1f}' for value in bits)} of {most:.0f} bits a code"))
    if counts[0].sum() >= FEWEST_FRAMES:
        for k in np.flatnonzero(bits < DEAD_SHARE * most):
            seen.error(
                "dead codebook",
                f"codebook {k} carries {bits[k]:.2f} of {most:.0f} bits a code ({count(int(used[k]), 'code')} used)",
                "train the codec again, or take fewer codebooks (--codec NAME:K)",
            )
    examine_bounds(speech, seen)


def examine_bounds(speech: Speech, seen: Examination) -> None:
    """Unigram and bigram of each half of the utterances, counted on the other."""
    store, info = speech.store, speech.store.codec
    indices = first_by_hash(store, speech.originals.tolist(), COUNTED_FRAMES)
    seen.facts["raw_bits_per_second"] = raw = info.frame_rate * info.num_codebooks * math.log2(info.codebook_size)
    if len(indices) < 2:
        return
    unigram, bigram = (
        float(info.frame_rate / math.log(2) * nats.sum() / store.num_frames[indices].sum())
        for nats in baseline_scores(store, indices, None)
    )
    seen.facts |= {"unigram_bits_per_second": unigram, "bigram_bits_per_second": bigram}
    seen.lines.append(("counting", f"unigram {unigram:.1f}, bigram {bigram:.1f}, raw codes {raw:.1f} bits/s"))


def code_counts(speech: Speech) -> np.ndarray:
    """How often each code of each codebook occurs [K, V]."""
    store, info = speech.store, speech.store.codec
    counts = np.zeros((info.num_codebooks, info.codebook_size), np.int64)
    for first in range(0, len(store), UTTERANCES_AT_ONCE):
        codes = np.concatenate([store.codes(i) for i in range(first, min(first + UTTERANCES_AT_ONCE, len(store)))])
        for k, column in enumerate(codes.T):
            counts[k] += np.bincount(column, minlength=info.codebook_size)
    return counts


def entropies(counts: np.ndarray) -> np.ndarray:
    """Counts [K, V] -> bits [K]."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    return np.abs((shares * np.log2(np.where(shares > 0, shares, 1.0))).sum(axis=1))
