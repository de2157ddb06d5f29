"""Recordings with their true texts, out of all that `prepare` reads: what words are counted on. S samples."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.audio import AudioError, evenly
from ...data.encode_files import true_text
from ...data.sources import Source, find_sources

MIN_WORDS, MAX_S = 5, 15.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Transcribed:
    """One recording, and what is said in it."""

    source: Source
    text: str
    audio: np.ndarray  # [S] at the rate that was asked for


def with_text(data: Path, limit: int, sample_rate: int) -> tuple[list[Transcribed], list[Source]]:
    """`limit` recordings with a text of some words, short enough for a model's context, and all that there are.

    They are spread evenly over those with a text. Raises AudioError (a ValueError) if none can be used.
    """
    sources = find_sources(data).sources
    texts = {number: text for number, source in enumerate(sources) if (text := true_text(source)) is not None}
    spoken = [number for number, text in texts.items() if len(text.split()) >= MIN_WORDS]
    found: list[Transcribed] = []
    first = evenly(spoken, limit)
    for number in [*first, *sorted(set(spoken) - set(first))]:
        if len(found) == limit:
            break
        try:
            audio = sources[number].load(sample_rate)
        except AudioError as error:
            log.warning(f"skipped {error}")
            continue
        if len(audio) <= MAX_S * sample_rate:
            found.append(Transcribed(sources[number], texts[number], audio))
    if not found:
        wanted = f"a text of {MIN_WORDS} words (in NAME.txt, in a folder of audio), and {MAX_S:g} s or less"
        raise AudioError(f"{data}: none of {len(sources)} recordings has {wanted}")
    return found, sources
