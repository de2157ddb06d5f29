"""A training run on one HTML page, RUN/run.html: curves with what is normal, samples over time, before and after.

It holds all that it shows and asks for nothing from elsewhere. It is made of the run's folder alone: config.json,
metrics.jsonl, samples/ and comparison.json; what an older run lacks is left out.

    python -m codeclm.train.run_page RUN     # writes it again
"""

import math
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ..inference.doctor.curve import Curve, examine_curve, number, smooth
from ..inference.doctor.findings import Examination
from ..inference.html import data_uri, document, flac_uri
from ..inference.report.page import Table, notes_markup, read_style, table_markup
from ..model.files import readable, write_whole
from .charts import STYLE, Line, chart, codebook_colour
from .comparison import COMPARISON, Compared, read
from .normal import HIGHEST, LOWEST

PAGE = "run.html"
PROMPTS, LOOKS = 3, 5  # samples on the page: prompts, and steps at most at which each was continued
ROWS = 20  # a table has no more
POLICY = "default-src 'none'; media-src data:; style-src 'unsafe-inline'"
SAMPLES_STYLE = """
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); gap: .8rem; }
.samples { margin: .4rem 0; }
.samples figure { margin: 0; }
.samples audio { width: 100%; height: 2.5rem; }
.findings { padding-left: 1.2rem; }
details { margin: 1rem 0; }
summary { cursor: pointer; }
summary:focus-visible, .scroll:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px; }
code { overflow-wrap: anywhere; }
"""
TRAINED, HELD_OUT = "light-dark(#8b93a1, #7d8694)", "hsl(215 70% 52%)"
GIVEN_TEXT = "hsl(28 80% 48%)"
HEARD = {  # key of a canary line -> heading, and how it is written
    "canary_passed": ("pass all checks", ".0f"),
    "canary_prompts": ("of", ".0f"),
    "canary_silent_share": ("silent", ".0%"),
    "canary_seconds": ("seconds", ".1f"),
    "canary_loudness_dbfs": ("dBFS", ".1f"),
    "canary_voiced_share": ("voiced", ".0%"),
    "canary_words": ("words", ".1f"),
}


def write_page(run: Path) -> Path:
    """RUN/run.html, whole or not at all. Raises FileNotFoundError or ValueError in one line for what is no run."""
    write_whole(run / PAGE, page(run))
    return run / PAGE


def page(run: Path) -> str:
    """The page as text. Names of recordings and settings are shown as they are: nothing in them is markup."""
    curve = Curve.read(run)
    seen = Examination(run, "training run")
    examine_curve(curve, seen)
    title = f"Training run {readable(run.resolve().name)}"
    body = "".join(
        [
            f"<main>\n<h1>{escape(title)}</h1>\n",
            notes_markup([": ".join(line) for line in seen.lines]),
            _findings(seen),
            _before_and_after(run),
            _curves(curve),
            _codebooks(curve),
            _samples(run),
            _heard(curve),
            _looks(curve),
            _settings(curve),
            "</main>",
        ]
    )
    return document(title, POLICY, read_style() + STYLE + SAMPLES_STYLE, body)


def _findings(seen: Examination) -> str:
    listed = "".join(
        f"<li><strong>{finding.severity}: {escape(finding.check)}.</strong> {escape(finding.text)}; "
        f"{escape(finding.advice)}</li>"
        for finding in seen.findings
    )
    return f'<ul class="findings">{listed}</ul>\n' if listed else ""


def _before_and_after(run: Path) -> str:
    if not (run / COMPARISON).is_file():
        return ""
    try:
        found: list[Compared] = read(run)
    except (ValueError, KeyError, TypeError):  # another codeclm wrote it
        return ""
    rows = [["speech, bits/s", "minutes", "before", "after", "change"]]
    for row in found:
        change = f"{row.after / row.before - 1:+.1%}"
        rows.append([row.name, f"{row.minutes:.1f}", f"{row.before:.1f}", f"{row.after:.1f}", change])
    return f"<h2>Before and after</h2>\n{table_markup(Table('Both models on the same speech', rows))}"


