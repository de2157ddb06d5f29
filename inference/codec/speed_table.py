"""The speeds and memory of codecs as rows of text, for a terminal."""

from collections.abc import Sequence

from ..machine import MATRIX_SIZE
from ..text_table import number, text_table
from .memory import UNTRAINED, StreamMemory
from .speed import PUSHES, BenchReport, Direction
from .table import times

THEIRS = "  by transformers' calls"
MEMORY_NOTE = (
    "Resident memory of a fresh process, Python and torch with it, while the clip, repeated, streamed through encoder "
    "and decoder a minute at a time. added: by the stream, at most, over the loaded codec."
)


def table(report: BenchReport) -> str:
    """Speeds, what the machine could do at most, streams, and how all that was measured."""
    parts = [speeds(report), limits(report), streams(report), notes(report)]
    return "\n\n".join("\n".join(lines) for lines in parts)


def speeds(report: BenchReport) -> list[str]:
    """Times real time of the clip at once."""
    rows = [["codec", "Hz", "frames/s", "codebooks", "bits/s", "encode", "decode", "both", "spread", "slower"]]
    for row in report.codecs:
        rates = [str(row.sample_rate), f"{row.frame_rate:g}", str(row.num_codebooks), f"{row.bitrate:.0f}"]
        found = [times(speed) for speed in (row.encode.speed, row.decode.speed, row.both)]
        spread = f"{max(row.encode.spread, row.decode.spread):.0%}"
        rows.append([row.codec, *rates, *found, spread, f"{row.times_slower:.3g}x"])
        if row.library:
            found = [times(speed) for speed in (row.library.encode, row.library.decode, row.library.both)]
            rows.append([THEIRS, *[""] * 4, *found, "", f"{row.library.times_slower:.3g}x"])
    return text_table(rows)


def limits(report: BenchReport) -> list[str]:
    """What is computed, and how fast it would be at the machine's peak rate."""
    heading = [name for part in ("encode", "decode") for name in (f"{part} GFLOP", "of peak", "limit")]
    rows = [["codec", *heading, "both limit"]]
    for row in report.codecs:
        rows.append([row.codec, *_limit(row.encode), *_limit(row.decode), times(row.both_limit)])
    return text_table(rows)


def streams(report: BenchReport) -> list[str]:
    """One frame a push; and how the streams are cut of codecs that work in blocks."""
    rows = [["codec", "frame ms", *("encode", "median ms", "p95 ms"), *("decode", "median ms", "p95 ms")]]
    for row in report.codecs:
        rows.append([row.codec, f"{1000 / row.frame_rate:.4g}", *_stream(row.encode), *_stream(row.decode)])
    blocks = [row for row in report.codecs if row.encode.stream is None or row.decode.stream is None]
    return text_table(rows) + [f"{row.codec}: streams in blocks; {row.streams}" for row in blocks]


def memory_table(found: Sequence[StreamMemory]) -> str:
    """What each codec's stream took, and how that was measured."""
    rows = [["codec", "minutes", "loaded MB", "peak MB", "added MB"]]
    for row in found:
        sizes = [number(size, ".0f") for size in (row.loaded_mb, row.peak_mb, row.added_mb)]
        rows.append([row.codec, str(row.minutes), *sizes])
    return "\n".join([*text_table(rows), "", MEMORY_NOTE])


def notes(report: BenchReport) -> list[str]:
    """How the numbers were made, a sentence each."""
    machine, config = report.machine, report.config
    size = MATRIX_SIZE[machine.device]
    found = [
        machine.describe(),
        f"{config.duration_s:g} s of {report.clip}, batch 1. encode, decode: times real time, median of "
        f"{config.rounds} rounds, in which codecs take turns; spread: (slowest - fastest) / median, the larger one.",
        f"both: one after the other; slower: how many times, than {report.codecs[0].codec}.",
        "GFLOP: of one second of audio, in matrix products, convolutions and LSTMs (no FFT, nothing element by "
        f"element); of peak: of {machine.peak_gflops:.1f} GFLOP/s, the fastest float32 product of two {size} x {size} "
        "matrices between the rounds; limit: times real time at that peak.",
        f"Streams: one frame a push, {config.rounds * PUSHES} pushes; times real time by their mean, against frame ms.",
    ]
    if any(row.codec.endswith(UNTRAINED) for row in report.codecs):
        found.append(
            f"{UNTRAINED}: the published shape with random weights, which is as fast as the real one, but no codec."
        )
    if any(row.library for row in report.codecs):
        found.append(f"{THEIRS.strip()}: the same network on the whole clip at once, as its library offers it.")
    if machine.device == "cuda":
        found.append(f"Codecs compute in float32; {THEIRS.strip()}, convolutions round to TF32, which can be faster.")
    return found


def _limit(part: Direction) -> list[str]:
    return [f"{part.gflop:.3g}", f"{part.peak_share:.1%}", times(part.limit)]


def _stream(part: Direction) -> list[str]:
    if part.stream is None:
        return ["-", "-", "-"]
    return [times(part.stream.speed), f"{part.stream.median_ms:.3g}", f"{part.stream.p95_ms:.3g}"]
