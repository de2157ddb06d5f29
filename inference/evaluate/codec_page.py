"""The codec report as one HTML page that holds all it shows: sounds, pictures and tables. No script, no network."""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np

from ..spectrogram import loudest_db, spectrogram_png
from .codec_report import CodecReport, Sample
from .codec_table import LEFT, codebook_values, measured, notes, summary

POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
SHOWN = {"pesq_wb": "PESQ", "stoi": "STOI", "mel_distance": "mel"}  # below each player
STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
h2 { margin: 2.5rem 0 .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
.words { text-align: left; }
thead th { background: var(--soft); }
.sounds { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); gap: 1.2rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: .5rem; padding: .8rem; }
figure img, audio { width: 100%; }
figcaption { margin-bottom: .4rem; overflow-wrap: anywhere; }
figcaption span, .notes, .transcript { opacity: .75; font-size: .9rem; }
"""


def page(report: CodecReport, title: str) -> str:
    """The page as text. Names of codecs and clips, and what was heard, are shown as they are: nothing is markup."""
    sections = [_clip(report, sample) for sample in report.samples]
    skipped = "".join(f"<li>skipped {escape(reason)}</li>" for reason in report.skipped)
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes(report)) + skipped
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{_table(summary(report))}
<ul class="notes">{listed}</ul>
{"".join(sections)}
<h2>Codebooks</h2>
<p class="notes">How much of each codebook was used, and the perplexity of its entries.</p>
{_table(codebook_values(report))}
</body>
</html>
"""


def _clip(report: CodecReport, sample: Sample) -> str:
    clip = report.clips[sample.clip]
    loudest = loudest_db(sample.original, sample.sample_rate)
    shown = len(sample.original) / sample.sample_rate
    length = f"{clip.duration_s:.1f} s" if shown >= clip.duration_s - 0.1 else f"the first {shown:.0f} s"
    figures = [_sound("original", length, clip.transcript, sample.original, sample.sample_rate, loudest)]
    for row, output in zip(report.rows, sample.outputs, strict=True):
        values = zip(SHOWN.values(), measured(report, row.measures[sample.clip], list(SHOWN)), strict=True)
        about = ", ".join([f"{row.bitrate / 1000:.2f} kb/s", *(f"{name} {value}" for name, value in values)])
        heard = row.transcripts[sample.clip]
        figures.append(_sound(row.codec, about, heard, output, sample.sample_rate, loudest))
    return f'<h2>{escape(clip.name)}</h2>\n<div class="sounds">\n{"".join(figures)}</div>\n'


def _sound(name: str, about: str, transcript: str, audio: np.ndarray, sample_rate: int, loudest: float) -> str:
    label = escape(name)
    try:
        source = _data_uri("image/png", spectrogram_png(audio, sample_rate, loudest))
        picture = f'<img alt="spectrogram of {label}" src="{source}">'
    except ImportError:
        picture = "<p>The spectrogram needs the extra 'demo'.</p>"
    heard = f'<p class="transcript">&ldquo;{escape(transcript)}&rdquo;</p>'
    return f"""<figure>
<figcaption><strong>{label}</strong> <span>{escape(about)}</span></figcaption>
{picture}
<audio controls aria-label="{label}" src="{_data_uri("audio/flac", _flac(audio, sample_rate))}"></audio>
{heard if transcript else ""}
</figure>
"""


def _table(rows: Sequence[Sequence[str]]) -> str:
    sides = [' class="words"' if heading in LEFT else "" for heading in rows[0]]
    head = "".join(f'<th scope="col"{side}>{escape(cell)}</th>' for side, cell in zip(sides, rows[0], strict=True))
    body = ""
    for name, *cells in rows[1:]:
        values = "".join(f"<td{side}>{escape(cell)}</td>" for side, cell in zip(sides[1:], cells, strict=True))
        body += f'<tr><th scope="row" class="words">{escape(name)}</th>{values}</tr>\n'
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'


def _flac(audio: np.ndarray, sample_rate: int) -> bytes:
    import soundfile

    content = io.BytesIO()
    soundfile.write(content, np.clip(audio, -1.0, 1.0), sample_rate, format="FLAC", subtype="PCM_16")
    return content.getvalue()


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
