"""What a check finds: the largest difference, where it is, and what else is wrong."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Finding:
    difference: float = 0.0  # the largest that was seen; infinite for NaN
    where: str = ""
    problem: str = ""  # what is wrong though it is no difference
    note: str = ""  # worth knowing even if all is well


class NotApplicable(Exception):
    """The model has no such thing; the message says why."""


def compare(got: Tensor, expected: Tensor, axes: Sequence[str], what: str = "", seen: Tensor | None = None) -> Finding:
    """The largest absolute difference. axes: what the dimensions count. seen: bool, where to look (default: all)."""
    if got.shape != expected.shape:
        return Finding(float("inf"), f"{what}shape {list(got.shape)} where {list(expected.shape)} was expected")
    distance = torch.nan_to_num((got - expected).abs().double(), nan=float("inf"))
    if seen is not None:
        distance = distance.masked_fill(~seen, 0.0)
    if not distance.numel():
        return Finding()
    place = torch.unravel_index(distance.argmax(), distance.shape)
    spot = ", ".join(f"{axis} {int(i)}" for axis, i in zip(axes, place, strict=True))
    values = f"{float(got[place]):.6g} where {float(expected[place]):.6g} was expected"
    return Finding(float(distance.max()), f"{what}{spot}: {values}")


def worst(findings: Iterable[Finding], prefix: str = "") -> Finding:
    """All in one: the largest difference, and the first problem. prefix: before where it is."""
    findings = list(findings)
    largest = max(findings, key=lambda finding: finding.difference, default=Finding())
    problem = next((finding.problem for finding in findings if finding.problem), "")
    return replace(
        largest,
        where=largest.where and prefix + largest.where,
        problem=problem and prefix + problem,
    )
