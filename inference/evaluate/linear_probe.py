"""A linear probe: ridge regression from what is held of a frame to a target, tested on other recordings.

Classes are regressed on, a column for each, with frames weighted so that every class counts as much; the largest
column is the answer. N frames, D width, K codes of a frame, C columns, R recordings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = (1e-4, 1e-2, 0.3, 10.0)  # in variances of a feature; the best on a part of the training recordings is taken
STEPS = 60  # conjugate gradients end after this many

Split = tuple[np.ndarray, np.ndarray, np.ndarray]  # [N] bool: to fit on, to choose the penalty on, to test on


@dataclass(frozen=True)
class Probed:
    """How well a probe tells a target: R2 of a number, balanced accuracy of classes."""

    value: float
    interval: tuple[float, float]  # 95 %, bootstrap over recordings
    chance: float
    num_frames: int  # tested on
    num_recordings: int


def probe(
    features: Tensor, target: np.ndarray, num_classes: int, recording: np.ndarray, split: Split, draws: int, seed: int
) -> Probed:
    """features: [N, D], or codes [N, K] as integers, which stand for a 1 among zeros each. target: [N] numbers, or
    classes 0..num_classes-1. recording: [N] whose frames they are."""
    fit, choose, test = split
    if num_classes:
        columns = np.eye(num_classes, dtype=np.float32)[target.astype(int)]
    else:
        columns = target.astype(np.float32)[:, None]
    tried = _predictions(features, columns, fit, choose, num_classes, PENALTIES)
    choices = [_score(_answers(predicted, num_classes), target[choose], num_classes) for predicted in tried]
    best = PENALTIES[int(np.argmax(choices))]
    (predicted,) = _predictions(features, columns, fit | choose, test, num_classes, (best,))
    answers, truth = _answers(predicted, num_classes), target[test]
    sums = _sums(answers, truth, num_classes, recording[test])
    rng = np.random.default_rng(seed)
    count = len(sums)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws) @ sums
    low, high = np.quantile(_from_sums(drawn, num_classes), [0.025, 0.975])
    value = float(_from_sums(sums.sum(axis=0, keepdims=True), num_classes)[0])
    return Probed(value, (float(low), float(high)), 1 / num_classes if num_classes else 0.0, len(truth), count)


def _predictions(
    features: Tensor,
    columns: np.ndarray,
    fit: np.ndarray,
    test: np.ndarray,
    num_classes: int,
    penalties: Sequence[float],
) -> list[np.ndarray]:
    """For each penalty the columns [N', C] of the frames to test, fitted on others."""
    y = torch.from_numpy(columns[fit])
    weight = 1 / (num_classes * y.mean(dim=0).clamp_min(1e-9)) if num_classes else torch.ones(1)
    weight = (y @ weight[:, None])[:, 0] if num_classes else torch.ones(len(y))
    weight = weight / weight.sum()
    mean = weight @ y
    train, tested = features[torch.from_numpy(fit)], features[torch.from_numpy(test)]
    if features.is_floating_point():
        centre = weight @ train
        scale = (weight @ (train - centre).square()).sqrt().clamp_min(1e-6)
        maps = ridge((train - centre) / scale, y - mean, weight, penalties)
        return [((tested - centre) / scale @ each + mean).numpy() for each in maps]
    tables = ridge_of_codes(train, int(features.max()) + 1, y - mean, weight, penalties)
    return [(F.embedding_bag(tested, each, mode="sum") + mean).numpy() for each in tables]


def ridge(x: Tensor, y: Tensor, weight: Tensor, penalties: Sequence[float]) -> list[Tensor]:
    """x [N, D], y [N, C], weight [N] with the sum 1 -> the maps [D, C] that minimise error + penalty * their square."""
    weighted = x * weight[:, None]
    variances, axes = torch.linalg.eigh((weighted.T @ x).double())
    along = axes.T @ (weighted.T @ y).double()
    return [(axes @ (along / (variances.clamp_min(0)[:, None] + penalty))).float() for penalty in penalties]


def ridge_of_codes(codes: Tensor, size: int, y: Tensor, weight: Tensor, penalties: Sequence[float]) -> list[Tensor]:
    """The same for codes [N, K] below V' = size, each a 1 among V' zeros: tables [V', C], by conjugate gradients.

    A penalty is in variances of a code that has its fair share of the frames.
    """
    flat, num_codes = codes.flatten(), codes.shape[1]

    def transposed(values: Tensor) -> Tensor:
        spread = (values * weight[:, None]).repeat_interleave(num_codes, dim=0)
        return values.new_zeros(size, values.shape[1]).index_add_(0, flat, spread)

    share = transposed(torch.ones(len(codes), 1))  # [V', 1]
    right = transposed(y)
    tables = []
    for penalty in penalties:
        cost = penalty * num_codes / size

        def product(table: Tensor, cost: float = cost) -> Tensor:
            return transposed(F.embedding_bag(codes, table, mode="sum")) + cost * table

        tables.append(conjugate_gradients(product, right, share + cost))
    return tables


def conjugate_gradients(product: Callable[[Tensor], Tensor], right: Tensor, diagonal: Tensor) -> Tensor:
    """Solve product(x) = right [V', C], each column on its own; diagonal: the product's, to begin near."""
    x = torch.zeros_like(right)
    rest = right.clone()
    direction = rest / diagonal
    size = (rest * direction).sum(dim=0)
    first = size.clone()
    for _ in range(STEPS):
        moved = product(direction)
        step = size / (direction * moved).sum(dim=0).clamp_min(1e-30)
        x += step * direction
        rest -= step * moved
        near = rest / diagonal
        new_size = (rest * near).sum(dim=0)
        if bool((new_size <= 1e-6 * first).all()):
            break
        direction = near + new_size / size.clamp_min(1e-30) * direction
        size = new_size
    return x


def _answers(predicted: np.ndarray, num_classes: int) -> np.ndarray:
    return predicted.argmax(axis=1) if num_classes else predicted[:, 0]


def _score(answers: np.ndarray, truth: np.ndarray, num_classes: int) -> float:
    everything = np.zeros(len(truth), dtype=int)
    return float(_from_sums(_sums(answers, truth, num_classes, everything), num_classes)[0])


def _sums(answers: np.ndarray, truth: np.ndarray, num_classes: int, recording: np.ndarray) -> np.ndarray:
    """[R, ...] of each recording: what the score of any choice of recordings is computed from."""
    _, row = np.unique(recording, return_inverse=True)
    if num_classes:
        classes = np.eye(num_classes)[truth.astype(int)]
        parts = [classes, classes * (answers == truth)[:, None]]
    else:
        parts = [np.stack([np.ones(len(truth)), truth, truth**2, (answers - truth) ** 2], axis=1)]
    sums = np.zeros((row.max() + 1, sum(part.shape[1] for part in parts)))
    np.add.at(sums, row, np.concatenate(parts, axis=1))
    return sums


def _from_sums(sums: np.ndarray, num_classes: int) -> np.ndarray:
    """[..., ...] -> the score of each row."""
    if num_classes:
        frames, hits = sums[:, :num_classes], sums[:, num_classes:]
        there = frames > 0  # a draw may lack a rare class
        return np.where(there, hits / np.where(there, frames, 1), 0).sum(axis=1) / there.sum(axis=1)
    count, total, squares, error = sums.T
    return 1 - error / (squares - total**2 / count)
