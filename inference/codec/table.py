"""The codec report as rows of text: for a terminal, and for the page."""

from collections.abc import Sequence

import numpy as np

from ..sound.compare import COLUMNS, ClipMeasures
from ..text_table import number, text_table
from .report import CodecReport, CodecRow

MOST_CODEBOOKS = 32  # on a terminal


def table(report: CodecReport) -> str:
    """The report for a terminal; with one codec, clip by clip too."""
    lines = text_table(summary(report))
    if len(report.codecs) == 1:
        lines += ["", *text_table(clip_values(report, report.codecs[0]))]
    codebooks = text_table(codebook_values(report))
    lines += ["", *codebooks[: 1 + MOST_CODEBOOKS]]
    if len(codebooks) > 1 + MOST_CODEBOOKS:
        lines.append(f"and {len(codebooks) - 1 - MOST_CODEBOOKS} codebooks more, which --json and --html show")
    lines += ["", *notes(report)]
    return "\n".join(lines + [f"skipped {reason}" for reason in report.skipped])


def summary(report: CodecReport) -> list[list[str]]:
    """The heading, then one row for each codec and anchor."""
    keys = _shown(report)
    measures = [COLUMNS[key][0] for key in keys]
    found = [["codec", "bits/s", "frames/s", "codes", "Hz", *measures, "encode", "decode", "MB"]]
    for row in report.rows:
        codes = f"{len(row.codebooks)} x {row.codebook_size}" if row.codebooks else "-"
        rates = [f"{row.bitrate:.0f}", f"{row.frame_rate:g}", codes, str(row.sample_rate)]
        cost = [times(row.cost.encode_speed), times(row.cost.decode_speed), number(row.cost.peak_memory_mb, ".0f")]
        found.append([row.codec, *rates, *measured(row.mean, keys), *cost])
    return found


def clip_values(report: CodecReport, row: CodecRow) -> list[list[str]]:
    """What one row's codec made of each clip; beside its errors against true texts those on the originals."""
    keys = _shown(report)
    found = [["clip", *(COLUMNS[key][0] for key in keys)]]
    for clip, values in zip(report.clips, row.measures, strict=True):
        found.append([clip.name, *measured(values, keys)])
    if report.originals:
        rates = [number(clip.text_error_rate, COLUMNS["text_error_rate"][1]) for clip in report.clips]
        found = [[*cells, last] for cells, last in zip(found, ["(original)", *rates], strict=True)]
    return found


def codebook_values(report: CodecReport) -> list[list[str]]:
    """Use and perplexity of each codebook; a codec has two columns."""
    found = [["codebook", *(f"{row.codec} {what}" for row in report.codecs for what in ("used", "perplexity"))]]
    for k in range(max(len(row.codebooks) for row in report.codecs)):
        cells = []
        for row in report.codecs:
            use = row.codebooks[k] if k < len(row.codebooks) else None
            cells += [f"{use.used_share:.1%}", f"{use.perplexity:.1f}"] if use else ["", ""]
        found.append([str(k), *cells])
    return found


def notes(report: CodecReport) -> list[str]:
    """How the numbers were made, a sentence each."""
    durations = [clip.duration_s for clip in report.clips]
    found = [
        f"Means over {_count(len(durations), 'clip')}, {sum(durations):.1f} s.",
        "PESQ-WB, STOI and mel (six resolutions) at 16 kHz, the rest at the codec's rate, but at least 16 kHz; "
        "mel and log-mel: mean difference of log10 magnitudes, 0.05 = 1 dB.",
        "pitch r: correlation of the pitch; voiced, level: of what came out less the original's. Lower is better of "
        "mel, log-mel and WER, higher of PESQ-WB (at most 4.64), STOI, SI-SDR and pitch r.",
        *_word_notes(report),
        "encode, decode: times real time, wall clock, one thread of torch, a clip at a time, median over clips; "
        "on this machine as busy as it was. Anchors are not timed.",
        "MB: most that resident memory (RSS) grew by while one clip was encoded and decoded whole, over the loaded "
        f"codec (longest clip {max(durations):.1f} s).",
    ]
    if report.anchors:
        found.append("Bits/s of neural codecs: raw rate of the codes; of anchors: what their packets took.")
    if report.unavailable:
        missing = [COLUMNS[key][0] for key in report.unavailable]
        are = "are left out: they need" if len(missing) > 1 else "is left out: it needs"
        found.append(f"{' and '.join(missing)} {are} the extra 'eval'.")
    return found + report.left_out


def _word_notes(report: CodecReport) -> list[str]:
    found = []
    if "word_error_rate" in _shown(report):
        found.append("WER: whisper-base's transcripts against its own of the original, over all words.")
    if errors := report.originals:
        beside = f"{_count(errors.num_clips, 'clip')} ({_count(errors.num_words, 'word')})"
        rate = number(errors.word_error_rate, COLUMNS["text_error_rate"][1])
        found.append(
            f"WER text: against the transcripts beside {beside}; on the originals themselves whisper-base makes {rate}."
        )
        if any(clip.text and clip.language == "en" for clip in report.clips):
            found[-1] += " In English, whole numbers to 999, Mr, Mrs, Dr and OK count as they are said."
    return found


def measured(values: ClipMeasures, keys: Sequence[str]) -> list[str]:
    return [number(getattr(values, key), COLUMNS[key][1]) for key in keys]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def times(speed: float) -> str:
    text = number(speed, ".1f" if speed < 10 else ".0f")
    return text if text == "-" else f"{text}x"


def _shown(report: CodecReport) -> list[str]:
    """The measures that one of the rows has."""
    return [key for key in COLUMNS if any(np.isfinite(getattr(row.mean, key)) for row in report.rows)]
