"""What a speech LM must beat: per-codebook unigram and first-order bigram, counted on training codes.

Both are smoothed towards what is coarser (bigram -> unigram -> uniform), with a weight chosen by leave-one-out
likelihood on the codes they are counted on. K codebooks, V codebook size, T frames.
"""

from collections.abc import Iterable

import numpy as np

WEIGHTS = 2.0 ** np.arange(-4, 13)  # candidate pseudo-counts of the coarser distribution


def unigram(counts: np.ndarray) -> np.ndarray:
    """counts [V] of codes -> their smoothed shares."""
    return (counts + 0.5) / (counts.sum() + 0.5 * len(counts))


class CountBaselines:
    """Unigram and bigram models of every codebook; the bigram's first code is given a "begin" symbol."""

    def __init__(self, utterances: Iterable[np.ndarray], codebook_size: int, num_codebooks: int):
        """utterances: codes [T, K] each."""
        self.size = codebook_size
        pairs = np.zeros((num_codebooks, codebook_size + 1, codebook_size), np.float32)
        for codes in utterances:
            for k in range(num_codebooks):
                column = codes[:, k].astype(np.int64)
                np.add.at(pairs[k], (np.concatenate([[codebook_size], column[:-1]]), column), 1)
        self.pairs, self.totals = pairs, pairs.sum(axis=2)  # [K, V + 1, V] and [K, V + 1]
        self.unigram = np.stack([unigram(pairs[k].sum(axis=0)) for k in range(num_codebooks)])  # [K, V]
        self.weights = [self._best_weight(pairs[k], self.unigram[k]) for k in range(num_codebooks)]

    @staticmethod
    def _best_weight(pairs: np.ndarray, unigram: np.ndarray) -> float:
        before, code = pairs.nonzero()
        count, total = pairs[before, code], pairs.sum(axis=1)[before]
        # leave-one-out: each occurrence is predicted from all the others
        likelihoods = [
            np.sum(count * np.log((count - 1 + weight * unigram[code]) / (total - 1 + weight))) for weight in WEIGHTS
        ]
        return float(WEIGHTS[int(np.argmax(likelihoods))])

    def nll(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """codes [T, K] -> nats of (unigram, bigram) summed over frames, each [K]."""
        unigram, bigram = np.zeros(codes.shape[1]), np.zeros(codes.shape[1])
        for k in range(codes.shape[1]):
            column = codes[:, k].astype(np.int64)
            before = np.concatenate([[self.size], column[:-1]])
            base, weight = self.unigram[k][column], self.weights[k]
            unigram[k] = -np.log(base).sum()
            joint = self.pairs[k][before, column] + weight * base
            bigram[k] = -np.log(joint / (self.totals[k][before] + weight)).sum()
        return unigram, bigram
