"""Continuations of many prompts: what was checked of each, and what the judges say of all of them."""

from dataclasses import asdict, dataclass, field

from ...json_safe import json_safe
from ...text_table import text_table
from ..continuations import Continuation
from .items import Item
from .table import Quality

DEFINITION = (
    "codeclm-quality-1: all sounds of a prompt are equally long; MOS: DistillMOS, 1 to 5, short sounds repeated; like: "
    "cosine of Resemblyzer's embeddings, against prompts as recorded; others: prompts of other voices (folders), or "
    "all others; GenPPL: exp of SmolLM2-135M-Instruct's nats per token over whisper-base's English transcripts; "
    "auto-BLEU-2: share of words and word pairs that occur in their own transcript again; distinct-2: different word "
    "pairs over all; WER: of whole recordings; real speech: the recording after the prompt; shuffled speech: the same "
    "in pieces of 0.5 s; noise: white, at its level"
)
ENOUGH_WORDS = 3


@dataclass(frozen=True)
class ContinuationReport:
    prompt_s: float
    duration_s: float
    seed: int
    items: list[Item]
    quality: Quality
    skipped: list[str] = field(default_factory=list)  # "name: why"

    @property
    def continuations(self) -> list[Continuation]:
        return [item.continued for item in self.items]

    @property
    def totals(self) -> list[str]:
        """One line for all checks together, one for each check, and one for the words: "3 of 4 ..."."""
        count = len(self.continuations)
        passed = sum(item.checks.passed for item in self.continuations)
        lines = [f"{passed} of {count} pass all checks"]
        for name in asdict(self.continuations[0].checks):
            lines.append(f"{count - sum(name in item.checks.failed for item in self.continuations)} of {count} {name}")
        words = [item.num_words for item in self.continuations if item.num_words is not None]
        if words:
            enough = sum(number >= ENOUGH_WORDS for number in words)
            lines.append(f"{enough} of {len(words)} with at least three words")
        return [line.replace("_", " ") for line in lines]

    def to_dict(self) -> dict:
        """For JSON; a level of digital silence is None."""
        return json_safe({
            "definition": DEFINITION,
            "prompt_s": self.prompt_s,
            "duration_s": self.duration_s,
            "seed": self.seed,
            "continuations": [asdict(item) for item in self.continuations],
            "skipped": self.skipped,
            "totals": self.totals,
            "quality": self.quality.to_dict(),
            "items": [item.line(with_voices=False) for item in self.items],
        })  # fmt: skip

    def table(self) -> str:
        """The report for a terminal: each clip's prompt -> continuation, what failed, transcripts, then the tables."""
        width = max(len(item.name) for item in self.continuations)
        lines = [
            f"{self.duration_s:g} s after prompts of {self.prompt_s:g} s, seed {self.seed} (prompt -> continuation)",
            f"{'prompt':{width}}  {'seconds':>7}  {'level dBFS':>14}  {'voiced':>12}  {'pitch Hz':>12}  checks",
        ]
        for item in self.continuations:
            a, b = item.prompt, item.continuation
            lines.append(
                f"{item.name:{width}}  {b.duration_s:7.2f}  {a.loudness_dbfs:5.1f} -> {b.loudness_dbfs:5.1f}  "
                f"{a.voiced_share:4.0%} -> {b.voiced_share:4.0%}  "
                f"{a.median_pitch_hz:4.0f} -> {b.median_pitch_hz:4.0f}  "
                + ("pass" if item.checks.passed else "FAILS " + ", ".join(item.checks.failed).replace("_", " "))
            )
            if item.transcript is not None:
                lines.append(f"{'':{width}}  {item.num_words} words: {item.transcript}")
        lines += self.totals + [f"skipped {reason}" for reason in self.skipped]
        for title, rows in self.quality.tables().items():
            lines += ["", f"{title}:", *text_table(rows)]
        return "\n".join(lines + ["", *(f"left out: {reason}" for reason in self.quality.missing)]).rstrip()
