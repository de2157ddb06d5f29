"""The voices that `codeclm evaluate hearing` makes its pairs from: a folder of recordings for each. S samples.

A folder's name is SPEAKER or SPEAKER_LANGUAGE with a language of two letters, as in allison_en and allison_es: the same
speaker in two languages. What comes after another "_" (june_test) is part of no language.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ...data.audio import AudioError, evenly, find_audio, load_audio
from ...model.files import readable
from ..sound.manipulate import quietest, trimmed
from ..sound.measures import measure_speech

RATE = 16_000  # Hz of all clips
HALF_S, MIN_HALF_S = 2.0, 1.2  # a clip's half, and the least there must be of it
SPEECH = Path("datasets/speech")  # the recipe's
UNSEEN = "june_test"  # the only folder of the recipe's other recordings that has one voice and is not tuned on
MOST_RECORDINGS = 400  # a voice's
MALE_BELOW_HZ, FEMALE_ABOVE_HZ = 150.0, 190.0  # median pitch; between them gender is not told by it
PITCHED = 16  # recordings that tell a voice's pitch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Voice:
    """Recordings of one voice at RATE, without the silence around them, each at least as long as half a clip."""

    name: str
    recordings: tuple[np.ndarray, ...]  # [S] each

    @property
    def speaker(self) -> str:
        return speaker_of(self.name)

    @property
    def language(self) -> str | None:
        match = re.fullmatch(r"[^_]+_([a-z]{2})", self.name)
        return match[1] if match else None

    @cached_property
    def gender(self) -> str:
        """By pitch: "male", "female", or "" where it lies between."""
        pitches = [measure_speech(audio, RATE).median_pitch_hz for audio in self.recordings[:PITCHED]]
        heard = [pitch for pitch in pitches if pitch > 0]
        pitch = float(np.median(heard)) if heard else 0.0
        return "male" if 0 < pitch < MALE_BELOW_HZ else "female" if pitch > FEMALE_ABOVE_HZ else ""


def speaker_of(folder_name: str) -> str:
    return folder_name.split("_")[0]


def voice_folders(speech: Path | None) -> list[Path]:
    """The folders of `speech`, or those that the recipe made to test with. Needs no torch.

    Raises FileNotFoundError, saying where speech comes from, if there are none.
    """
    if speech is not None:
        folders = [folder for folder in sorted(speech.glob("*")) if folder.is_dir()]
    else:
        folders = [*sorted((SPEECH / "heldout").glob("*")), SPEECH / "unseen" / UNSEEN]
        folders = [folder for folder in folders if folder.is_dir()]
    if not folders:
        where = readable(SPEECH if speech is None else speech)
        raise FileNotFoundError(
            f"{where}: has no folder of a voice, from which 'hearing' could be made; give --speech FOLDER with a "
            f"sub-folder for each voice, or make it: python -m codeclm.train.recipes.corpus {SPEECH}"
        )
    return folders


def read_voice(folder: Path) -> Voice:
    """Its recordings that can be used; others are left out without a word, as short prompts are many."""
    found = []
    try:
        files = evenly(find_audio(folder), MOST_RECORDINGS)
    except AudioError as error:
        logger.info("skipped %s", error)
        files = []
    for path in files:
        try:
            audio = trimmed(load_audio(path, RATE), RATE)
        except AudioError as error:
            logger.info("skipped %s", error)
            continue
        if len(audio) >= MIN_HALF_S * RATE:
            found.append(audio)
    return Voice(folder.name, tuple(found))


def split(audio: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """A recording [S], cut at its quietest place that leaves half a clip on both sides; None if it is too short."""
    least = round(MIN_HALF_S * RATE)
    if len(audio) < 2 * least:
        return None
    cut = quietest(audio, least, len(audio) - least, RATE)
    return audio[:cut], audio[cut:]


def rotation(voices: Sequence[Voice], rng: np.random.Generator, min_s: float) -> Iterator[tuple[Voice, int]]:
    """Recordings of at least `min_s`, as voice and number, without end: voices in turn, none twice before all."""
    usable = [
        [number for number, audio in enumerate(voice.recordings) if len(audio) >= min_s * RATE] for voice in voices
    ]
    while any(usable):
        waiting = [list(rng.permutation(numbers)) for numbers in usable]
        while any(waiting):
            for voice, numbers in zip(voices, waiting, strict=True):
                if numbers:
                    yield voice, int(numbers.pop())
