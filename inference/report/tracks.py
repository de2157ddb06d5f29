"""A recording as the tracks that page.js draws: plain numbers and base64 bytes. S samples, T frames, K codebooks."""

import base64
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..sound.formants import formant_tracks, has_praat
from ..sound.measures import log_mel, pitch_track
from ..sound.spectrogram import HZ_TICKS, RANGE_DB

PEAKS_PER_SECOND = 60  # in the waveform
COLUMNS_PER_SECOND, MOST_COLUMNS = 60, 1800  # in the spectrogram; page.js draws a minute 1800 pixels wide
BANDS = 96


@dataclass(frozen=True)
class Word:
    """A word that was heard, and roughly when."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Sound:
    """One recording on a page, with as much as is known of it."""

    name: str
    audio: np.ndarray  # [S] float32
    sample_rate: int
    about: str = ""
    frame_rate: float = 0.0  # the codes'
    codes: np.ndarray | None = None  # [K, T]
    surprise_bits: np.ndarray | None = None  # [K, T]
    prompt_s: float = 0.0  # where a continuation starts
    words: list[Word] = field(default_factory=list)
    transcript: str | None = None  # None: nobody listened

    @property
    def seconds(self) -> float:
        return len(self.audio) / self.sample_rate


@dataclass(frozen=True)
class Moment:
    """A frame that cost more bits than those around it."""

    time_s: float
    bits: float


def surprising_moments(
    surprise_bits: np.ndarray, frame_rate: float, most: int = 8, apart_s: float = 0.4
) -> list[Moment]:
    """surprise_bits [K, T] -> the frames that cost the most, dearest first, none within `apart_s` of another."""
    totals, found = surprise_bits.sum(axis=0), []
    for frame in np.argsort(-totals, kind="stable"):
        if all(abs(frame / frame_rate - moment.time_s) >= apart_s for moment in found):
            found.append(Moment(float(frame / frame_rate), float(totals[frame])))
        if len(found) == most:
            break
    return found


def tracks(sound: Sound) -> dict[str, Any]:
    """What page.js needs, ready for JSON."""
    audio, rate = sound.audio.astype(np.float64), sound.sample_rate
    pitch = pitch_track(audio, rate)
    values: dict[str, Any] = {
        "seconds": round(sound.seconds, 4),
        "prompt_s": round(sound.prompt_s, 4),
        "frame_rate": sound.frame_rate,
        "wave": _base64(_peaks(audio, round(PEAKS_PER_SECOND * sound.seconds) + 1)),
        "spectrogram": _spectrogram(audio, rate),
        "pitch": pitch.round(1).tolist(),
    }
    if has_praat():
        formants = formant_tracks(sound.audio, rate)
        voiced = np.resize(pitch > 0, formants.shape[1])
        values["formants"] = np.where(voiced, formants, 0).round().astype(int).tolist()
    if sound.surprise_bits is not None:
        values["surprise"] = sound.surprise_bits.round(2).tolist()
    if sound.codes is not None:
        values["codes"] = sound.codes.tolist()
    return values


def _peaks(audio: np.ndarray, count: int) -> np.ndarray:
    """audio [S] -> the largest magnitude of each of `count` pieces, 0..255 of full scale."""
    starts = np.linspace(0, len(audio), count, endpoint=False).astype(int)
    peaks = np.maximum.reduceat(np.abs(audio), starts)
    return np.minimum(255, 255 * peaks).astype(np.uint8)


def _spectrogram(audio: np.ndarray, rate: int) -> dict[str, Any]:
    hop = max(round(rate / COLUMNS_PER_SECOND), math.ceil(len(audio) / MOST_COLUMNS))
    decibel = 20 * log_mel(
        audio, rate, window=2 ** round(np.log2(0.04 * rate)), hop=hop, bands=BANDS
    )  # [bands, columns]
    share = 1 + (decibel - decibel.max()) / RANGE_DB
    levels = (255 * share.clip(0, 1)).round().astype(np.uint8).T
    return {
        "bands": levels.shape[1],
        "columns": levels.shape[0],
        "levels": _base64(levels),
        "top_hz": rate / 2,
        "hz": [hz for hz in HZ_TICKS if hz < 0.9 * rate / 2],
    }


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
