"""One HTML page that holds all it shows: sounds, their tracks, words and tables. It loads nothing from elsewhere."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files

from ..html import document, flac_uri
from .tracks import Sound, surprising_moments, tracks

AFTER_S = 0.8  # a moment is played for this long
TRACK_NAMES = {
    "wave": "waveform",
    "spectrogram": "spectrogram with pitch (cyan) and formants (yellow)",
    "surprise": "surprise per frame, stacked by codebook",
    "codes": "the codes, coarsest codebook on top",
}


@dataclass(frozen=True)
class Table:
    """Rows of text; the first is the head."""

    title: str
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A heading, remarks, sounds beside each other, and tables."""

    title: str
    notes: Sequence[str] = ()
    sounds: Sequence[Sound] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Page:
    title: str
    notes: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=list)

    def html(self) -> str:
        """The page as text. Names, transcripts and notes are shown as they are: nothing in them is markup."""
        style, script = read_style(), _package_file("page.js")
        allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = f"default-src 'none'; media-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
        sections = "".join(_section(section) for section in self.sections)
        heading = f"<h1>{escape(self.title)}</h1>\n{notes_markup(self.notes)}\n"
        body = f"<main>\n{heading}{sections}</main>\n<script>{script}</script>"
        return document(self.title, policy, style, body)


def read_style() -> str:
    """The CSS of a page."""
    return _package_file("page.css")


def _package_file(name: str) -> str:
    return files(__name__.rpartition(".")[0]).joinpath(name).read_text()


def _section(section: Section) -> str:
    sounds = "".join(_sound(sound) for sound in section.sounds)
    tables = "".join(table_markup(table) for table in section.tables)
    title = f"<h2>{escape(section.title)}</h2>\n" if section.title else ""
    return f"<section>\n{title}{notes_markup(section.notes)}{sounds}{tables}</section>\n"


def _sound(sound: Sound) -> str:
    values = tracks(sound)
    names = [name for name in TRACK_NAMES if name in values]
    shown = "".join(f'<canvas data-track="{name}" aria-hidden="true"></canvas>' for name in names)
    about = f"{sound.name}: {', '.join(TRACK_NAMES[name] for name in names)}; arrow keys move, space plays"
    # "</" would end the script
    data = json.dumps(values, separators=(",", ":")).replace("</", "<\\/")
    source = flac_uri(sound.audio, sound.sample_rate)
    return f"""<section class="sound">
<h3>{escape(sound.name)}</h3>
<p class="about">{escape(sound.about)}</p>
<audio controls preload="auto" aria-label="{escape(sound.name)}" src="{source}"></audio>
<div class="tracks" tabindex="0" role="slider" aria-label="{escape(about)}" aria-valuemin="0" \
aria-valuemax="{sound.seconds:.2f}" aria-valuenow="0">{shown}<div class="cursor"></div></div>
<p class="readout"></p>
{_legend(sound)}{_moments(sound)}{_words(sound)}
<script type="application/json">{data}</script>
</section>
"""


def _legend(sound: Sound) -> str:
    if sound.surprise_bits is None:
        return ""
    count = len(sound.surprise_bits)
    bits = sound.surprise_bits.sum(axis=1) / sound.seconds
    hues = [215 - 190 * k / max(1, count - 1) for k in range(count)]  # page.js's
    swatches = [
        f'<span style="--swatch: hsl({hue:.0f} 70% 52%)">codebook {k}: {value:.0f} bits/s</span>'
        for k, (hue, value) in enumerate(zip(hues, bits, strict=True))
    ]
    return f'<div class="legend">{"".join(swatches)}</div>\n'


def _moments(sound: Sound) -> str:
    if sound.surprise_bits is None:
        return ""
    items = "".join(
        f'<li><button data-from="{max(0.0, moment.time_s - 0.2):.2f}" data-to="{moment.time_s + AFTER_S:.2f}">'
        f"{moment.time_s:.2f} s, {moment.bits:.0f} bits</button></li>"
        for moment in surprising_moments(sound.surprise_bits, sound.frame_rate)
    )
    return f'<p class="about">Most surprising moments:</p>\n<ul class="moments">{items}</ul>\n'


def _words(sound: Sound) -> str:
    if sound.transcript is None:
        return ""
    if not sound.words:
        return f'<p class="words">{escape(sound.transcript) if sound.transcript else "No words were heard."}</p>'
    words = " ".join(
        f'<button data-from="{word.start_s:.2f}" data-to="{word.end_s:.2f}">{escape(word.text)}</button>'
        for word in sound.words
    )
    return f'<p class="words">{words}</p>'


def notes_markup(notes: Sequence[str]) -> str:
    return "".join(f'<p class="notes">{escape(note)}</p>\n' for note in notes)


def table_markup(table: Table) -> str:
    head, *rows = table.rows
    cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    region = f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.title)}">'  # keys can scroll it
    inner = f"<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}</tbody>"
    return f"<h3>{escape(table.title)}</h3>\n{region}<table>\n{inner}</table></div>\n"
