"""What the bits of held-out speech normally are, codebook by codebook: the band beside a curve.

    at the start         log2 V, of equal probabilities
    when it has learned  0.4 to 1.02 x the bits of the unigram, counted on the training codes

The embedded model needs 0.74 of the unigram's bits in codebook 0 of a voice that it never heard, and 0.87, 0.92, 0.95,
0.97, 0.98, 0.99, 1.00 in the finer ones; fine-tuned on a voice, a quarter less. Above the band a codebook has not
learned even how often each code comes; below it the held-out speech is among the training speech, or the targets leak.
"""

import numpy as np

from ..data.split import first_by_hash
from ..inference.evaluate.baselines import unigram
from .corpora import Corpus

LOWEST, HIGHEST = 0.4, 1.02  # shares of the unigram's bits
COUNTED_FRAMES = 200_000  # training frames that the unigram is counted on at most


def unigram_bits(corpus: Corpus) -> list[float]:
    """Bits of a held-out code, for each codebook, given how often each code comes in the training speech."""
    store = corpus.store
    counted = first_by_hash(store, np.unique(corpus.training), COUNTED_FRAMES)
    codes = np.concatenate([store.codes(i) for i in counted])  # [T, K]
    targets = np.concatenate([store.codes(i) for i in corpus.scored])
    size, bits = store.codec.codebook_size, []
    for k in range(codes.shape[1]):
        shares = unigram(np.bincount(codes[:, k], minlength=size))
        bits.append(float(-np.log2(shares)[targets[:, k]].mean()))
    return bits


def outside(bits: list[float], unigram: list[float]) -> str:
    """The codebooks whose bits are not in the band, in words; "" if all are."""
    high = [k for k, (own, base) in enumerate(zip(bits, unigram, strict=True)) if own > HIGHEST * base]
    low = [k for k, (own, base) in enumerate(zip(bits, unigram, strict=True)) if own < LOWEST * base]
    found = [f"above the unigram in codebook {', '.join(map(str, high))}"] if high else []
    found += [f"under {LOWEST} of the unigram in codebook {', '.join(map(str, low))}"] if low else []
    return " and ".join(found)
