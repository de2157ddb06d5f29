"""The pairs of `codeclm evaluate hearing`, made of speech at hand: can a model hear who speaks, and how, and where?

A consistency probe has two values of an attribute, x and y (two speakers; as recorded and 4 semitones higher). A clip
is a first half and a second half, each with one of them:

    better   xx   yy        both orders, so each second half is as often in a better clip as in a worse one:
    worse    xy   yx        what is likelier by itself, or was processed, is no cue

Halves end and begin where the recordings are quiet and are joined by a cross-fade, also in the better clip; both have
one level, unless the level is asked about, and one length. The same speech and seed give the same samples.
"""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import combinations, cycle, islice
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from ...data.audio_out import save_audio
from ...data.progress import progress_bar
from ...model.files import readable, write_whole
from ...model.strict import read_object
from ..sound.manipulate import FADE_S, at_level, in_room, join, low_pass, quietest, with_noise
from ..sound.stretch import shift_pitch, stretch
from .pairs import Pair, read_pairs, to_json_lines
from .spoken import EXTRA, PACKAGE, VOICE, Speaker, as_text, sentence, shuffled, word_pairs
from .voices import HALF_S, MIN_HALF_S, RATE, Voice, read_voice, rotation, split, voice_folders

RECIPE = "codeclm-hearing-1"
LEVEL_DBFS, QUIETER_DB = -26.0, 10.0
SEMITONES, FASTER, RT60_S, SNR_DB, BAND_HZ = 4.0, 1.35, 0.6, 15.0, 3400.0
WHOLE_S = 4.0  # a clip that is not made of halves, at most
READ_ALOUD = 60  # recordings of the synthetic voice

logger = logging.getLogger(__name__)

Effect = Callable[[np.ndarray], np.ndarray]
Halves = tuple[np.ndarray, np.ndarray]  # with the values x and y


class Clip(NamedTuple):
    """A better and a worse recording [S], and the samples where they differ."""

    better: np.ndarray
    worse: np.ndarray
    span: tuple[int, int] | None


@dataclass(frozen=True)
class Speech:
    """What the pairs are made from."""

    voices: list[Voice]
    speaker: Speaker | None


class CannotBeMade(Exception):
    """Why there is not the speech for a probe."""


def make_pairs(
    folder: Path, speech: Path | None, num_pairs: int, seed: int, progress: bool = True
) -> tuple[list[Pair], dict[str, str]]:
    """Make the pairs in `folder`, or find them there -> them, and the probes that were left out with the reason.

    Raises FileNotFoundError without speech, ValueError if `folder` holds pairs of another recipe.
    """
    folders = voice_folders(speech)
    recipe = {
        "recipe": RECIPE,
        "pairs": num_pairs,
        "seed": seed,
        "voices": {path.name: sum(file.is_file() for file in path.iterdir()) for path in folders},
        "synthetic": find_spec(PACKAGE) is not None,
    }
    made, listed = folder / "hearing.json", folder / "pairs.jsonl"
    if made.is_file():
        stored = read_object(made)
        if {key: stored.get(key) for key in recipe} != recipe:
            raise ValueError(f"{readable(folder)}: holds pairs of another recipe or speech; choose another --out")
        return read_pairs(listed), stored["left_out"]
    material, pairs, left_out = _speech(folders), [], {}
    total = num_pairs * len(PROBES)
    with progress_bar(total=total, unit="pair", desc="make", leave=False, disable=not progress) as bar:
        for task, probe in PROBES.items():
            try:
                clips = probe(material, np.random.default_rng([seed, crc32(task.encode())]))
                for number, clip in enumerate(islice(clips, num_pairs)):
                    pairs.append(_written(folder, task, number, clip))
                    bar.update()
            except CannotBeMade as reason:
                left_out[task] = str(reason)
                logger.warning("left out: %s: %s", task, reason)
                bar.update(num_pairs)
    write_whole(listed, to_json_lines(pairs, folder))
    write_whole(made, json.dumps(recipe | {"left_out": left_out}, indent=2) + "\n")
    return pairs, left_out


