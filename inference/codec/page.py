"""The codec report as one HTML page that holds all it shows: sounds, pictures and tables. No script, no network."""

from collections.abc import Sequence
from html import escape

import numpy as np

from ..html import data_uri, document, flac_uri
from ..sound.compare import COLUMNS, ClipMeasures
from ..sound.spectrogram import RANGE_DB, loudest_db, spectrogram_png
from ..text_table import LEFT
from .report import Clip, CodecReport, CodecRow, Sample
from .table import codebook_values, measured, notes, summary

POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
SHOWN = {"pesq_wb": "PESQ", "stoi": "STOI", "mel_distance": "mel"}  # above each picture
SHOWN_WORDS = ("word_error_rate", "text_error_rate")  # besides, where they are defined
STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 96rem; padding: 0 1rem; }
h1, h2, figcaption, .transcript, .notes { overflow-wrap: anywhere; }
h1 { font-size: clamp(1.4rem, 5vw, 2rem); line-height: 1.2; }
h2 { margin: 2.5rem 0 .5rem; }
ul { padding-left: 1.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
th, td { padding: .3rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
.words { text-align: left; }
thead th { background: var(--soft); }
tr > :first-child {  /* stays in sight while the rest scrolls */
  position: sticky; left: 0; background: Canvas; border-right: 1px solid var(--line);
  min-width: min(7rem, 28vw); max-width: 40vw; white-space: normal; overflow-wrap: anywhere;
}
thead tr > :first-child { background: linear-gradient(var(--soft), var(--soft)) Canvas; }
.sounds { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); gap: 1.2rem; }
figure {  /* caption, picture, player and transcript stand at one height with those beside them */
  display: grid; grid-row: span 3; grid-template-rows: subgrid; row-gap: .4rem; align-content: start;
  margin: 0; border: 1px solid var(--line); border-radius: .5rem; padding: .8rem;
}
figure:has(.transcript) { grid-row: span 4; }
figure > * { margin: 0; min-width: 0; }
figure img, audio { width: 100%; }
figcaption span { display: block; }
figcaption span, .notes, .transcript { opacity: .75; font-size: .9rem; }
"""


PICTURES = f"Spectrograms: {RANGE_DB} dB of brightness, down from the loudest point of each clip's original."
CODEBOOKS = (
    "Used: share of a codebook's entries that were chosen at least once (short audio has too few frames to use all). "
    "Perplexity: the number of entries that would say as much if each were chosen equally often."
)


def page(report: CodecReport, title: str) -> str:
    """The page as text. Names of codecs and clips, and what was heard, are shown as they are: nothing is markup."""
    sections = [_clip(report, sample) for sample in report.samples]
    said = notes(report) + ([PICTURES] if report.samples else []) + [f"skipped {reason}" for reason in report.skipped]
    listed = "".join(f"<li>{escape(line)}</li>" for line in said)
    body = f"""<h1>{escape(title)}</h1>
{_table("all codecs", summary(report))}
<ul class="notes">{listed}</ul>
{"".join(sections)}
<h2>Codebooks</h2>
<p class="notes">{CODEBOOKS}</p>
{_table("codebooks", codebook_values(report))}"""
    return document(title, POLICY, STYLE, body)


def _clip(report: CodecReport, sample: Sample) -> str:
    clip = report.clips[sample.clip]
    loudest = loudest_db(sample.original, sample.sample_rate)
    shown = len(sample.original) / sample.sample_rate
    length = f"{clip.duration_s:.1f} s"
    if shown < clip.duration_s - 0.1:
        length = f"the first {shown:.0f} of {length} (numbers and words: of all of it)"
    about = ", ".join([length, *_defined(clip, SHOWN_WORDS[-1:])])
    heard = [_heard(clip, text) for text in (clip.transcript, *(row.transcripts[sample.clip] for row in report.rows))]
    figures = [_sound("original", about, heard[0], sample.original, sample.sample_rate, loudest)]
    for row, text, output in zip(report.rows, heard[1:], sample.outputs, strict=True):
        about = _about(report, row, sample.clip)
        figures.append(_sound(row.codec, about, text, output, sample.sample_rate, loudest))
    text = f'<p class="transcript">Its text: {_quoted(clip.text)}</p>\n' if clip.text else ""
    return f'<h2>{escape(clip.name)}</h2>\n{text}<div class="sounds">\n{"".join(figures)}</div>\n'


def _about(report: CodecReport, row: CodecRow, clip: int) -> str:
    values = row.measures[clip]
    shown = zip(SHOWN.values(), measured(values, list(SHOWN)), strict=True)
    parts = [f"{row.bitrate / 1000:.2f} kb/s", *(f"{name} {value}" for name, value in shown)]
    return ", ".join(parts + _defined(values, SHOWN_WORDS))


def _defined(values: Clip | ClipMeasures, keys: Sequence[str]) -> list[str]:
    found = [(*COLUMNS[key], getattr(values, key)) for key in keys]
    return [f"{name} {value:{spec}}" for name, spec, value in found if np.isfinite(value)]


def _heard(clip: Clip, transcript: str) -> str:
    """As markup; nothing if nothing was transcribed."""
    if not clip.language:
        return ""
    return f'<p class="transcript">{_quoted(transcript) if transcript else "No words were heard."}</p>'


def _quoted(text: str) -> str:
    return f"&ldquo;{escape(text)}&rdquo;"


def _sound(name: str, about: str, heard: str, audio: np.ndarray, sample_rate: int, loudest: float) -> str:
    label = escape(name)
    try:
        source = data_uri("image/png", spectrogram_png(audio, sample_rate, loudest))
        picture = f'<img alt="spectrogram of {label}" src="{source}">'
    except ImportError:
        picture = "<p>The spectrogram needs the extra 'demo'.</p>"
    return f"""<figure>
<figcaption><strong>{label}</strong> <span>{escape(about)}</span></figcaption>
{picture}
<audio controls aria-label="{label}" src="{flac_uri(audio, sample_rate)}"></audio>
{heard}
</figure>
"""


def _table(label: str, rows: Sequence[Sequence[str]]) -> str:
    sides = [' class="words"' if heading in LEFT else "" for heading in rows[0]]
    head = "".join(f'<th scope="col"{side}>{escape(cell)}</th>' for side, cell in zip(sides, rows[0], strict=True))
    body = ""
    for name, *cells in rows[1:]:
        values = "".join(f"<td{side}>{escape(cell)}</td>" for side, cell in zip(sides[1:], cells, strict=True))
        body += f'<tr><th scope="row" class="words">{escape(name)}</th>{values}</tr>\n'
    region = f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">'  # keys can scroll it
    return f"{region}<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
