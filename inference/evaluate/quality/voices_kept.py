"""Is the prompt's voice kept? Similarity, pitch and level of a sound against its own prompt, beside other prompts.

An "other" prompt is one of another voice where there are several (folders tell voices apart), else any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...config import EvaluateConfig
from ...sound.measures import SpeechMeasures, semitones
from ..margins import right
from .estimate import Estimate, estimate
from .items import Item
from .judges import Judged
from .material import CONTINUATION, KINDS
from .speaker import similarity

NEAR_SEMITONES, NEAR_DB = 3.0, 4.0  # as far from the prompt's pitch and level
ANOTHER = "another's continuation"


@dataclass(frozen=True)
class VoiceKept:
    """How one kind of sound keeps the voice; shares are 0..1. The prompt is as recorded, not the codec's rendering."""

    own: Estimate | None  # similarity to its own prompt
    other: Estimate | None  # to other prompts
    nearer: Estimate | None  # share of other prompts to which it is less similar than to its own; chance is 0.5
    pitch: Estimate | None  # share with a median pitch within 3 semitones of the prompt's
    level: Estimate | None  # share with a level within 4 dB of the prompt's


def voices_kept(items: Sequence[Item], config: EvaluateConfig) -> dict[str, VoiceKept]:
    """Kind -> how well it keeps the voice; ANOTHER: continuations of other prompts, as if they were this prompt's."""
    found = {}
    for kind in KINDS:
        numbers = [number for number, item in enumerate(items) if kind in item.sounds]
        if numbers:
            found[kind] = _kept(items, kind, numbers, config)
        if numbers and kind == CONTINUATION and len(items) > 1:
            found[ANOTHER] = _of_others(items, config)
    return found


def each_voice(items: Sequence[Item], config: EvaluateConfig) -> dict[str, VoiceKept]:
    """Voice -> how well continuations keep it; nothing where there is one voice."""
    found: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        found.setdefault(item.voice, []).append(number)
    if len(found) < 2:
        return {}
    return {voice: _kept(items, CONTINUATION, numbers, config) for voice, numbers in found.items()}


def others(items: Sequence[Item], number: int) -> list[Item]:
    """The items of other voices, or all others where there is one voice."""
    elsewhere = [item for item in items if item.voice != items[number].voice]
    return elsewhere or [item for index, item in enumerate(items) if index != number]


def _kept(items: Sequence[Item], kind: str, numbers: Sequence[int], config: EvaluateConfig) -> VoiceKept:
    own, other, nearer = [], [], []
    for number in numbers:
        sound, prompt = items[number].sounds[kind], items[number].prompt
        mine = likeness(sound, prompt)
        theirs = [likeness(sound, item.prompt) for item in others(items, number)]
        known = np.array([value for value in theirs if value is not None])
        own.append(mine)
        if mine is not None and len(known):
            other.append(float(known.mean()))
            nearer.append(float(right(mine - known).mean()))
    pairs = [(items[number].sounds[kind].measures, items[number].prompt.measures) for number in numbers]
    return VoiceKept(
        own=estimate(own, config),
        other=estimate(other, config),
        nearer=estimate(nearer, config),
        pitch=estimate([pitch_is_near(*pair) for pair in pairs], config),
        level=estimate([level_is_near(*pair) for pair in pairs], config),
    )


def _of_others(items: Sequence[Item], config: EvaluateConfig) -> VoiceKept:
    own, pitch, level = [], [], []
    for number, item in enumerate(items):
        sounds = [other.sounds[CONTINUATION] for other in others(items, number)]
        own.append(_mean([likeness(sound, item.prompt) for sound in sounds]))
        pitch.append(_mean([pitch_is_near(sound.measures, item.prompt.measures) for sound in sounds]))
        level.append(_mean([level_is_near(sound.measures, item.prompt.measures) for sound in sounds]))
    return VoiceKept(estimate(own, config), None, None, estimate(pitch, config), estimate(level, config))


def pitch_is_near(sound: SpeechMeasures, prompt: SpeechMeasures) -> float | None:
    """1 or 0; a sound without pitch is not near. None if the prompt has none."""
    if prompt.median_pitch_hz <= 0:
        return None
    pitches = (sound.median_pitch_hz, prompt.median_pitch_hz)
    return float(min(pitches) > 0 and abs(semitones(*pitches)) <= NEAR_SEMITONES)


def level_is_near(sound: SpeechMeasures, prompt: SpeechMeasures) -> float | None:
    """1 or 0; None if the prompt is silent."""
    if not np.isfinite(prompt.loudness_dbfs):
        return None
    return float(abs(sound.loudness_dbfs - prompt.loudness_dbfs) <= NEAR_DB)


def likeness(sound: Judged, prompt: Judged) -> float | None:
    """The similarity of their voices; None where one was not judged."""
    if sound.voice is None or prompt.voice is None:
        return None
    return similarity(np.array(sound.voice), np.array(prompt.voice))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
