"""Pictures of generations: what was said as a spectrogram, and how much each frame surprised the model.

Draws only; the numbers come from the caller. S samples, T frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...model.files import whole_file
from .spectrogram import draw_spectrogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PROMPT_COLOUR, CONTINUATION_COLOUR = "#565e6b", "#c2410c"
STYLE: dict = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class GenerationPlot:
    """One generation to draw."""

    audio: np.ndarray  # [S], prompt + continuation
    sample_rate: int  # Hz
    surprise_bits: np.ndarray  # [T], bits per frame, summed over codebooks; NaN leaves a gap
    frame_rate: float  # Hz
    prompt_s: float  # where the continuation starts
    title: str


def plot_generations(generations: Sequence[GenerationPlot], path: Path) -> None:
    """Draw generations below each other on one time axis, as PNG, whole or not at all.

    Raises ValueError for none or one without samples, ImportError without matplotlib, OSError if it cannot be written.
    """
    if not generations or any(len(item.audio) == 0 for item in generations):
        raise ValueError("there is nothing to draw: no generation, or one without samples")
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise ImportError("pictures need: pip install 'codeclm[demo]'") from None

    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(hspace=0.04)
        figure = Figure(figsize=(11, 4.6 * len(generations)), dpi=130, layout=layout)
        axes = figure.subplots(
            2 * len(generations), 1, sharex=True, squeeze=False, height_ratios=[5, 3] * len(generations)
        )[:, 0]
        most_bits = max(float(np.nanmax(item.surprise_bits, initial=1.0)) for item in generations)
        for item, spectrogram, surprise in zip(generations, axes[::2], axes[1::2], strict=True):
            _draw_spectrogram(spectrogram, item)
            _draw_surprise(surprise, item)
            surprise.set_ylim(0, 1.3 * most_bits)  # with room for the text
        axes[0].set_xlim(0, max(len(item.audio) / item.sample_rate for item in generations))
        axes[-1].set_xlabel("Time (s)")
        with whole_file(path) as file:
            figure.savefig(file, format="png")


def _draw_spectrogram(axes: "Axes", item: GenerationPlot) -> None:
    draw_spectrogram(axes, item.audio, item.sample_rate)
    duration = len(item.audio) / item.sample_rate
    axes.set_title(item.title, loc="left", pad=24, fontweight="bold")
    axes.tick_params(labelbottom=False, bottom=False)
    if 0 < item.prompt_s < duration:
        axes.axvline(item.prompt_s, color="white", linewidth=2, linestyle=(0, (4, 2)))
    spans = [
        ("prompt", 0.0, item.prompt_s, PROMPT_COLOUR),
        ("continuation", item.prompt_s, duration, CONTINUATION_COLOUR),
    ]
    for label, start, end, colour in spans:
        if end > start:
            axes.annotate(
                label,
                ((start + end) / 2, 1.03),
                xycoords=("data", "axes fraction"),
                ha="center",
                color=colour,
                fontweight="bold",
            )


def _draw_surprise(axes: "Axes", item: GenerationPlot) -> None:
    edges = np.arange(len(item.surprise_bits) + 1) / item.frame_rate
    split = round(item.prompt_s * item.frame_rate)
    for part, colour in ((slice(None, split), PROMPT_COLOUR), (slice(split, None), CONTINUATION_COLOUR)):
        bits = item.surprise_bits[part]
        if not np.isfinite(bits).any():
            continue
        part_edges = edges[part.start or 0 : (part.start or 0) + len(bits) + 1]
        axes.stairs(bits, part_edges, fill=True, color=colour, alpha=0.3)
        axes.stairs(bits, part_edges, color=colour, linewidth=1.2, baseline=None)
        mean = float(np.nanmean(bits))
        axes.hlines(mean, part_edges[0], part_edges[-1], color=colour, linestyle=":", linewidth=1.8)
        axes.annotate(
            f"mean {mean:.1f} bits",
            (part_edges[0], 0.97),
            xycoords=("data", "axes fraction"),
            xytext=(6, 0),
            textcoords="offset points",
            va="top",
            color=colour,
        )
    if split > 0:
        axes.axvline(item.prompt_s, color="black", linewidth=1.5, linestyle=(0, (4, 2)))
    axes.set_ylabel("Surprise\n(bits per frame)")
    axes.grid(axis="y", alpha=0.25)
