"""What the doctor finds, one line each, and what it measured on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    severity: Severity
    check: str  # a word or two
    found: str  # what, how much and where
    advice: str  # what to do


@dataclass
class Examination:
    """One folder or file, looked at."""

    path: Path
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)  # numbers, for JSON
    lines: list[tuple[str, str]] = field(default_factory=list)  # the same for people: heading and text
    findings: list[Finding] = field(default_factory=list)

    def error(self, check: str, found: str, advice: str) -> None:
        self.findings.append(Finding("error", check, found, advice))

    def warn(self, check: str, found: str, advice: str) -> None:
        self.findings.append(Finding("warning", check, found, advice))

    def note(self, check: str, found: str, advice: str) -> None:
        self.findings.append(Finding("note", check, found, advice))


@dataclass(frozen=True)
class Report:
    """What `codeclm doctor` prints and writes."""

    examined: list[Examination]
    between: list[Finding]  # found by comparing them

    @property
    def findings(self) -> list[Finding]:
        return [*(finding for one in self.examined for finding in one.findings), *self.between]


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few names, in brackets."""
    return f"({', '.join(names[:most])}{', ...' if len(names) > most else ''})"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
