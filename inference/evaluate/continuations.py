"""Does a continuation sound like speech by the same speaker? It is measured and checked.

The measures say that something is wrong (silence, a buzz, another voice), not that the speech makes sense; the
transcripts show that. quality/ does this for many prompts, and asks judges.
"""

import math
from dataclasses import asdict, dataclass

from ...data.audio import SILENCE_DBFS
from ..generation import Generation
from ..sound.measures import SpeechMeasures, measure_speech, semitones
from ..sound.transcribe import Transcriber, normalised_words

MAX_SILENT_SHARE = 0.5
MAX_CLIPPED_SHARE = 0.001
MAX_LOUDNESS_DIFFERENCE_DB = 6.0
VOICED_SHARE = (0.3, 0.9)
MAX_PITCH_DIFFERENCE = 4.0  # semitones


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


def measure_continuation(
    name: str, generation: Generation, transcriber: Transcriber | None, language: str | None = None
) -> Continuation:
    """A continuation beside its prompt; its words are counted if there is a transcriber.

    They are in `language`, a code such as "en", or else in the prompt's.
    """
    rate = generation.sample_rate
    prompt, continuation = (measure_speech(x, rate) for x in (generation.prompt_audio, generation.audio))
    transcript = None
    if transcriber is not None:
        language = language or transcriber.detect_language(generation.prompt_audio, rate)
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
