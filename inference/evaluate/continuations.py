"""Do continuations sound like speech by the same speaker? Prompts are continued, measured and checked.

The measures say that something is wrong (silence, a buzz, another voice), not that the speech makes sense; the
transcripts show that. S samples.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ...data.audio import SILENCE_DBFS, AudioError, load_audio
from ...data.audio_out import save_audio
from ...data.progress import progress_bar
from ...model.files import readable
from ..generation import Generation
from ..generator import SpeechGenerator
from ..json_safe import json_safe
from ..sound.measures import SpeechMeasures, measure_speech, semitones
from ..sound.transcribe import Transcriber, normalised_words

MAX_SILENT_SHARE = 0.5
MAX_CLIPPED_SHARE = 0.001
MAX_LOUDNESS_DIFFERENCE_DB = 6.0
VOICED_SHARE = (0.3, 0.9)
MAX_PITCH_DIFFERENCE = 4.0  # semitones
ENOUGH_WORDS = 3


@dataclass(frozen=True)
class Checks:
    """Each is true where the continuation passes; the limits are this file's constants."""

    not_silent: bool  # some level, and pauses for at most half of the time
    not_clipped: bool
    loudness: bool  # within 6 dB of the prompt
    voicing: bool  # 30-90 % voiced
    pitch: bool  # median within 4 semitones of the prompt's

    @property
    def passed(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> list[str]:
        return [name for name, passed in asdict(self).items() if not passed]


@dataclass(frozen=True)
class Continuation:
    name: str
    prompt: SpeechMeasures  # of the prompt as the codec renders it, so that the codec is on both sides
    continuation: SpeechMeasures
    checks: Checks
    finish_reason: str
    transcript: str | None = None  # None: not asked for
    num_words: int | None = None


@dataclass(frozen=True)
class ContinuationReport:
    prompt_s: float
    duration_s: float
    seed: int
    continuations: list[Continuation]
    skipped: list[str] = field(default_factory=list)  # "name: why"

    @property
    def totals(self) -> list[str]:
        """One line for all checks together, one for each check, and one for the words: "3 of 4 ..."."""
        count = len(self.continuations)
        passed = sum(item.checks.passed for item in self.continuations)
        lines = [f"{passed} of {count} pass all checks"]
        for name in asdict(self.continuations[0].checks):
            lines.append(f"{count - sum(name in item.checks.failed for item in self.continuations)} of {count} {name}")
        words = [item.num_words for item in self.continuations if item.num_words is not None]
        if words:
            enough = sum(number >= ENOUGH_WORDS for number in words)
            lines.append(f"{enough} of {len(words)} with at least three words")
        return [line.replace("_", " ") for line in lines]

    def to_dict(self) -> dict:
        """For JSON; a level of digital silence is None."""
        return json_safe(asdict(self) | {"totals": self.totals})

    def table(self) -> str:
        """The report for a terminal: each clip's prompt -> continuation, what failed, and the transcript."""
        width = max(len(item.name) for item in self.continuations)
        lines = [
            f"{self.duration_s:g} s after prompts of {self.prompt_s:g} s, seed {self.seed} (prompt -> continuation)",
            f"{'prompt':{width}}  {'seconds':>7}  {'level dBFS':>14}  {'voiced':>12}  {'pitch Hz':>12}  checks",
        ]
        for item in self.continuations:
            a, b = item.prompt, item.continuation
            lines.append(
                f"{item.name:{width}}  {b.duration_s:7.2f}  {a.loudness_dbfs:5.1f} -> {b.loudness_dbfs:5.1f}  "
                f"{a.voiced_share:4.0%} -> {b.voiced_share:4.0%}  "
                f"{a.median_pitch_hz:4.0f} -> {b.median_pitch_hz:4.0f}  "
                + ("pass" if item.checks.passed else "FAILS " + ", ".join(item.checks.failed).replace("_", " "))
            )
            if item.transcript is not None:
                lines.append(f"{'':{width}}  {item.num_words} words: {item.transcript}")
        return "\n".join(lines + self.totals + [f"skipped {reason}" for reason in self.skipped])


def continuation_report(
    lm: SpeechGenerator,
    prompts: Sequence[Path],
    prompt_s: float,
    duration_s: float,
    seed: int,
    asr: bool,
    out: Path | None = None,
    skipped: Sequence[str] = (),
) -> ContinuationReport:
    """Continue the first `prompt_s` seconds of each file for `duration_s`, all with `seed`, and check the results.

    asr: also transcribe the continuations, in the prompt's language. out: a folder for them, as `01-NAME.wav` and on.
    A prompt that cannot be used (unreadable, silent, shorter than `prompt_s`) is named in the report's `skipped`, after
    the lines that are given as `skipped`. Raises ValueError if that leaves none, ImportError without the packages that
    `asr` needs.
    """
    transcriber = Transcriber() if asr else None
    continuations, unusable = [], []
    for path in progress_bar(prompts, desc="continue", unit="prompt", delay=2):
        try:
            prompt = _first_seconds(path, prompt_s, lm.codec.sample_rate)
        except AudioError as error:
            unusable.append(str(error))
            continue
        generation = lm.generate((prompt, lm.codec.sample_rate), duration_s=duration_s, seed=seed)
        continuations.append(measure_continuation(readable(path.name), generation, transcriber))
        if out is not None:
            name = f"{len(continuations):02d}-{readable(path.stem)}.wav"
            save_audio(out / name, generation.audio, generation.sample_rate)
    if not continuations:
        raise ValueError(f"no prompt can be continued ({unusable[0]})" if unusable else "no prompt was given")
    return ContinuationReport(prompt_s, duration_s, seed, continuations, [*skipped, *unusable])


def check_continuation(prompt: SpeechMeasures, continuation: SpeechMeasures) -> Checks:
    """Where the continuation departs from what speech by the prompt's speaker would measure."""
    level = continuation.loudness_dbfs
    pitches = (continuation.median_pitch_hz, prompt.median_pitch_hz)
    return Checks(
        not_silent=level > SILENCE_DBFS and continuation.silent_share <= MAX_SILENT_SHARE,
        not_clipped=continuation.clipped_share <= MAX_CLIPPED_SHARE,
        loudness=math.isfinite(level) and abs(level - prompt.loudness_dbfs) <= MAX_LOUDNESS_DIFFERENCE_DB,
        voicing=VOICED_SHARE[0] <= continuation.voiced_share <= VOICED_SHARE[1],
        pitch=min(pitches) > 0 and abs(semitones(*pitches)) <= MAX_PITCH_DIFFERENCE,
    )


def _first_seconds(path: Path, prompt_s: float, sample_rate: int) -> np.ndarray:
    audio = load_audio(path, sample_rate)
    num_samples = round(prompt_s * sample_rate)
    if len(audio) < num_samples:
        raise AudioError(f"{readable(path)}: {len(audio) / sample_rate:.2f} s long; the prompt needs {prompt_s:g} s")
    return audio[:num_samples]


def measure_continuation(name: str, generation: Generation, transcriber: Transcriber | None) -> Continuation:
    """A continuation beside its prompt; its words are counted in the prompt's language if there is a transcriber."""
    rate = generation.sample_rate
    prompt, continuation = (measure_speech(x, rate) for x in (generation.prompt_audio, generation.audio))
    transcript = None
    if transcriber is not None:
        language = transcriber.detect_language(generation.prompt_audio, rate)
        transcript = transcriber.transcribe(generation.audio, rate, language)
    return Continuation(
        name=name,
        prompt=prompt,
        continuation=continuation,
        checks=check_continuation(prompt, continuation),
        finish_reason=generation.finish_reason,
        transcript=transcript,
        num_words=None if transcript is None else len(normalised_words(transcript)),
    )
