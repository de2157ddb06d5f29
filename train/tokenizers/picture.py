"""The picture of a comparison: bits/s of each codec's codes against the quality of its round trip. Draws only."""

import io
from collections.abc import Sequence
from pathlib import Path

from ...inference.sound.compare import COLUMNS
from ...inference.sound.surprise_plot import CONTINUATION_COLOUR, NUM_COLOURS, PROMPT_COLOUR, STYLE
from ...model.files import whole_file
from .compare import CodecResult
from .table import QUALITY, context

KINDS = (  # of each codec's line, from the right to the left
    ("raw", "raw codes", "|"),
    ("unigram", "unigram", "x"),
    ("bigram", "bigram", "s"),
    ("model", "model", "o"),
)


def draw(results: Sequence[CodecResult], path: Path) -> None:
    """Write the picture as PNG, small enough for a page. Raises ImportError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from PIL import Image  # comes with matplotlib
    except ImportError:
        raise ImportError("pictures need: pip install 'codeclm[demo]'") from None

    quality = next(key for key in QUALITY if all(row.round_trip[key] is not None for row in results))
    heading = COLUMNS[quality][0]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.2), dpi=130, layout="constrained")
        axes = figure.subplots()
        for row in results:
            height = row.round_trip[quality]
            axes.plot([row.model, row.raw], [height, height], color=PROMPT_COLOUR, linewidth=1, alpha=0.5)
            for kind, _, marker in KINDS:
                colour = CONTINUATION_COLOUR if kind == "model" else PROMPT_COLOUR
                axes.plot(getattr(row, kind), height, marker, color=colour, markersize=9 if kind == "model" else 6)
            label = f"{row.codec}: 1,000 positions are {context(row)} s"
            axes.annotate(label, (row.model, height), xytext=(0, 9), textcoords="offset points", ha="left")
        for kind, label, marker in KINDS:
            colour = CONTINUATION_COLOUR if kind == "model" else PROMPT_COLOUR
            axes.plot([], [], marker, color=colour, label=label)
        axes.set_xscale("log")
        axes.set_xlabel("bits/s of the codes (fewer: easier to predict)")
        axes.set_ylabel(f"{heading} of the round trip ({'lower' if 'distance' in quality else 'higher'} is better)")
        axes.margins(x=0.12, y=0.2)
        axes.grid(alpha=0.25)
        axes.legend(loc="lower right", frameon=False)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
    with whole_file(path) as file:
        Image.open(drawn).convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(file, format="PNG")
