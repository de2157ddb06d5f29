"""What is printed and written of pairs: how often the better recording is the likelier one, by task and by scorer."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import EvaluateConfig
from ..text_table import text_table
from .items import Item
from .margins import DEFINITION, SCORERS, SCORES, Accuracy, Margins, accuracy, by_task, margins
from .pair_comparison import Comparison


@dataclass(frozen=True)
class PairsReport:
    """What `codeclm evaluate` prints and writes of pairs."""

    definition: str
    settings: dict[str, Any]  # as in suite.json
    accuracy: dict[str, dict[str, dict[str, Accuracy]]]  # task -> scorer -> score
    skipped: dict[str, str]  # name of a pair -> reason
    left_out: dict[str, str]  # task -> reason
    out: str | None
    comparison: Comparison | None  # with another run

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """For the terminal: a row for each task and scorer, accuracies in % with their intervals."""
        rows = [["task", "pairs", "scorer", *SCORES]]
        for task, scorers in self.accuracy.items():
            for number, (scorer, scores) in enumerate(scorers.items()):
                count = max(accuracy.num_pairs for accuracy in scores.values())
                cells = [cell(scores[name]) if name in scores else "-" for name in SCORES]
                rows.append(["" if number else task, "" if number else str(count), scorer, *cells])
        settings = self.settings
        lines = [
            f"checkpoint {settings['checkpoint_hash'][:12]}, codec {settings['codec_fingerprint'][:12]}, "
            f"pairs {settings['pairs_hash'][:12]}; accuracy in %, 95 % interval over pairs, chance 50.0",
            "",
            *text_table(rows),
            "",
            f"level, length: the smaller change of level, the shorter one is the better; window: {settings['window']}",
            f"definition: {self.definition}",
        ]
        if self.skipped:
            name, reason = next(iter(self.skipped.items()))
            lines.append(f"{len(self.skipped)} pairs could not be used and were skipped (first: {name}: {reason})")
        lines += [f"left out: {task}: {reason}" for task, reason in self.left_out.items()]
        if self.out is not None:
            lines.append(f"{self.out}: items.jsonl has every pair")
        if self.comparison is not None:
            lines += ["", self.comparison.table()]
        return "\n".join(lines)


def report(
    items: Sequence[Item],
    settings: dict[str, Any],
    skipped: dict[str, str],
    left_out: dict[str, str],
    out: Path | None,
    comparison: Comparison | None = None,
    config: EvaluateConfig = EvaluateConfig(),
) -> PairsReport:
    accuracies = {}
    for task, found in by_task(items).items():
        same_length = all(item.seconds[0] == item.seconds[1] for item in found)
        asked = [scorer for scorer in SCORERS if scorer != "length" or not same_length]
        scorers = {scorer: [margins(item, scorer) for item in found] for scorer in asked}
        accuracies[task] = {
            scorer: {name: accuracy(values, config) for name in SCORES if len(values := _column(each, name))}
            for scorer, each in scorers.items()
            if any(each)
        }
    kept = None if out is None else str(out)
    return PairsReport(DEFINITION, settings, accuracies, skipped, left_out, kept, comparison)


def cell(accuracy: Accuracy) -> str:
    low, high = accuracy.interval
    return f"{100 * accuracy.value:.1f} ({100 * low:.0f}-{100 * high:.0f})"


def _column(found: Sequence[Margins], score: str) -> np.ndarray:
    return np.array([each[score] for each in found if score in each])