def _curves(curve: Curve) -> str:
    steps, to_nats = curve.steps, math.log(2) / curve.codes_per_second
    drawn = [
        chart(
            "Loss, nats per code",
            [
                Line("training", steps, smooth(curve.loss()), TRAINED),
                Line("held-out", curve.heldout_steps, curve.heldout * to_nats, HELD_OUT, has_dots=True),
            ],
        )
    ]
    spoken = [line for line in curve.lines if "heldout_bits_per_second_given_text" in line]
    names = {name for line in curve.lines for name in line if name.startswith("heldout_bits_per_second of ")}
    lines = [Line("held-out", curve.heldout_steps, curve.heldout, HELD_OUT, has_dots=True)]
    for index, name in enumerate(sorted(names)):
        looks = [line for line in curve.lines if name in line]
        values = [number(line[name]) for line in looks]
        colour = codebook_colour(index + 1, len(names) + 1)
        lines.append(Line(name.partition(" of ")[2], [line["step"] for line in looks], values, colour, has_dots=True))
    if spoken:
        values = [number(line["heldout_bits_per_second_given_text"]) for line in spoken]
        lines.append(Line("given its text", [line["step"] for line in spoken], values, GIVEN_TEXT, has_dots=True))
    drawn.append(chart("Held-out speech, bits/s", lines, unit="bits/s"))
    for name, title in (
        ("learning_rate", "Learning rate"),
        ("gradient_norm", "Gradient norm"),
        ("codes_per_second", "Speed, codes per second"),
    ):
        if name in curve.values:
            drawn.append(chart(title, [Line(title, steps, curve.values[name], HELD_OUT)]))
    return f'<h2>Curves, step by step</h2>\n<div class="charts">\n{"".join(drawn)}</div>\n' if any(drawn) else ""


def _codebooks(curve: Curve) -> str:
    looks = [line for line in curve.lines if isinstance(line.get("heldout_bits_per_codebook"), list)]
    if not looks:
        return ""
    count = len(looks[-1]["heldout_bits_per_codebook"])
    looks = [line for line in looks if len(line["heldout_bits_per_codebook"]) == count]
    unigram, uniform = (_newest(curve, f"{name}_bits_per_codebook", count) for name in ("unigram", "uniform"))
    figures = []
    for k in range(count):
        bits = [number(line["heldout_bits_per_codebook"][k]) for line in looks]
        lines = [Line(f"codebook {k}", [line["step"] for line in looks], bits, codebook_colour(k, count), True)]
        band = (LOWEST * unigram[k], HIGHEST * unigram[k]) if unigram else None
        limit = uniform[k] if uniform else None
        figures.append(chart(f"Codebook {k}", lines, band, limit, (200, 130), "bits"))
    told = (
        f"Green: normal once it learns, {LOWEST:g} to {HIGHEST:g} of the bits that counting each code alone needs. "
        "Dashed, where it is near: equal probabilities."
        if unigram
        else "This run does not say what is normal."
    )
    heading = f"<h2>Held-out bits of a code, codebook by codebook</h2>\n{notes_markup([told])}"
    return f'{heading}<div class="charts small">\n{"".join(figures)}</div>\n'


def _newest(curve: Curve, name: str, count: int) -> list[float]:
    """What the run last said is normal, for each codebook; [] if it never did."""
    found = [line[name] for line in curve.lines if isinstance(line.get(name), list) and len(line[name]) == count]
    return [number(value) for value in found[-1]] if found else []


