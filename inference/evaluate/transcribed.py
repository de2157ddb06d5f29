"""Recordings with their true texts, out of all that `prepare` reads: what words are counted on. S samples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.audio import AudioError, audio_blocks
from ...data.encode_files import read_transcript
from ...data.sources import Source, find_sources

MIN_WORDS, MAX_S = 5, 15.0


@dataclass(frozen=True)
class Transcribed:
    """One recording, and what is said in it."""

    source: Source
    text: str
    audio: np.ndarray  # [S] at the rate that was asked for


def read_audio(source: Source, sample_rate: int) -> np.ndarray:
    """[S]. Raises AudioError, naming the source, for what is no speech."""
    part = source.label, source.start_s, source.end_s
    return np.concatenate(list(audio_blocks(source.open(), sample_rate, True, *part)))


def true_text(source: Source) -> str | None:
    if source.has_transcript and isinstance(source.audio, Path):
        return read_transcript(source.audio)
    return source.text


def with_text(data: Path, limit: int, sample_rate: int) -> tuple[list[Transcribed], list[Source]]:
    """`limit` recordings with a text of some words, short enough for a model's context, and all that there are.

    They are spread evenly over those with a text. Raises AudioError (a ValueError) if none can be used.
    """
    sources = find_sources(data).sources
    texts = {number: text for number, source in enumerate(sources) if (text := true_text(source)) is not None}
    spoken = [number for number, text in texts.items() if len(text.split()) >= MIN_WORDS]
    found: list[Transcribed] = []
    for number in _evenly_first(spoken, limit):
        if len(found) == limit:
            break
        try:
            audio = read_audio(sources[number], sample_rate)
        except AudioError:
            continue
        if len(audio) <= MAX_S * sample_rate:
            found.append(Transcribed(sources[number], texts[number], audio))
    if not found:
        wanted = f"a text of {MIN_WORDS} words (in NAME.txt, in a folder of audio), and {MAX_S:g} s or less"
        raise AudioError(f"{data}: none of {len(sources)} recordings has {wanted}")
    return found, sources


def _evenly_first(numbers: Sequence[int], count: int) -> Iterator[int]:
    """`count` of them, evenly spread, then the others."""
    first = [numbers[i * len(numbers) // count] for i in range(count)] if len(numbers) > count else list(numbers)
    yield from first
    chosen = set(first)
    yield from (number for number in numbers if number not in chosen)
