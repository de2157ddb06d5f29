"""Curves as SVG in an HTML page: round numbers at the axes, a band behind the lines. Colours are those of page.css."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

MOST_POINTS = 400  # of a line; a longer one is drawn by the means of its pieces
RIGHT, TOP, BOTTOM = 10, 8, 22  # margins
STYLE = """
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: .8rem; }
.charts.small { grid-template-columns: repeat(auto-fill, minmax(min(10rem, 100%), 1fr)); }
@media (min-width: 60rem) { .charts.small { grid-template-columns: repeat(4, 1fr); } }
.charts figure { margin: 0; border: 1px solid var(--line); border-radius: .5rem; padding: .6rem; min-width: 0; }
.chart { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; }
.chart text { fill: var(--faint); }
.chart .rule { stroke: var(--line); stroke-width: 1; }
.chart .band { fill: light-dark(#3f8f5a, #58b879); opacity: .18; }
.chart .limit { stroke: var(--faint); stroke-width: 1; stroke-dasharray: 3 3; }
.chart .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.chart .dot { stroke: none; }
"""


@dataclass(frozen=True)
class Line:
    """One line of a chart; points that are not finite are left out."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    colour: str
    has_dots: bool = False

    @property
    def points(self) -> np.ndarray:
        """[N, 2], at most MOST_POINTS."""
        points = np.array([self.x, self.y], np.float64).T.reshape(-1, 2)
        points = points[np.isfinite(points).all(axis=1)]
        pieces = np.array_split(points, min(len(points), MOST_POINTS)) if len(points) else []
        return np.array([piece.mean(axis=0) for piece in pieces]).reshape(-1, 2)


def chart(
    title: str,
    lines: Sequence[Line],
    band: tuple[float, float] | None = None,
    limit: float | None = None,
    size: tuple[int, int] = (400, 210),
    unit: str = "",
) -> str:
    """A figure as markup, "" without a point. band: what is normal. limit: drawn dashed, where it is near the lines."""
    drawn = [(line, points) for line in lines if len(points := line.points)]
    if not drawn:
        return ""
    every = np.concatenate([points for _, points in drawn])
    low, high = (float(bound(every[:, 1])) for bound in (np.min, np.max))
    if band is not None:
        low, high = min(low, band[0]), max(high, band[1])
    if limit is not None and low <= limit <= high + 0.25 * (high - low):
        high = max(high, limit)
    else:
        limit = None
    ticks = round_numbers(low, high, 4 if size[1] > 150 else 2)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    last = max(1.0, float(every[:, 0].max()))
    width, height = size
    left = 46 if width > 250 else 26

    def across(step: float) -> float:
        return left + step / last * (width - left - RIGHT)

    def down(value: float) -> float:
        return height - BOTTOM - (value - low) / max(high - low, 1e-12) * (height - BOTTOM - TOP)

    parts = []
    if band is not None:
        top, bottom = down(band[1]), down(band[0])
        parts.append(_rect("band", left, top, width - left - RIGHT, bottom - top))
    for tick in ticks:
        parts.append(_rule("rule", left, down(tick), width - RIGHT, down(tick)))
        parts.append(f'<text x="{left - 5}" y="{down(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for step in round_numbers(0, last, 5 if width > 250 else 2):
        if step <= last:
            anchor = "middle" if 0 < step < 0.95 * last else "start" if step == 0 else "end"
            parts.append(f'<text x="{across(step):.1f}" y="{height - 6}" text-anchor="{anchor}">{step:g}</text>')
    if limit is not None:
        parts.append(_rule("limit", left, down(limit), width - RIGHT, down(limit)))
    for line, points in drawn:
        places = [f"{across(x):.1f},{down(y):.1f}" for x, y in points]
        if len(points) > 1:
            parts.append(f'<polyline class="curve" style="stroke: {line.colour}" points="{" ".join(places)}"/>')
        if line.has_dots or len(points) == 1:
            for (x, y), place in zip(points, places, strict=True):
                told = f"<title>step {x:.0f}: {y:.5g} {escape(unit)}</title>"
                x_place, y_place = place.split(",")
                circle = f'<circle class="dot" style="fill: {line.colour}" cx="{x_place}" cy="{y_place}" r="2.6">'
                parts.append(f"{circle}{told}</circle>")
    told = "; ".join(
        f"{line.name} from {points[0, 1]:.4g} at step {points[0, 0]:.0f} to {points[-1, 1]:.4g} at step "
        f"{points[-1, 0]:.0f}"
        for line, points in drawn
    )
    label = escape(f"{title}: {told}")
    legend = _legend(drawn) if len(drawn) > 1 else ""
    return (
        f'<figure><figcaption>{escape(title)}</figcaption>{legend}<svg class="chart" role="img" aria-label="{label}" '
        f'viewBox="0 0 {width} {height}">{"".join(parts)}</svg></figure>\n'
    )


def round_numbers(low: float, high: float, count: int) -> list[float]:
    """About `count` multiples of 1, 2 or 5 times a power of ten, from `low` or below to `high` or above."""
    raw = max(high - low, 1e-9 * max(1.0, abs(high)), 1e-12) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def codebook_colour(k: int, count: int) -> str:
    """As in page.js."""
    return f"hsl({215 - 190 * k / max(1, count - 1):.0f} 70% 52%)"


def _legend(drawn: Sequence[tuple[Line, np.ndarray]]) -> str:
    swatches = "".join(f'<span style="--swatch: {line.colour}">{escape(line.name)}</span>' for line, _ in drawn)
    return f'<div class="legend">{swatches}</div>'


def _rule(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(0.0, height):.1f}"/>'
