"""The margin of a pair of recordings, score by score, and how many pairs are right.

Nats of the worse recording less those of the better one are the margin; above 0 the pair is right, a tie is half right.
Chance is 50 %. Intervals are 95 %, bootstrap over pairs. N pairs, K codebooks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import EvaluateConfig
from .items import Item, Nats

DEFINITION = (
    "codeclm-pairs-1: right where the better recording has fewer nats; sum: all codes; per s: divided by the seconds; "
    "coarse, fine: codebook 0, the others; local: the frames of the window alone, after everything before them; "
    "norm.: local less the nats of the same frames with nothing before them (arXiv 2601.06329)"
)
SCORES = ("sum", "per s", "coarse", "fine", "local", "local coarse", "norm.", "norm. coarse")
SCORERS = ("model", "bigram", "level")
TIE = 1e-6  # nats, or dB

Margins = dict[str, float]  # score -> margin; scores that a pair does not have are left out


@dataclass(frozen=True)
class Accuracy:
    """Share of pairs that are right, 0..1."""

    value: float
    interval: tuple[float, float]
    num_pairs: int
    num_ties: int


def margins(item: Item, scorer: str) -> Margins:
    """Margins of a pair under "model", "bigram" or "level" (the smaller change of level counts as the better)."""
    if scorer == "level":
        steps = item.level_step_db
        return {} if steps is None else {"sum": steps[1] - steps[0]}
    nats = item.model if scorer == "model" else item.bigram
    return {} if nats is None else _margins(nats, item.seconds)


def _margins(nats: Nats, seconds: Sequence[float]) -> Margins:
    better, worse = np.array(nats.whole)  # [K] each
    found = {
        "sum": worse.sum() - better.sum(),
        "per s": worse.sum() / seconds[1] - better.sum() / seconds[0],
        "coarse": worse[0] - better[0],
    }
    if len(better) > 1:
        found["fine"] = worse[1:].sum() - better[1:].sum()
    if nats.local is not None and nats.alone is not None:
        local, gained = np.array(nats.local), np.array(nats.local) - np.array(nats.alone)  # [2, K]
        found |= {"local": local[1].sum() - local[0].sum(), "local coarse": local[1, 0] - local[0, 0]}
        found |= {"norm.": gained[1].sum() - gained[0].sum(), "norm. coarse": gained[1, 0] - gained[0, 0]}
    return {name: float(value) for name, value in found.items()}


def right(margin: np.ndarray) -> np.ndarray:
    """Margins [N] -> 1 where a pair is right, 0.5 for a tie, else 0."""
    return np.where(np.abs(margin) <= TIE, 0.5, margin > 0)


def accuracy(margin: np.ndarray, config: EvaluateConfig = EvaluateConfig()) -> Accuracy:
    """Margins [N] -> their accuracy, with its interval."""
    hits = right(margin)
    return Accuracy(float(hits.mean()), interval(hits, config), len(hits), int((hits == 0.5).sum()))


def interval(values: np.ndarray, config: EvaluateConfig) -> tuple[float, float]:
    """95 % interval of the mean of values [N], bootstrap."""
    rng = np.random.default_rng(config.seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(config.bootstrap_samples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def by_task(items: Sequence[Item]) -> dict[str, list[Item]]:
    tasks: dict[str, list[Item]] = {}
    for item in items:
        tasks.setdefault(item.task, []).append(item)
    return tasks
