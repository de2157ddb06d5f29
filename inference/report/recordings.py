"""Recordings as a language model hears them: rendered by its codec, with its surprise, their words, and what follows.

T frames, K codebooks.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...data.audio import AudioError, load_audio
from ...data.progress import progress_bar
from ...model.files import readable
from ..evaluate.score import codes_nll
from ..generator import SpeechGenerator
from ..sound.transcribe import Transcriber
from .config import ReportConfig
from .page import Page, Section
from .sounds import codebook_table, continuation, heard, rendering
from .tracks import Sound


def recordings_page(lm: SpeechGenerator, paths: Sequence[Path], config: ReportConfig = ReportConfig()) -> Page:
    """The page of some recordings. One that cannot be used is named. Raises AudioError if none can."""
    transcriber = Transcriber() if config.asr else None
    rate, sections, unusable = lm.codec.sample_rate, [], []
    for path in progress_bar(paths, desc="report", unit="recording", delay=2):
        try:
            audio = load_audio(path, rate)
        except AudioError as error:
            unusable.append(str(error))
            continue
        sections.append(_section(lm, readable(path.name), audio, config, transcriber))
    if not sections:
        raise AudioError(unusable[0] if unusable else "no recording was given")
    notes = [
        f"As {lm.name} hears it: codes of the codec {lm.codec.name}, and the bits that each costs the model. "
        "Click into a picture to hear from there; with the keyboard, arrow keys move and space plays.",
        *(f"skipped {reason}" for reason in unusable),
    ]
    return Page("What the model hears", notes, sections)


def _section(
    lm: SpeechGenerator, name: str, audio: np.ndarray, config: ReportConfig, transcriber: Transcriber | None
) -> Section:
    rate = lm.codec.sample_rate
    shown = audio[: round(config.limit_s * rate)]
    codes = lm.encode((shown, rate), math.inf)
    nll = codes_nll(lm.model, codes)
    about = f"{len(audio) / rate:.1f} s"
    if len(shown) < len(audio):
        about = f"the first {len(shown) / rate:.0f} s of {about}"
    sounds = [Sound("recording", shown, rate, about), rendering(lm, codes.cpu().numpy(), nll, len(shown))]
    if config.continuations:
        prompt = shown[: round(config.prompt_s * rate)]
        seeds = range(config.seed, config.seed + config.continuations)
        made = lm.generate_many((prompt, rate), config.duration, seeds)
        sounds += [continuation(lm, generation) for generation in made]
    return Section(name, (), heard(sounds, transcriber), [codebook_table(codes.cpu().numpy(), nll, lm)])