def _samples(run: Path) -> str:
    """The same prompts, continued at several steps."""
    folders = sorted(folder for folder in (run / "samples").glob("step-*") if any(folder.glob("*.wav")))
    if not folders:
        return ""
    chosen = [folders[i] for i in _evenly(len(folders), LOOKS)]
    names = sorted(path.name for path in chosen[-1].glob("*.wav"))[:PROMPTS]
    parts = []
    for name in names:
        figures = "".join(_sample(folder / name) for folder in chosen if (folder / name).is_file())
        prompt = name.partition("-")[2].removesuffix(".wav")
        parts.append(f'<h3>{escape(readable(prompt))}</h3>\n<div class="samples">\n{figures}</div>\n')
    told = f"Each is a held-out prompt with its continuation at that step; all of them are in {run.name}/samples."
    return f"<h2>Samples over time</h2>\n{notes_markup([told])}{''.join(parts)}"


def _sample(path: Path) -> str:
    step = path.parent.name.partition("-")[2].lstrip("0") or "0"
    label = escape(f"step {step}: {readable(path.name)}")
    player = f'<audio controls preload="metadata" aria-label="{label}" src="{_sound_uri(path)}"></audio>'
    return f"<figure><figcaption>step {escape(step)}</figcaption>{player}</figure>\n"


def _sound_uri(path: Path) -> str:
    try:
        import soundfile
    except ImportError:  # a machine that only trains
        return data_uri("audio/wav", path.read_bytes())
    return flac_uri(*soundfile.read(path))


def _heard(curve: Curve) -> str:
    lines = [line for line in curve.lines if any(name in line for name in HEARD)]
    if not lines:
        return ""
    shown = [name for name in HEARD if any(name in line for line in lines)]
    rows = [["step", *(HEARD[name][0] for name in shown)]]
    for line in (lines[i] for i in _evenly(len(lines), ROWS)):
        rows.append([str(line["step"]), *(_cell(line.get(name), HEARD[name][1]) for name in shown)])
    return table_markup(Table("The continuations, measured", rows))


def _looks(curve: Curve) -> str:
    """The numbers behind the curves, for those who do not see them."""
    lines = [line for line in curve.lines if "heldout_bits_per_second" in line]
    if not lines:
        return ""
    count = max(len(line.get("heldout_bits_per_codebook") or []) for line in lines)
    rows = [["step", "bits/s", *(f"codebook {k}" for k in range(count))]]
    for line in (lines[i] for i in _evenly(len(lines), ROWS)):
        bits: Sequence[Any] = line.get("heldout_bits_per_codebook") or [None] * count
        rows.append(
            [
                str(line["step"]),
                _cell(line["heldout_bits_per_second"], ".1f"),
                *(_cell(value, ".3f") for value in bits),
            ]
        )
    inner = table_markup(Table("Held-out speech: bits/s, and bits of a code in each codebook", rows))
    return f"<details><summary>The held-out numbers as a table</summary>\n{inner}</details>\n"


def _settings(curve: Curve) -> str:
    command = str(curve.config.get("command", ""))
    shown = {
        "command": command,
        "parameters learn from": str(curve.config.get("start", "")),
        "data": str(curve.config.get("data", "")),
        **{str(name): str(value) for name, value in curve.setting("versions", default={}).items()},
    }
    rows = "".join(f"<dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd>" for name, value in shown.items())
    return f"<details><summary>How it was made</summary>\n<dl>{rows}</dl></details>\n"


def _cell(value: Any, form: str) -> str:
    found = number(value)
    return format(found, form) if math.isfinite(found) else "-"


def _evenly(count: int, most: int) -> list[int]:
    """At most `most` of `count` places, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def main(args: Sequence[str] | None = None) -> None:
    args = list(sys.argv[1:] if args is None else args)
    if len(args) != 1:
        sys.exit("usage: python -m codeclm.train.run_page RUN")
    try:
        print(f"{write_page(Path(args[0]))}: open it in a browser; it needs no network")
    except (OSError, ValueError) as error:
        sys.exit(f"codeclm: {error}")


if __name__ == "__main__":
    main()
