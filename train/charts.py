"""Curves as SVG in an HTML page: round numbers at the axes, a band behind the lines. Colours are those of page.css."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

MOST_POINTS = 400  # a line with more is drawn by the means of its pieces
MOST_DOTS = 60  # a line with more has none
LEAST_SPAN = 0.02  # an axis spans at least this share of its values: those of a constant stay readable
RIGHT, TOP, BOTTOM = 10, 8, 22  # margins
STYLE = """
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: .8rem; }
.charts.small { grid-template-columns: repeat(auto-fill, minmax(min(10rem, 100%), 1fr)); }
.charts figure { margin: 0; border: 1px solid var(--line); border-radius: .5rem; padding: .6rem; min-width: 0; }
.chart { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; }
@media (min-width: 60rem) {
  .charts.small { grid-template-columns: repeat(4, 1fr); }
  .charts.small .chart { font-size: 8px; }
}
.chart text { fill: var(--faint); }
.chart .rule { stroke: var(--line); stroke-width: 1; }
.chart .band { fill: light-dark(#3f8f5a, #58b879); opacity: .18; }
.chart .limit { stroke: var(--faint); stroke-width: 1; stroke-dasharray: 3 3; }
.chart .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
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


@dataclass(frozen=True)
class Frame:
    """Steps 0..last and values low..high within a picture's margins."""

    width: int
    height: int
    last: float
    low: float
    high: float

    @property
    def left(self) -> int:
        return 60 if self.width > 250 else 26

    @property
    def right(self) -> int:
        return self.width - RIGHT

    def across(self, step: float) -> float:
        return self.left + step / self.last * (self.right - self.left)

    def down(self, value: float) -> float:
        return self.height - BOTTOM - (value - self.low) / (self.high - self.low) * (self.height - BOTTOM - TOP)


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
    values = [*every[:, 1], *(band or ())]
    low, high = float(min(values)), float(max(values))
    if limit is not None and low <= limit <= high + 0.25 * (high - low):
        high = max(high, limit)
    else:
        limit = None
    ticks = round_numbers(low, high, 4 if size[1] > 150 else 2)
    frame = Frame(*size, max(1.0, float(every[:, 0].max())), ticks[0], ticks[-1])
    parts = [] if band is None else [_band(frame, *band)]
    parts += _axes(frame, ticks)
    if limit is not None:
        parts.append(_rule("limit", frame, limit))
    for line, points in drawn:
        parts += _curve(frame, line, points, unit)
    told = "; ".join(
        f"{line.name} from {points[0, 1]:.4g} at step {points[0, 0]:.0f} to {points[-1, 1]:.4g} at step "
        f"{points[-1, 0]:.0f}"
        for line, points in drawn
    )
    legend = _legend(drawn) if len(drawn) > 1 else ""
    return (
        f'<figure><figcaption>{escape(title)}</figcaption>{legend}<svg class="chart" role="img" '
        f'aria-label="{escape(f"{title}: {told}")}" viewBox="0 0 {size[0]} {size[1]}">{"".join(parts)}</svg></figure>\n'
    )


def _axes(frame: Frame, ticks: Sequence[float]) -> list[str]:
    parts = []
    for tick in ticks:
        parts.append(_rule("rule", frame, tick))
        parts.append(f'<text x="{frame.left - 5}" y="{frame.down(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for step in round_numbers(0, frame.last, 5 if frame.width > 250 else 2):
        if step <= frame.last:
            anchor = "start" if step == 0 else "middle" if step < 0.95 * frame.last else "end"
            place = f'x="{frame.across(step):.1f}" y="{frame.height - 6}"'
            parts.append(f'<text {place} text-anchor="{anchor}">{step:g}</text>')
    return parts


def _curve(frame: Frame, line: Line, points: np.ndarray, unit: str) -> list[str]:
    places = [(f"{frame.across(x):.1f}", f"{frame.down(y):.1f}") for x, y in points]
    joined = " ".join(",".join(place) for place in places)
    parts = [f'<polyline class="curve" style="stroke: {line.colour}" points="{joined}"/>']
    if len(points) <= (MOST_DOTS if line.has_dots else 1):
        for (step, value), (x, y) in zip(points, places, strict=True):
            told = escape(f"step {step:.0f}: {value:.5g} {unit}".rstrip())
            dot = f'<circle style="fill: {line.colour}" cx="{x}" cy="{y}" r="2.6">'
            parts.append(f"{dot}<title>{told}</title></circle>")
    return parts


def round_numbers(low: float, high: float, count: int) -> list[float]:
    """About `count` multiples of 1, 2 or 5 times a power of ten, from `low` or below to `high` or above."""
    raw = max(high - low, LEAST_SPAN * max(abs(low), abs(high)), 1e-12) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def codebook_colour(k: int, count: int) -> str:
    """As in page.js."""
    return f"hsl({215 - 190 * k / max(1, count - 1):.0f} 70% 52%)"


def _legend(drawn: Sequence[tuple[Line, np.ndarray]]) -> str:
    swatches = "".join(f'<span style="--swatch: {line.colour}">{escape(line.name)}</span>' for line, _ in drawn)
    return f'<div class="legend">{swatches}</div>'


def _rule(kind: str, frame: Frame, value: float) -> str:
    y = f"{frame.down(value):.1f}"
    return f'<line class="{kind}" x1="{frame.left}" y1="{y}" x2="{frame.right}" y2="{y}"/>'


def _band(frame: Frame, low: float, high: float) -> str:
    top, bottom = frame.down(high), frame.down(low)
    place = f'x="{frame.left}" y="{top:.1f}" width="{frame.right - frame.left}" height="{bottom - top:.1f}"'
    return f'<rect class="band" {place}/>'
