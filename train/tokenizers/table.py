"""The comparison of codecs as rows of text: for the terminal, and in Markdown beside the picture."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ...data.preparation import duration
from ...inference.sound.compare import COLUMNS, unavailable
from ...inference.text_table import markdown_table, number, text_table
from .compare import CodecResult
from .config import TokenizersConfig
from .speech import Speech

PICTURE = "tokenizers.png"
QUALITY = ("pesq_wb", "stoi", "mel_distance", "pitch_correlation")  # measures of the round trip
NOT_COMPARABLE = (
    "Bits/s of two codecs count different things: a codec that throws more of the sound away leaves less to predict. "
    "Fewer bits are better only where the round trip is as good."
)


def rates(results: Sequence[CodecResult]) -> list[list[str]]:
    """The heading, then a row for each codec: its codes, their bits/s, and what comes back from them."""
    keys = [key for key in QUALITY if any(math.isfinite(row.quality(key)) for row in results)]
    headings = ["frames/s", "codes/s", "s in 1,000", "raw", "unigram", "bigram", "model", "95 % interval"]
    found = [["codec", *headings, *(COLUMNS[key][0] for key in keys)]]
    for row in results:
        interval = f"{row.interval[0]:.0f} to {row.interval[1]:.0f}"
        codes = f"{row.frame_rate * row.num_codebooks:g}"
        bits = [f"{value:.0f}" for value in (row.raw, row.unigram, row.bigram, row.model)]
        kept = [number(row.quality(key), COLUMNS[key][1]) for key in keys]
        found.append([row.codec, f"{row.frame_rate:g}", codes, context(row), *bits, interval, *kept])
    return found


def training(results: Sequence[CodecResult]) -> list[list[str]]:
    """The heading, then a row for each codec: its training, the check of its bits, its continuations."""
    headings = ["TFLOP", "minutes", "steps", "speech heard", "M param", "file / model", "continued well", "MOS", "like"]
    found = [["codec", *headings]]
    for row in results:
        ratio = "-" if row.compressed_ratio is None else f"{row.compressed_ratio:.4f}"
        shown = [f"{row.teraflops:.2f}", f"{row.minutes:.1f}", str(row.steps), duration(row.trained_s / 3600)]
        found.append([row.codec, *shown, f"{row.million_parameters:.1f}", ratio, *heard(row)])
    return found


def context(row: CodecResult) -> str:
    """Seconds of speech in 1,000 positions of the backbone."""
    return f"{1000 / row.positions_per_second:.3g}"


def heard(row: CodecResult) -> list[str]:
    """How many continuations pass all checks, their learned MOS, and their likeness to the voice of the prompt."""
    found = row.continuations
    if not found:
        return ["-"] * 3
    total, share = found["prompts"] or 0, found["passed"] or 0
    judged = [number(math.nan if (value := found[key]) is None else value, ".2f") for key in ("mos", "similarity")]
    return [f"{round(total * share)} of {total:g}", *judged]


def notes(results: Sequence[CodecResult], speech: Speech, config: TokenizersConfig) -> list[str]:
    """How the numbers were made, a sentence each."""
    backbone, depth = config.model.parts
    model = f"{backbone.num_layers} layers of {backbone.dim}"
    if config.model.pattern == "depth":
        model += f", depth decoder {depth.num_layers} of {depth.dim}, on {config.depth_fraction:g} of the frames"
    threads = ", ".join(sorted({str(row.threads) for row in results}))
    found = [
        NOT_COMPARABLE,
        f"One model for each codec, pattern {config.model.pattern}, {model}; {config.batch.max_frames} positions of "
        f"context; {config.budget:g} TFLOP of training each (embeddings and heads differ with the codebooks).",
        f"{duration(speech.total_s / 3600)} of speech; {len(speech.scored)} held-out utterances, the same for all, are "
        f"scored. Minutes: of the steps alone, threads: {threads}, on this machine as busy as it was.",
        "s in 1,000: seconds of speech in 1,000 positions of the backbone. raw: codes/s x log2 of the codebook's size.",
        f"Round trip: means over {min(config.clips, len(speech.recordings))} held-out recordings, as codeclm codec "
        "report has them; higher is better of PESQ-WB (at most 4.64), STOI and pitch r, lower of mel.",
    ]
    if config.compressed_s:
        found.append(
            f"file / model: bits that codeclm codec compress makes of {config.compressed_s:g} s of held-out speech, "
            "without its header of 68 bytes, over those that the model predicts."
        )
    if config.prompts:
        found.append(
            f"continued well: how many continuations of {config.duration_s:g} s after prompts of {config.prompt_s:g} s "
            "pass all checks of level, voicing and pitch; MOS: learned, 1 to 5; like: similarity to the voice of the "
            "prompt (codeclm evaluate --continuations; - where a judge is not installed)."
        )
    if missing := [COLUMNS[key][0] for key in unavailable()]:
        found.append(f"{' and '.join(missing)}: left out, because the extra 'eval' is not installed.")
    return found


def table(results: Sequence[CodecResult], speech: Speech, config: TokenizersConfig) -> str:
    """For the terminal."""
    lines = [*text_table(rates(results)), "", *text_table(training(results)), "", *notes(results, speech, config)]
    return "\n".join(lines)


def markdown(results: Sequence[CodecResult], speech: Speech, config: TokenizersConfig) -> str:
    """The same as a page, with the picture."""
    listed = [f"- {line}" for line in notes(results, speech, config)]
    picture = f"![bits/s of each codec's codes against the quality of its round trip]({PICTURE})"
    tables = [*markdown_table(rates(results)), "", *markdown_table(training(results))]
    return "\n".join(["# Codecs as a language model sees them", "", picture, "", *tables, "", *listed, ""])


def to_dict(results: Sequence[CodecResult], speech: Speech, config: TokenizersConfig) -> dict[str, Any]:
    """For JSON."""
    return {
        "results": [asdict(row) for row in results],
        "speech_s": speech.total_s,
        "heldout": speech.scored,
        "settings": asdict(config),
        "notes": notes(results, speech, config),
    }
