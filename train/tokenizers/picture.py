"""The picture of a comparison: bits/s of each codec's codes against the quality of its round trip. Draws only."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

from ...inference.sound.compare import COLUMNS
from ...inference.sound.surprise_plot import CONTINUATION_COLOUR, NUM_COLOURS, PROMPT_COLOUR, STYLE
from ...model.files import whole_file
from .compare import CodecResult
from .table import QUALITY, context

KINDS = (  # points of a codec's line, from the right to the left
    ("raw", "raw codes", "|"),
    ("unigram", "unigram", "x"),
    ("bigram", "bigram", "s"),
    ("model", "model", "o"),
)
COLOURS = {"model": CONTINUATION_COLOUR}


def draw(results: Sequence[CodecResult], path: Path) -> None:
    """Write the picture as PNG, small enough for a page. Raises ImportError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from PIL import Image  # comes with matplotlib
    except ImportError:
        raise ImportError("pictures need: pip install 'codeclm[demo]'") from None

    measure = next(key for key in QUALITY if all(math.isfinite(row.quality(key)) for row in results))
    better = "lower" if "distance" in measure else "higher"
    middle = math.sqrt(min(row.model for row in results) * max(row.raw for row in results))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.2), dpi=130, layout="constrained")
        axes = figure.subplots()
        for row in results:
            height = row.quality(measure)
            axes.plot([row.model, row.raw], [height, height], color=PROMPT_COLOUR, linewidth=1, alpha=0.5)
            for kind, _, marker in KINDS:
                axes.plot(getattr(row, kind), height, marker, color=COLOURS.get(kind, PROMPT_COLOUR))
            side, edge = ("left", row.model) if row.model < middle else ("right", row.raw)
            label = f"{row.codec}: 1,000 positions are {context(row)} s"
            axes.annotate(label, (edge, height), xytext=(0, 9), textcoords="offset points", ha=side)
        for kind, label, marker in KINDS:
            axes.plot([], [], marker, color=COLOURS.get(kind, PROMPT_COLOUR), label=label)
        axes.set_xscale("log")
        axes.set_xlabel("bits/s of the codes (fewer: easier to predict)")
        axes.set_ylabel(f"{COLUMNS[measure][0]} of the round trip ({better} is better)")
        axes.margins(x=0.12, y=0.2)
        axes.grid(alpha=0.25)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=4, frameon=False)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
    with whole_file(path) as file:
        Image.open(drawn).convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(file, format="PNG")
