"""When words are said, where that comes with speech: what aligners and recognisers write, in JSON beside the audio.

    {"alignments": [["word", [0.32, 0.61], "SPEAKER_MAIN"], ...]}        moshi-finetune
    {"words": [{"word": "word", "start": 0.32, "end": 0.61}, ...]}       Whisper, WhisperX; also in each of "segments"

A token store keeps when each character is said (text_times.py): those of a word follow each other evenly from its start
to its end. T frames, L characters.
"""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .text_encoder import clean_text
from .text_times import UNHEARD

Word = tuple[str, float, float]  # or a part of one; where it begins and ends, in seconds

LISTS = ("alignments", "words", "segments")  # the first that is there counts


def has_words(values: Any) -> bool:
    """Whether what a JSON file says of a recording has words with times, whole or broken: "words" may be others."""
    name = next((name for name in LISTS if values.get(name)), None) if isinstance(values, Mapping) else None
    entries = values[name] if name is not None else ()
    if not isinstance(entries, list):
        return False
    if name == "segments":
        return any(isinstance(segment, Mapping) and segment.get("words") for segment in entries)
    return any(_is_timed(entry) for entry in entries)


def _is_timed(entry: Any) -> bool:
    if isinstance(entry, Mapping):
        return "start" in entry
    return isinstance(entry, list) and len(entry) > 1 and isinstance(entry[1], list)


def words_beside(audio: Path) -> Path | None:
    """NAME.json of NAME.wav, if that is there and has words with times; what else it may be is nothing of ours."""
    path = audio.with_suffix(".json")
    try:
        return path if has_words(json.loads(path.read_bytes())) else None
    except (OSError, ValueError):
        return None


def read_words(content: bytes) -> tuple[Word, ...]:
    """The words of a JSON file, in their order. One without times, as WhisperX leaves what it could not align, stands
    where the one before it ends. Raises ValueError, to stand after the file's name, if they are broken.
    """
    words: list[Word] = []
    try:
        values = json.loads(content)
        name = next(name for name in LISTS if values.get(name))
        entries = values[name]
        if name == "segments":
            entries = [entry for segment in entries for entry in segment.get("words") or ()]
        for entry in entries:
            words.append(_word(entry, words[-1][2] if words else 0.0))
        return tuple(words)
    except (TypeError, ValueError, LookupError, AttributeError, StopIteration):
        raise ValueError("has no words with the seconds where they begin and end; mend or remove it") from None


def _word(entry: Any, before: float) -> Word:
    """before: where the word before it ends."""
    if isinstance(entry, Mapping):
        text, start, end = entry["word"] if "word" in entry else entry["text"], entry.get("start"), entry.get("end")
    else:
        text, (start, end) = entry[:2]
    start, end = (before, before) if start is None or end is None else (float(start), float(end))
    if not isinstance(text, str) or not 0 <= start <= end < math.inf:
        raise ValueError
    return text, start, end


def words_between(words: Sequence[Word], start_s: float, end_s: float) -> list[Word]:
    """Those whose middle is there."""
    return [word for word in words if start_s <= (word[1] + word[2]) / 2 < end_s]


def text_of(words: Sequence[Word]) -> str | None:
    return clean_text(" ".join(text for text, _, _ in words)) or None


def letters_of(words: Sequence[Word]) -> list[Word]:
    """Letters and digits of words, each with its share of the word's time."""
    letters: list[Word] = []
    for word, start, end in words:
        heard = [character for character in word if character.isalnum()]
        bounds = np.linspace(start, end, len(heard) + 1).tolist()
        letters += [(letter, *times) for letter, times in zip(heard, pairwise(bounds), strict=True)]
    return letters


def character_frames(
    text: str, words: Sequence[Word], frame_rate: float, num_frames: int, start_s: float = 0.0
) -> np.ndarray | None:
    """The frame [L] in which each character of a clean text begins, UNHEARD for what is no letter or digit.

    None unless the words, or parts of words, are the text, but for case, white space and punctuation. start_s: where
    the T frames begin in the recording.
    """
    places = [place for place, character in enumerate(text) if character.isalnum()]
    letters = letters_of(words)
    spelled = "".join(letter for letter, _, _ in letters)
    if not places or spelled.casefold() != "".join(text[place] for place in places).casefold():
        return None
    seconds = np.array([start for _, start, _ in letters])
    found = np.floor((seconds - start_s) * frame_rate).astype(np.int64).clip(0, num_frames - 1)
    frames = np.full(len(text), UNHEARD)
    frames[places] = np.maximum.accumulate(found)
    return frames
