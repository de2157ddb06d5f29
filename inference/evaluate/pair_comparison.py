"""Two runs on the same pairs, item by item: which model is right more often, and on which pairs the two differ."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import EvaluateConfig
from ..text_table import text_table
from .items import Item
from .margins import SCORES, by_task, interval, margins, right

MOST_CHANGED = 5


@dataclass(frozen=True)
class Difference:
    """Accuracies of one task by one score, 0..1, over the pairs that both runs have."""

    num_pairs: int
    here: float
    there: float
    interval: tuple[float, float]  # 95 % of here - there, paired bootstrap


@dataclass(frozen=True)
class Change:
    """One pair in both runs: nats of its margin, the normalised one where there is one."""

    name: str
    there: float
    here: float


@dataclass(frozen=True)
class Comparison:
    """A run "here" against another one, "there"."""

    name: str  # the other run's folder
    num_pairs: int  # here
    num_matched: int  # that the other run has, too: the same names and the same recordings
    differences: dict[str, dict[str, Difference]]  # task -> score
    changed_most: list[Change]

    def table(self) -> str:
        rows = [["task", "score", "pairs", "here", "there", "difference", "95 % interval"]]
        for task, scores in self.differences.items():
            for score, found in scores.items():
                low, high = found.interval
                cells = [found.here, found.there]
                rows.append(
                    [task, score, str(found.num_pairs), *(f"{100 * value:.1f}" for value in cells)]
                    + [f"{100 * (found.here - found.there):+.1f}", f"{100 * low:+.1f} .. {100 * high:+.1f}"]
                )
        lines = [
            f"against {self.name}: {self.num_matched} of {self.num_pairs} pairs are the same; accuracy in %, interval "
            "of the difference over pairs",
            "",
            *text_table(rows),
            "",
            "changed most, nats of the margin there and here:",
        ]
        for change in self.changed_most:
            lines.append(f"  {change.name}: {change.there:+.1f} -> {change.here:+.1f}")
        return "\n".join(lines)


def compare(
    here: Sequence[Item], there: Sequence[Item], name: str, config: EvaluateConfig = EvaluateConfig()
) -> Comparison:
    """Match two runs by name and by the hashes of both recordings. Raises ValueError if no pair is the same."""
    others = {item.name: item for item in there}
    mine = [item for item in here if item.name in others and others[item.name].sha256 == item.sha256]
    if not mine:
        raise ValueError(f"{name}: has none of these {len(here)} pairs (by name and by the hash of both recordings)")
    differences = {}
    for task, items in by_task(mine).items():
        both = [(margins(item, "model"), margins(others[item.name], "model")) for item in items]
        differences[task] = {}
        for score in SCORES:
            nats = np.array([(a[score], b[score]) for a, b in both if score in a and score in b])  # [N, 2]
            if len(nats):
                hits = right(nats)
                ours, theirs = hits.mean(axis=0)
                limits = interval(hits[:, 0] - hits[:, 1], config)
                differences[task][score] = Difference(len(nats), float(ours), float(theirs), limits)
    changes = [Change(item.name, _main(others[item.name]), _main(item)) for item in mine]
    changes.sort(key=lambda change: -abs(change.here - change.there))
    return Comparison(name, len(here), len(mine), differences, changes[:MOST_CHANGED])


def _main(item: Item) -> float:
    found = margins(item, "model")
    return found.get("norm.", found["sum"])
