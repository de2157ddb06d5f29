"""The doctor's report: as text for a terminal, and as values for JSON."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ...model.files import readable
from ..json_safe import json_safe
from .findings import SEVERITIES, Finding, Report, count

WIDTH = 120  # characters
HEADING = 13


def table(report: Report) -> str:
    """For a terminal."""
    lines = []
    for one in report.examined:
        lines.append(f"{readable(one.path)}: {one.kind}")
        for heading, text in one.lines:
            lines += wrapped(f"  {heading:{HEADING}}", text)
        lines += [line for finding in in_order(one.findings) for line in finding_lines(finding)]
        lines.append("")
    if report.between:
        lines.append("compared:")
        lines += [line for finding in in_order(report.between) for line in finding_lines(finding)]
        lines.append("")
    return "\n".join([*lines, verdict(report.findings)])


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """The worst first."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def finding_lines(finding: Finding) -> list[str]:
    return wrapped(f"  {finding.severity.upper():{HEADING}}", f"{finding.check}: {finding.text} -> {finding.advice}")


def wrapped(start: str, text: str) -> list[str]:
    indent = " " * len(start)
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False) or [start]


def verdict(findings: Sequence[Finding]) -> str:
    """The last line."""
    numbers = {severity: sum(finding.severity == severity for finding in findings) for severity in SEVERITIES}
    told = [count(number, severity) for severity, number in numbers.items() if number]
    return ", ".join(told) if told else "nothing is wrong, as far as was looked"


def to_dict(report: Report) -> dict[str, Any]:
    """For JSON."""
    found = [
        {"path": readable(one.path), "kind": one.kind, **one.facts, "findings": list(map(asdict, one.findings))}
        for one in report.examined
    ]
    return json_safe({"examined": found, "compared": list(map(asdict, report.between))})
