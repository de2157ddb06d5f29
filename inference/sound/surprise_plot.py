"""The picture of a generation: its spectrogram, and below it how much each frame surprised the model.

Draws only; the numbers come from the caller. S samples, T frames.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...model.files import whole_file
from .spectrogram import draw_spectrogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PROMPT_COLOUR = "#565e6b"
CONTINUATION_COLOUR = "#c2410c"
NUM_COLOURS = 80  # in the file: a third of the bytes, and no difference that an eye sees
STYLE: dict = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
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
    label: str = "continuation"


def plot_generation(item: GenerationPlot, path: Path) -> None:
    """Draw one generation as PNG, whole or not at all; small enough for a page.

    Raises ValueError if it has no samples, ImportError without matplotlib, OSError if it cannot be written.
    """
    if not len(item.audio):
        raise ValueError(f"{path}: there is nothing to draw, the generation has no samples")
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from PIL import Image  # comes with matplotlib
    except ImportError:
        raise ImportError("pictures need: pip install 'codeclm[demo]'") from None

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.7), dpi=150, layout="constrained")
        spectrogram, surprise = figure.subplots(2, 1, sharex=True, height_ratios=[5, 3])
        _draw_spectrogram(spectrogram, item)
        _draw_surprise(surprise, item)
        surprise.set_xlim(0, len(item.audio) / item.sample_rate)
        surprise.set_xlabel("Time (s)")
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
    with whole_file(path) as file:
        Image.open(drawn).convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(file, format="PNG")


def _draw_spectrogram(axes: "Axes", item: GenerationPlot) -> None:
    draw_spectrogram(axes, item.audio, item.sample_rate)
    duration = len(item.audio) / item.sample_rate
    axes.tick_params(labelbottom=False, bottom=False)
    if 0 < item.prompt_s < duration:
        axes.axvline(item.prompt_s, color="white", linewidth=2, linestyle=(0, (4, 2)))
    spans = [
        ("prompt", 0.0, item.prompt_s, PROMPT_COLOUR),
        (item.label, item.prompt_s, duration, CONTINUATION_COLOUR),
    ]
    for label, start, end, colour in spans:
        if end > start:
            axes.annotate(
                label,
                (start, 1.04),
                xycoords=("data", "axes fraction"),
                ha="left",
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
    axes.set_ylim(0, 1.35 * float(np.nanmax(item.surprise_bits, initial=1.0)))  # with room for the text
    axes.set_ylabel("Surprise\n(bits per frame)")
    axes.grid(axis="y", alpha=0.25)
