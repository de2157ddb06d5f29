"""What the judges say of a sound, as far as they are installed. S samples."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ...sound.measures import SpeechMeasures, measure_speech
from ...sound.transcribe import Transcriber
from .packaged import INSTALL, is_installed

ENGLISH = "en"


@dataclass(frozen=True)
class Judged:
    """One sound; None where there is no judge, or nothing that it could judge."""

    measures: SpeechMeasures
    mos: float | None = None
    voice: list[float] | None = None  # embedding [256]
    transcript: str | None = None
    text_nats: float | None = None
    num_tokens: int = 0


@dataclass(frozen=True)
class Judges:
    """Those that are there; None is given for the others, whose names and reasons are in `missing`."""

    mos: Callable[[np.ndarray, int], float] | None = None
    embed: Callable[[np.ndarray, int], np.ndarray | None] | None = None
    transcriber: Transcriber | None = None
    text: Callable[[str], tuple[float, int]] | None = None  # nats and tokens of an English text
    missing: list[str] = field(default_factory=list)

    def judge(self, audio: np.ndarray, sample_rate: int, language: str | None, transcript: str | None = None) -> Judged:
        """audio [S], spoken in `language` ("en"; None: nobody listened) -> all that is known of it.

        transcript: its words, where they are known already.
        """
        mos = None if self.mos is None else self.mos(audio, sample_rate)
        voice = None if self.embed is None else self.embed(audio, sample_rate)
        nats, tokens = None, 0
        if transcript is None and self.transcriber is not None and language is not None:
            transcript = self.transcriber.transcribe(audio, sample_rate, language)
        if transcript is not None and self.text is not None and language == ENGLISH:
            nats, tokens = self.text(transcript)
        return Judged(
            measure_speech(audio, sample_rate),
            mos if mos is not None and np.isfinite(mos) else None,
            None if voice is None else [round(float(value), 5) for value in voice],
            transcript,
            nats,
            tokens,
        )


def installed_judges(asr: bool) -> Judges:
    """Those whose packages are there; what is said is judged with `asr` only, which needs whisper's (extra 'asr')."""
    missing, mos, embed, transcriber, text = [], None, None, None, None
    if is_installed("MOS"):
        from .mos import OpinionScore

        mos = OpinionScore()
    if is_installed("similarity"):
        from .speaker import VoiceEncoder

        embed = VoiceEncoder().embed
    if asr:
        transcriber = Transcriber()
        if is_installed("GenPPL"):
            from .texts import TextJudge

            text = TextJudge()
    absent = [name for name in ("MOS", "similarity", *(("GenPPL",) if asr else ())) if not is_installed(name)]
    if absent:
        missing.append(f"{', '.join(absent)}: not installed ({INSTALL})")
    if not asr:
        missing.append("what is said (GenPPL, auto-BLEU, distinct-2, WER): give --asr")
    return Judges(mos, embed, transcriber, text, missing)