def _speech(folders: list[Path]) -> Speech:
    voices = [voice for folder in folders if (voice := read_voice(folder)).recordings]
    speaker = Speaker() if find_spec(PACKAGE) is not None else None
    if speaker is not None and all(voice.name != VOICE for voice in voices):
        rng = np.random.default_rng(crc32(VOICE.encode()))
        texts = [" ".join(as_text(sentence(rng)) for _ in range(2)) for _ in range(READ_ALOUD)]
        voices.append(Voice(VOICE, tuple(speaker.say(text) for text in texts)))
    return Speech(voices, speaker)


def _written(folder: Path, task: str, number: int, clip: Clip) -> Pair:
    paths = [folder / "clips" / task / f"{number:04d}_{side}.wav" for side in ("better", "worse")]
    for path, audio in zip(paths, (clip.better, clip.worse), strict=True):
        save_audio(path, audio, RATE)
    return Pair(f"{task}/{number}", task, paths[0], paths[1], clip.span)


def both_orders(before: Halves, after: Halves, levels: tuple[float, float] = (LEVEL_DBFS, LEVEL_DBFS)) -> list[Clip]:
    """First halves with the values x and y, second halves with x and y -> xx against xy, and yy against yx.

    levels: in dBFS, of what has the value x, and y.
    """
    length = min(round(HALF_S * RATE), *map(len, before), *map(len, after))
    first = [at_level(half[-length:], level) for half, level in zip(before, levels, strict=True)]
    second = [at_level(half[:length], level) for half, level in zip(after, levels, strict=True)]
    clips = []
    for same, other in ((0, 1), (1, 0)):
        better, start = join(first[same], second[same], RATE)
        worse, _ = join(first[same], second[other], RATE)
        clips.append(Clip(better, worse, (start, len(better))))
    return clips


def _processed(
    effect: Callable[[int, np.random.Generator], Effect], levels: tuple[float, float] = (LEVEL_DBFS, LEVEL_DBFS)
) -> Callable[[Speech, np.random.Generator], Iterator[Clip]]:
    """A probe with the values "as recorded" and "processed" of the two halves of one recording.

    effect: number of the recording, random numbers -> what is done to a half.
    """

    def probe(speech: Speech, rng: np.random.Generator) -> Iterator[Clip]:
        for number, (voice, index) in enumerate(_recordings(speech, rng)):
            halves = split(voice.recordings[index])
            assert halves is not None
            process = effect(number, rng)
            before, after = ((half, process(half)) for half in halves)
            yield from both_orders(before, after, levels)

    return probe


def _pitch(number: int, rng: np.random.Generator) -> Effect:
    return lambda audio: shift_pitch(audio, SEMITONES if number % 2 else -SEMITONES, RATE)


def _rate(number: int, rng: np.random.Generator) -> Effect:
    return lambda audio: stretch(audio, 1 / FASTER, RATE)


def _loudness(number: int, rng: np.random.Generator) -> Effect:
    return lambda audio: audio  # the levels do it


def _room(number: int, rng: np.random.Generator) -> Effect:
    seed = int(rng.integers(2**32))  # both halves are in the same room
    return lambda audio: in_room(audio, RT60_S, RATE, np.random.default_rng(seed))


def _noise(number: int, rng: np.random.Generator) -> Effect:
    return lambda audio: with_noise(audio, SNR_DB, rng)


def _band(number: int, rng: np.random.Generator) -> Effect:
    return lambda audio: low_pass(audio, BAND_HZ, RATE)


def _between(couples: Callable[[Speech], list[tuple[Voice, Voice]]], missing: str):
    """A probe with two voices as values: four recordings, of which one of a voice goes on with the other one.

    missing: what to say where there are no such two voices.
    """

    def probe(speech: Speech, rng: np.random.Generator) -> Iterator[Clip]:
        found = [couple for couple in couples(speech) if all(len(voice.recordings) > 1 for voice in couple)]
        if not found:
            raise CannotBeMade(missing)
        for couple in cycle(found):
            chosen = [rng.choice(len(voice.recordings), 2, replace=False) for voice in couple]
            halves = [[voice.recordings[i] for i in both] for voice, both in zip(couple, chosen, strict=True)]
            (before_x, after_x), (before_y, after_y) = halves
            yield from both_orders((before_x, before_y), (after_x, after_y))

    return probe


