"""A mean over prompts with its 95 % bootstrap interval."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ...config import EvaluateConfig
from ..margins import interval


class Estimate(NamedTuple):
    value: float
    low: float
    high: float
    num: int  # prompts

    def shown(self, spec: str) -> str:
        """As text: "0.83 (0.80-0.86)", "83% (80-86)"."""
        low, high = (format(limit, spec).rstrip("%") for limit in (self.low, self.high))
        return f"{self.value:{spec}} ({low}-{high})"


def estimate(values: Iterable[float | None], config: EvaluateConfig) -> Estimate | None:
    """Over the values that are defined; None if none is."""
    defined = np.array([value for value in values if value is not None and np.isfinite(value)], np.float64)
    if not len(defined):
        return None
    return Estimate(float(defined.mean()), *interval(defined, config), len(defined))


def cell(found: Estimate | None, spec: str) -> str:
    return "-" if found is None else found.shown(spec)


def mean_cell(found: Estimate | None, spec: str) -> str:
    """Without the interval."""
    return "-" if found is None else format(found.value, spec)
