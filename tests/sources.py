"""Sources of codes whose entropy is known exactly, and what each pattern of SpeechLM can reach on them.

A Markov chain over frames of K codes: everything about it is a finite sum, in float64 and without approximation.
N sequences, K codebooks, V codebook size, T frames. A cell is the place (k, t) of a code.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

Cell = tuple[int, int]


class MarkovSource:
    """Every frame is drawn given the one before it, the first from the stationary distribution.

    kernel: 2K axes of size V, the probability of a frame (last K axes) given the frame before (first K); none is 0.
    """

    def __init__(self, kernel: np.ndarray):
        self.kernel = kernel
        self.num_codebooks, self.codebook_size = kernel.ndim // 2, kernel.shape[0]
        self.stationary = stationary(self._transitions()).reshape(kernel.shape[: self.num_codebooks])
        self._tables: dict[tuple[Cell, ...], tuple[np.ndarray, float]] = {}

    @classmethod
    def copying(cls, codebook_size: int, copies: Sequence[Mapping[Cell, float]]) -> "MarkovSource":
        """Codebook k repeats the code of codebook j, `lag` frames ago, with the probability copies[k][j, lag].

        Otherwise it is uniform. lag is 1, or 0 for j < k.
        """
        num_codebooks, kernel = len(copies), np.ones((codebook_size,) * 2 * len(copies))
        for k, parents in enumerate(copies):
            code = np.full((1,) * kernel.ndim, (1 - sum(parents.values())) / codebook_size)
            for (j, lag), probability in parents.items():
                assert lag == 1 or (lag == 0 and j < k), "a code repeats one that comes before it"
                shape = [1] * kernel.ndim
                shape[j + num_codebooks * (1 - lag)] = shape[k + num_codebooks] = codebook_size
                code = code + probability * np.eye(codebook_size).reshape(shape)
            kernel = kernel * code
        return cls(kernel)

    def _transitions(self) -> np.ndarray:
        """The kernel as a matrix [V^K, V^K] over whole frames."""
        return self.kernel.reshape(self.codebook_size**self.num_codebooks, -1)

    def sample(self, num_sequences: int, num_frames: int, seed: int) -> Tensor:
        """Codes [N, K, T] (int64)."""
        rng = np.random.default_rng(seed)
        frames = np.empty((num_sequences, num_frames), dtype=np.int64)
        probabilities = np.broadcast_to(self.stationary.ravel(), (num_sequences, self.stationary.size))
        for t in range(num_frames):
            draws = rng.random((num_sequences, 1))
            below = (probabilities.cumsum(axis=1) < draws).sum(axis=1)
            frames[:, t] = below.clip(max=self.stationary.size - 1)  # the sum may round to just under 1
            probabilities = self._transitions()[frames[:, t]]
        return torch.from_numpy(np.stack(np.unravel_index(frames, self.stationary.shape), axis=1))

    def entropy_rate(self) -> float:
        """Bits per frame in the long run: the entropy of a frame given the one before it."""
        return float(self.stationary.ravel() @ -(self._transitions() * np.log2(self._transitions())).sum(axis=1))

    def bits_per_frame(self, num_frames: int, pattern: str = "flatten", delays: Sequence[int] = ()) -> float:
        """The least that a pattern can reach on sequences of `num_frames`, in the mean over all of them.

        "flatten" reaches the entropy, and "depth" too; "delay" and "parallel" predict all codes of a step at once and
        pay the information that these have about each other. delays: frames that each codebook lags (default: none).
        """
        cells = [(k, t) for k in range(self.num_codebooks) for t in range(num_frames)]
        nats = sum(self._table(cell, num_frames, pattern, delays)[1] for cell in cells)
        return nats / num_frames / math.log(2)

    def blind_bits(self, num_frames: int, pattern: str, delays: Sequence[int] = ()) -> float:
        """Bits per frame of `bits_per_frame` above the entropy: conditional mutual information within a step."""
        return self.bits_per_frame(num_frames, pattern, delays) - self.bits_per_frame(num_frames)

    def nll(self, codes: Tensor, pattern: str = "flatten", delays: Sequence[int] = ()) -> Tensor:
        """Nats [N, K, T] (float64) of each code of codes [N, K, T], given exactly what `pattern` sees before it."""
        values, num_frames = codes.numpy(), codes.shape[2]
        nats = np.empty(values.shape)
        for k in range(self.num_codebooks):
            for t in range(num_frames):
                log_p = self._table((k, t), num_frames, pattern, delays)[0]
                seen = self._seen((k, t), num_frames, pattern, delays)
                nats[:, k, t] = -log_p[tuple(values[:, j, u] for j, u in [*seen, (k, t)])]
        return torch.from_numpy(nats)

    def _seen(self, cell: Cell, num_frames: int, pattern: str, delays: Sequence[int]) -> list[Cell]:
        """The cells that a pattern sees when it predicts `cell`, from the last frame that it sees whole."""
        lags = delays or (0,) * self.num_codebooks
        step = cell[1] + lags[cell[0]]
        frames = range(max(0, step - max(lags) - 1), min(num_frames, step + 1))
        codebooks, turn = range(self.num_codebooks), place(cell, pattern, lags)
        return [(j, u) for u in frames for j in codebooks if place((j, u), pattern, lags) < turn]

    def _table(self, cell: Cell, num_frames: int, pattern: str, delays: Sequence[int]) -> tuple[np.ndarray, float]:
        """(ln p(cell | what is seen), an axis for each cell seen and the last for the cell; its mean, negative)."""
        cells = [*self._seen(cell, num_frames, pattern, delays), cell]
        first = min(t for _, t in cells)
        cells = tuple((k, t - first) for k, t in cells)  # stationary: a table holds wherever it is moved to
        if cells not in self._tables:
            joint = self._joint(cells)
            log_p = np.log(joint) - np.log(joint.sum(axis=-1, keepdims=True))
            self._tables[cells] = log_p, -float((joint * log_p).sum())
        return self._tables[cells]

    def _joint(self, cells: Sequence[Cell]) -> np.ndarray:
        """The joint distribution of `cells`, an axis for each; all other codes of frames 0, 1, ... are summed over."""
        size, last = self.num_codebooks, max(t for _, t in cells)
        factors: list[np.ndarray | list[int]] = [self.stationary, list(range(size))]
        for t in range(last):
            factors += [self.kernel, list(range(t * size, (t + 2) * size))]
        return np.einsum(*factors, [t * size + k for k, t in cells], optimize=True)


def place(cell: Cell, pattern: str, delays: Sequence[int]) -> tuple[int, int]:
    """When a pattern predicts a code: it sees the codes whose place is before, and no other."""
    k, t = cell
    return t + delays[k], k if pattern in ("depth", "flatten") else 0


def stationary(transitions: np.ndarray) -> np.ndarray:
    """The distribution [S] that `transitions` [S, S] (rows sum to 1) leaves as it is."""
    size = len(transitions)
    equations = np.vstack([transitions.T - np.eye(size), np.ones(size)])
    return np.linalg.lstsq(equations, np.append(np.zeros(size), 1.0), rcond=None)[0]


# what a codebook depends on: the frame's coarser codebooks, its own past, both, or (zigzag) codebook 0 on the finer
# codebook a frame ago and that one on codebook 0, so that one frame of delay hides what two frames show
SOURCES = {
    "within": MarkovSource.copying(4, [{}, {(0, 0): 0.8}, {(1, 0): 0.8}]),
    "across": MarkovSource.copying(4, [{(0, 1): 0.8}, {(1, 1): 0.7}, {(2, 1): 0.6}]),
    "both": MarkovSource.copying(4, [{(0, 1): 0.5}, {(0, 0): 0.5, (1, 1): 0.4}, {(1, 0): 0.5, (2, 1): 0.4}]),
    "zigzag": MarkovSource.copying(6, [{(1, 1): 0.8}, {(0, 0): 0.8}]),
}