def _speakers(speech: Speech) -> list[tuple[Voice, Voice]]:
    """Speakers of one gender, so that it is not gender that is heard."""
    return [(a, b) for a, b in combinations(speech.voices, 2) if a.speaker != b.speaker and a.gender == b.gender]


def _genders(speech: Speech) -> list[tuple[Voice, Voice]]:
    return [(a, b) for a, b in combinations(speech.voices, 2) if {a.gender, b.gender} == {"male", "female"}]


def _languages(speech: Speech) -> list[tuple[Voice, Voice]]:
    return [
        (a, b)
        for a, b in combinations(speech.voices, 2)
        if a.speaker == b.speaker and a.language and b.language and a.language != b.language
    ]


def _splice(speech: Speech, rng: np.random.Generator) -> Iterator[Clip]:
    """A recording goes on as it did, or as another one of the same voice did, from an equally quiet place."""
    for voice, index in _recordings(speech, rng):
        others = [i for i, audio in enumerate(voice.recordings) if i != index and split(audio) is not None]
        if others:
            halves = [split(voice.recordings[i]) for i in (index, rng.choice(others))]
            (a, b), (c, d) = (half for half in halves if half is not None)
            yield from both_orders((a, c), (b, d))


def _reversed(speech: Speech, rng: np.random.Generator) -> Iterator[Clip]:
    fade = np.minimum(1, (np.arange(round(WHOLE_S * RATE)) + 1) / (FADE_S * RATE))
    for voice, index in _recordings(speech, rng, MIN_HALF_S):
        audio = voice.recordings[index]
        if len(audio) > WHOLE_S * RATE:
            audio = audio[: quietest(audio, round(0.75 * WHOLE_S * RATE), round(WHOLE_S * RATE), RATE)]
        ramp = fade[: len(audio)]
        audio = at_level(audio * ramp * ramp[::-1], LEVEL_DBFS)
        yield Clip(audio, audio[::-1], None)


def _word(speech: Speech, rng: np.random.Generator) -> Iterator[Clip]:
    speaker = _speaker(speech)
    for word, pseudo in word_pairs(rng):
        yield _said(speaker, word, pseudo)


def _sentence(speech: Speech, rng: np.random.Generator) -> Iterator[Clip]:
    speaker = _speaker(speech)
    while True:
        words = sentence(rng)
        yield _said(speaker, as_text(words), as_text(shuffled(words, rng)))


def _said(speaker: Speaker, better: str, worse: str) -> Clip:
    clips = [at_level(speaker.say(text), LEVEL_DBFS) for text in (better, worse)]
    return Clip(clips[0], clips[1], None)


def _speaker(speech: Speech) -> Speaker:
    if speech.speaker is None:
        raise CannotBeMade(f"needs more packages: pip install 'codeclm[{EXTRA}]'")
    return speech.speaker


def _recordings(speech: Speech, rng: np.random.Generator, min_s: float = 2 * MIN_HALF_S) -> Iterator[tuple[Voice, int]]:
    found = rotation(speech.voices, rng, min_s)
    first = next(found, None)
    if first is None:
        raise CannotBeMade(f"no recording is as long as {min_s:g} s")
    yield first
    yield from found


PROBES: dict[str, Any] = {
    "speaker": _between(_speakers, "needs two speakers of one gender with two recordings each"),
    "gender": _between(
        _genders, "needs a low voice (below 150 Hz) and a high one (above 190 Hz) with two recordings each"
    ),
    "language": _between(_languages, "needs two folders of one speaker: NAME_en and NAME_es"),
    "pitch": _processed(_pitch),
    "rate": _processed(_rate),
    "loudness": _processed(_loudness, (LEVEL_DBFS, LEVEL_DBFS - QUIETER_DB)),
    "room": _processed(_room),
    "noise": _processed(_noise),
    "band": _processed(_band),
    "splice": _splice,
    "reversed": _reversed,
    "word": _word,
    "sentence": _sentence,
}
