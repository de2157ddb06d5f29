"""The page of a run: its tables, and some prompts to listen to, with what follows them in each way."""

from pathlib import Path

import numpy as np

from ....data.audio import load_audio
from ....model.files import readable
from ...generator import SpeechGenerator
from ...report.page import Page, Section, Table
from ...report.tracks import Sound
from ...sound.compare import NAN
from ...text_table import number
from .items import Item
from .material import CONTINUATION, REAL, ROUND_TRIP, round_trip
from .report import DEFINITION, ContinuationReport
from .voices_kept import likeness

PAGE = "index.html"
NAMES = {CONTINUATION: "prompt and continuation", ROUND_TRIP: "the recording after the codec", REAL: "the recording"}
MOST_ITEMS = 6  # prompts on the page: each is about a megabyte


def continuations_page(report: ContinuationReport, folder: Path, lm: SpeechGenerator) -> Page:
    """folder: where the run kept the continuations."""
    tables = [Table(title, rows) for title, rows in report.quality.tables().items()]
    shown = report.items[:: -(-len(report.items) // MOST_ITEMS)]
    notes = [
        f"{report.duration_s:g} s by the model '{lm.name}' after the first {report.prompt_s:g} s of "
        f"{len(report.items)} recordings, seed {report.seed}. Beside it: the recording; its rendering by the codec "
        f"{lm.codec.name}, the best that a model of its codes can do; and sounds that are known to be bad.",
        *report.totals[:1],
        *(f"left out: {reason}" for reason in report.quality.missing),
        *(f"skipped {reason}" for reason in report.skipped),
    ]
    sections = [Section("", tables=tables), *(_section(item, folder, report, lm) for item in shown)]
    return Page("How the continuations sound", notes, [*sections, Section("What the numbers mean", [DEFINITION])])


def _section(item: Item, folder: Path, report: ContinuationReport, lm: SpeechGenerator) -> Section:
    rate = lm.codec.sample_rate
    num_prompt = round(report.prompt_s * rate)
    recording = load_audio(item.file, rate)
    rendered = round_trip(lm, recording)
    added = load_audio(folder / readable(item.wav), rate, check_speech=False)
    most = num_prompt + round(report.duration_s * rate)
    audio = {
        CONTINUATION: np.concatenate([rendered[:num_prompt], added]),
        ROUND_TRIP: rendered[:most],
        REAL: recording[:most],
    }
    sounds = [
        Sound(name, audio[kind], rate, _about(item, kind), prompt_s=report.prompt_s, transcript=_said(item, kind))
        for kind, name in NAMES.items()
        if kind in item.sounds
    ]
    failed = ", ".join(item.continued.checks.failed).replace("_", " ")
    notes = [f"fails the checks of: {failed}" if failed else "passes all checks"]
    if item.text:
        notes.append(f"Its text: \u201c{item.text}\u201d")
    return Section(f"{item.voice}: {item.continued.name}", notes, sounds)


def _about(item: Item, kind: str) -> str:
    """What was judged of what follows the prompt."""
    sound = item.sounds[kind]
    measures = sound.measures
    alike = likeness(sound, item.prompt)
    parts = [
        f"MOS {number(NAN if sound.mos is None else sound.mos, '.2f')}",
        f"like its prompt {number(NAN if alike is None else alike, '.2f')}",
        f"pitch {measures.median_pitch_hz:.0f} Hz (prompt {item.prompt.measures.median_pitch_hz:.0f})",
        f"level {measures.loudness_dbfs:.1f} dBFS (prompt {item.prompt.measures.loudness_dbfs:.1f})",
    ]
    return "After the prompt: " + ", ".join(parts)


def _said(item: Item, kind: str) -> str | None:
    said = item.sounds[kind].transcript
    return None if said is None else f"\u2026 {said}" if said else ""
