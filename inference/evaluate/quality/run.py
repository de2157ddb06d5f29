"""Prompts -> continuations and what stands beside them, judged; a run that was killed goes on in its folder.

S samples.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ....data.audio import AudioError, load_audio
from ....data.audio_out import save_audio
from ....data.progress import progress_bar
from ....model.files import file_sha256, locked_folder, readable
from ...config import EvaluateConfig
from ...generation import Generation
from ...generator import SpeechGenerator
from ...sound.drift import measure_drift
from ..continuations import measure_continuation
from ..run_lines import append_lines
from ..voices import speaker_of
from .items import ITEMS, Item, Quarter, open_run
from .judges import Judges
from .material import CONTINUATION, MIN_REST_S, NOISE, REAL, ROUND_TRIP, material, round_trip
from .report import DEFINITION, ContinuationReport
from .speaker import similarity
from .table import quality

WORK = "codeclm evaluate"
NO_BITS = np.zeros(0)


@dataclass(frozen=True)
class Continuing:
    """How prompts are continued."""

    prompt_s: float  # seconds of a recording that are the prompt
    duration_s: float
    seed: int = 0


def continuation_report(
    lm: SpeechGenerator,
    prompts: Sequence[Path],
    continuing: Continuing,
    judges: Judges = Judges(),
    out: Path | None = None,
    skipped: Sequence[str] = (),
) -> ContinuationReport:
    """Continue the beginning of each file, all with one seed, and judge the results beside what is known.

    out: a folder for the continuations, as `01-NAME.wav` and on, and for what was found (items.py); the same call goes
    on there. A prompt that cannot be used (unreadable, silent, too short) is named in the report's `skipped`, after the
    lines that are given as `skipped`. Raises ValueError if that leaves none, and where `out` holds another run.
    """
    items, unusable = [], []
    with ExitStack() as stack:
        folder = out if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(locked_folder(folder, WORK))
        done = open_run(folder, _settings(lm, prompts, continuing, judges))
        for path in progress_bar(prompts, desc="continue", unit="prompt", delay=2):
            try:
                recording = _recording(path, continuing.prompt_s, lm.codec.sample_rate)
            except AudioError as error:
                unusable.append(str(error))
                continue
            name, sha256 = str(path), file_sha256(path)
            if name not in done or done[name].sha256 != sha256:
                wav = f"{len(items) + 1:02d}-{readable(path.stem)}.wav"
                item = _judge(lm, path, recording, sha256, folder / wav, continuing, judges)
                append_lines(folder / ITEMS, [item.line()])
                done[name] = item
            items.append(done[name])
    if not items:
        raise ValueError(f"no prompt can be continued ({unusable[0]})" if unusable else "no prompt was given")
    found = quality(items, judges.missing, EvaluateConfig(seed=continuing.seed))
    prompt_s, duration_s, seed = continuing.prompt_s, continuing.duration_s, continuing.seed
    return ContinuationReport(prompt_s, duration_s, seed, items, found, [*skipped, *unusable])


def _settings(lm: SpeechGenerator, prompts: Sequence[Path], continuing: Continuing, judges: Judges) -> dict:
    there = {"MOS": judges.mos, "similarity": judges.embed, "transcripts": judges.transcriber, "GenPPL": judges.text}
    return {
        "definition": DEFINITION,
        "model": lm.name,
        "model_hash": lm.fingerprint,
        "codec_fingerprint": lm.codec.fingerprint,
        **asdict(continuing),
        "judges": [name for name, judge in there.items() if judge is not None],
        "prompts": hashlib.sha256("\n".join(map(str, prompts)).encode()).hexdigest(),
    }


def _recording(path: Path, prompt_s: float, sample_rate: int) -> np.ndarray:
    audio = load_audio(path, sample_rate)
    if len(audio) < round(prompt_s * sample_rate):
        raise AudioError(f"{readable(path)}: {len(audio) / sample_rate:.2f} s long; the prompt needs {prompt_s:g} s")
    return audio


def _judge(
    lm: SpeechGenerator,
    path: Path,
    recording: np.ndarray,
    sha256: str,
    wav: Path,
    continuing: Continuing,
    judges: Judges,
) -> Item:
    rate, num_prompt = lm.codec.sample_rate, round(continuing.prompt_s * lm.codec.sample_rate)
    prompt = recording[:num_prompt]
    generation = lm.generate((prompt, rate), duration_s=continuing.duration_s, seed=continuing.seed)
    save_audio(wav, generation.audio, rate)
    listener = judges.transcriber
    language = None if listener is None else listener.detect_language(generation.prompt_audio, rate)
    rendered = round_trip(lm, recording)
    most = num_prompt + round(continuing.duration_s * rate)
    sounds = material(recording[:most], rendered[:most], generation.audio, num_prompt, rate, path.name)
    text_file = path.with_suffix(".txt")
    text, heard = None, {}
    if listener is not None and language is not None and text_file.is_file():
        text = text_file.read_text(encoding="utf-8", errors="replace").strip()
        both = {REAL: recording, ROUND_TRIP: rendered}
        heard = {kind: listener.transcribe(audio, rate, language) for kind, audio in both.items()}
    reference = judges.judge(prompt, rate, None)
    continued = measure_continuation(readable(path.name), generation, listener, language)
    is_whole = len(sounds[CONTINUATION]) == len(generation.audio)
    known = {CONTINUATION: continued.transcript} if is_whole else {}
    whole = {CONTINUATION: generation.audio} | ({REAL: sounds[REAL]} if REAL in sounds else {})
    return Item(
        file=str(path),
        sha256=sha256,
        voice=speaker_of(path.parent.name),
        wav=wav.name,
        language=language,
        text=text,
        heard=heard,
        continued=continued,
        prompt=reference,
        sounds={
            kind: judges.judge(audio, rate, None if kind == NOISE else language, known.get(kind))
            for kind, audio in sounds.items()
        },
        quarters={
            kind: _quarters(audio, kind, generation, lm, judges, reference.voice) for kind, audio in whole.items()
        },
    )


def _quarters(
    audio: np.ndarray,
    kind: str,
    generation: Generation,
    lm: SpeechGenerator,
    judges: Judges,
    prompt_voice: list[float] | None,
) -> list[Quarter]:
    rate, frame_rate = lm.codec.sample_rate, lm.codec.frame_rate
    bits = NO_BITS
    if kind == CONTINUATION:
        first = generation.num_prompt_frames
        bits = generation.surprise_bits[first:]
    drift = measure_drift(audio, rate, bits, frame_rate)
    found = []
    for part, measures, rates in zip(np.array_split(audio, 4), drift.parts, drift.bits_per_second, strict=True):
        voice = None
        if judges.embed is not None and prompt_voice is not None and len(part) >= MIN_REST_S * rate:
            voice = judges.embed(part, rate)
        alike = None if voice is None else round(similarity(voice, np.array(prompt_voice)), 5)
        found.append(Quarter(measures, alike, float(rates) if np.isfinite(rates) else None))
    return found
