"""What is printed and written of linear probes: how much of each target is told, by what is probed."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..text_table import text_table
from .linear_probe import Probed
from .probe_speech import CLASSES, NUMBERS

DEFINITION = "codeclm-probes-1"
LINES = "probes.jsonl"
WHEN = {"now": 0, "next": 1}  # frames ahead


@dataclass(frozen=True)
class ProbesReport:
    """What `codeclm evaluate probes` prints and writes."""

    settings: dict[str, Any]  # as in probes.json
    results: dict[str, dict[str, dict[str, Probed]]]  # now or next -> what is probed -> target
    num_classes: dict[str, int]
    left_out: dict[str, str]
    out: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        settings = self.settings
        lines = [
            f"checkpoint {settings['checkpoint_hash'][:12]}, codec {settings['codec_fingerprint'][:12]}, speech "
            f"{settings['speech_hash'][:12]}; in %, on other recordings, with 95 % intervals over them"
        ]
        for when, probed in self.results.items():
            targets = [name for name in (*NUMBERS, *CLASSES) if any(name in found for found in probed.values())]
            rows = [["model", *targets]]
            rows.append(["chance", *(f"{100 * next(_column(probed, name)).chance:.1f}" for name in targets)])
            for name, found in probed.items():
                rows.append([name, *(cell(found[target]) if target in found else "-" for target in targets)])
            asked = "the frame itself" if when == "now" else "the frame after it"
            lines += ["", f"{when}: {asked}", *text_table(rows)]
        classes = ", ".join(f"{name} {count}" for name, count in self.num_classes.items())
        lines += ["", f"R2 of {', '.join(NUMBERS)}; balanced accuracy of the others (classes: {classes})"]
        lines += [f"left out: {name}: {reason}" for name, reason in self.left_out.items()]
        lines.append(f"definition: {DEFINITION}")
        if self.out is not None:
            lines.append(f"{self.out}: {LINES} has every probe")
        return "\n".join(lines)


def cell(found: Probed) -> str:
    low, high = found.interval
    return f"{100 * found.value:.1f} ({100 * low:.0f}-{100 * high:.0f})"


def _column(probed: dict[str, dict[str, Probed]], target: str) -> Iterator[Probed]:
    return (found[target] for found in probed.values() if target in found)
