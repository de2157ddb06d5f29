"""The speeds of models as text: for a terminal, or in Markdown."""

from collections.abc import Callable, Sequence

from ..machine import MATRIX_SIZE
from ..text_table import markdown_table, number, text_table
from .bench import BYTES, BenchReport, Speed, Trial
from .engines import FRAME_STEP, LAUNCHED, LINEARS, WALK
from .first_sound import PROMPT_S, STARTS, Heard

Rows = Sequence[Sequence[str]]
HEADING = (
    *("engine", "batch", "ms a frame", "p95", "frames/s", "times real", "slower", "x floor", "of limit"),
    *("prefill ms", "ops", "products", "syncs", "launches", "MB"),
)
CLOCK_NOTES = {"wall": "", "cpu": ", in time of the processor"}


def table(report: BenchReport) -> str:
    """For a terminal."""
    return "\n\n".join("\n".join(lines) for lines in [*parts(report, text_table), notes(report)])


def markdown(report: BenchReport) -> str:
    notes_list = [f"- {note}" for note in notes(report)]
    return "\n\n".join("\n".join(lines) for lines in [*parts(report, markdown_table), notes_list]) + "\n"


def parts(report: BenchReport, columns: Callable[[Rows], list[str]]) -> list[list[str]]:
    """Speeds and limits of each model, and the sound of those with a codec."""
    found: list[list[str]] = []
    for subject in dict.fromkeys(trial.subject for trial in report.trials):
        trials = [trial for trial in report.trials if trial.subject == subject]
        title = f"{subject}, {trials[0].parameters / 1e6:.1f} M parameters"
        rows = [HEADING, *(cells(trial, speed) for trial in trials for speed in trial.engines)]
        found += [[title, "", *columns(without_empty(rows))], columns(limits(trials, BYTES[report.config.weights]))]
    if report.heard:
        found.append(columns(sounds(report.heard)))
    return found


def without_empty(rows: Rows) -> Rows:
    """Columns left out in which nothing was measured."""
    kept = [i for i in range(len(rows[0])) if any(row[i] != "-" for row in rows[1:])]
    return [[row[i] for i in kept] for row in rows]


def cells(trial: Trial, speed: Speed) -> list[str]:
    share = number(speed.limit_share, ".0%")
    return [
        speed.engine, str(trial.batch), f"{speed.median_ms:.3g}", f"{speed.p95_ms:.3g}",
        f"{speed.frames_per_second:.3g}", number(speed.real_time, ".3g"), f"{speed.times_slower:.3g}x",
        f"{speed.times_floor:.3g}x", share, number(speed.prefill_ms, ".3g"), f"{speed.operations:.5g}",
        f"{speed.products:.5g}", f"{speed.syncs:.3g}", number(speed.launches, ".4g"), number(speed.peak_mb, ".0f"),
    ]  # fmt: skip


def limits(trials: Sequence[Trial], size: int) -> list[list[str]]:
    """What a frame reads and computes, and how fast this machine would be at most. size: bytes of a weight."""
    rows = [["batch", "limit ms", "MB read", "MB of the depth decoder", "GB/s", "GB/s of the depth decoder", "GFLOP"]]
    for trial in trials:
        cost, rates = trial.cost, trial.rates
        read = (size * cost.weights + 4 * cost.cached_values) / 1e6
        rows.append([
            str(trial.batch), f"{trial.limit_ms:.3g}", f"{read:.4g}", f"{size * cost.depth_weights / 1e6:.4g}",
            f"{rates.memory / 1e9:.3g}", f"{rates.depth / 1e9:.3g}" if cost.depth_weights else "-",
            f"{cost.flops / 1e9:.3g}",
        ])  # fmt: skip
    return rows


def sounds(found: Sequence[Heard]) -> list[list[str]]:
    rows = [["model", "first sample ms", "audible ms", "p95", "times real"]]
    for heard in found:
        times = [f"{heard.first_ms:.3g}", number(heard.audible_ms, ".3g"), number(heard.audible_p95_ms, ".3g")]
        rows.append([heard.model, *times, f"{heard.real_time:.3g}"])
    return rows


def notes(report: BenchReport) -> list[str]:
    """How the numbers were made, a sentence each."""
    machine, config = report.machine, report.config
    size = MATRIX_SIZE[machine.device]
    found = [
        machine.describe(),
        f"{config.prompt_frames} frames of random codes as the prompt, {config.frames} frames drawn, "
        f"{config.weights} weights{'' if config.weights == 'float32' else ' in the frame step, float32 elsewhere'}, "
        f"{config.rounds} rounds in which engines take turns; ms a frame: median of all frames but each round's first, "
        f"of all rows together{CLOCK_NOTES[config.clock]}; slower: how many times, than the first engine.",
        f"{FRAME_STEP}: what generation does by itself; {WALK}: its readable reference; {LINEARS}: the same matrix "
        "products in the same order, with the same weights, and nothing else (the floor).",
        "prefill: from the call to the first frame, less a frame. MB: what model and generation add at most in a "
        "process of their own.",
        "ops, products, syncs: operations of torch a frame (one made of others counts once), matrix products, and "
        "times that the host waits for a number; counted, so they repeat exactly.",
        "limit: the longer of reading and multiplying. Read: weights (the depth decoder's once for each position), "
        "keys and values, at the fastest rate at which this machine reads as much memory; multiplied: at "
        f"{machine.peak_gflops:.1f} GFLOP/s, the fastest float32 product of two {size} x {size} matrices.",
    ]
    if report.heard:
        found.append(
            f"With the codec, batch 1: from the call with {PROMPT_S:g} s of encoded speech, cut amid a word, to "
            f"samples on the host, streamed; audible: above -50 dBFS; medians of {STARTS} starts with other seeds; "
            f"times real: all {config.frames} frames and their audio."
        )
    if any(
        speed.engine not in (FRAME_STEP, LAUNCHED, WALK, LINEARS) for trial in report.trials for speed in trial.engines
    ):
        found.append(
            "Hand-written loop and other libraries: the same widths and layers with random weights in float32; they "
            "keep no nats of codes."
        )
    for name, package in report.missing.items():
        found.append(f"{name} was left out: the package {package} is not installed.")
    return found
