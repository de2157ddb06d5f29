"""What the doctor finds, one line each, and what it measured on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SHOWN = 3  # names that are printed
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    severity: Severity
    check: str  # a word or two
    found: str  # what, and how much
    advice: str  # what to do
    where: list[str] = field(default_factory=list)  # all of it, by name

    @property
    def text(self) -> str:
        """What is found, with the first few names."""
        more = ", ..." if len(self.where) > SHOWN else ""
        return f"{self.found} ({', '.join(self.where[:SHOWN])}{more})" if self.where else self.found


@dataclass
class Examination:
    """One folder or file, looked at."""

    path: Path
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)  # numbers, for JSON
    lines: list[tuple[str, str]] = field(default_factory=list)  # the same for people: heading and text
    findings: list[Finding] = field(default_factory=list)

    def error(self, check: str, found: str, advice: str, where: Sequence[str] = ()) -> None:
        self.findings.append(Finding("error", check, found, advice, list(where)))

    def warn(self, check: str, found: str, advice: str, where: Sequence[str] = ()) -> None:
        self.findings.append(Finding("warning", check, found, advice, list(where)))

    def note(self, check: str, found: str, advice: str, where: Sequence[str] = ()) -> None:
        self.findings.append(Finding("note", check, found, advice, list(where)))


@dataclass(frozen=True)
class Report:
    """What `codeclm doctor` prints and writes."""

    examined: list[Examination]
    between: list[Finding]  # found by comparing them

    @property
    def findings(self) -> list[Finding]:
        return [*(finding for one in self.examined for finding in one.findings), *self.between]


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
