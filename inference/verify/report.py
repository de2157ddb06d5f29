"""The findings of the checks as text for a terminal."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from .checks import EXACT, ROOTS, SHIFTS, Result

WIDTH = 100  # characters
INDENT = 14
EXPLAINED = ("steps", "chunks", "windows")  # a failure of one of ROOTS explains theirs


def table(results: Sequence[Result]) -> str:
    """A line for each check; below it where and why it failed or was skipped, and other details."""
    header = [
        f"{'':{INDENT}}{'':50}{'largest difference':>24}",
        f"{'check':{INDENT}}{'what must hold':50}{'float64':>12}{'float32':>12}",
    ]
    return "\n".join([*header, *rows(results)])


def rows(results: Sequence[Result], only_failed: bool = False) -> list[str]:
    """The lines of a table without its head."""
    lines, broken = [], failures(results)
    for name in broken if only_failed else names(results):
        both = [result for result in results if result.check == name]
        outcome = outcome_of(both)
        asked = [result for result in both if result.outcome != "skipped" and name != SHIFTS]
        found = {result.dtype: short(result.difference) for result in asked}
        shown = "".join(f"{found.get(dtype, '-'):>12}" for dtype in ("float64", "float32"))
        lines.append(f"{name:{INDENT}}{both[0].claim:50}{shown}  {'FAILED' if outcome == 'failed' else outcome}")
        first = next((result for result in both if result.outcome == outcome and result.detail), both[0])
        lines += indented(first.detail)
        roots = [root for root in ROOTS if root in broken]
        if first.hint:
            lines += indented(f"see first: {roots[0]}" if roots and name in EXPLAINED else f"usually: {first.hint}")
    return lines


def line(name: str, results: Sequence[Result]) -> str:
    """One line for a model: its largest differences in checks of exactness, and the names of failed checks."""
    worst = [
        max((r.difference for r in results if (r.dtype, r.bound) == exact), default=0.0)
        for exact in zip(("float64", "float32"), EXACT, strict=True)
    ]
    failed = failures(results)
    says = f"FAILED: {', '.join(failed)} in " if failed else ""
    start = f"{short(worst[0]):>9}{short(worst[1]):>9}  "
    return textwrap.fill(f"{says}{name}", WIDTH, initial_indent=start, subsequent_indent=" " * len(start))


def verdict(models: Mapping[str, Sequence[Result]]) -> str:
    """The last line: whether all checks passed."""
    results = [result for found in models.values() for result in found]
    failed = failures(results)
    if not failed:
        done = names(result for result in results if result.outcome == "ok")
        return f"all {len(done)} checks passed" + (f" on {len(models)} models" if len(models) > 1 else "")
    broken = [name for name, found in models.items() if failures(found)]
    where = f" on {len(broken)} of {len(models)} models" if len(models) > 1 else ""
    return f"FAILED: {len(failed)} of {len(names(results))} checks{where}: {', '.join(failed)}"


def names(results: Iterable[Result]) -> list[str]:
    """The names of the checks, each once."""
    return list(dict.fromkeys(result.check for result in results))


def failures(results: Iterable[Result]) -> list[str]:
    return names(result for result in results if result.failed)


def outcome_of(results: Sequence[Result]) -> str:
    """The outcome of several results together: failed if one is, skipped if all are."""
    outcomes = [result.outcome for result in results]
    return "failed" if "failed" in outcomes else "ok" if "ok" in outcomes else "skipped"


def short(difference: float) -> str:
    return f"{difference:.1e}" if difference else "0"


def indented(text: str) -> list[str]:
    return [
        part
        for paragraph in text.splitlines()
        for part in textwrap.wrap(
            paragraph, WIDTH, initial_indent=" " * INDENT, subsequent_indent=" " * (INDENT + 2), break_on_hyphens=False
        )
    ]
