"""Does a long continuation drift? Its measures, quarter by quarter. S samples, T frames."""

import itertools
from dataclasses import dataclass

import numpy as np

from ..text_table import number, text_table
from .measures import SpeechMeasures, measure_speech

NUM_PARTS = 4


@dataclass(frozen=True)
class Drift:
    parts: list[SpeechMeasures]  # equally long parts, in order
    bits_per_second: list[float]  # each part's

    @property
    def loudness_change_db(self) -> float:
        """The largest from a part to the next; infinite where one is all silence."""
        levels = [part.loudness_dbfs for part in self.parts]
        return max(abs(b - a) if np.isfinite([a, b]).all() else float("inf") for a, b in itertools.pairwise(levels))

    @property
    def silence_change(self) -> float:
        """The largest from a part to the next, of the share of pauses."""
        return max(abs(b.silent_share - a.silent_share) for a, b in itertools.pairwise(self.parts))

    def table(self) -> str:
        rows = [["seconds", "loudness dBFS", "silent", "voiced", "pitch Hz", "bits/s"]]
        start = 0.0
        for part, bits in zip(self.parts, self.bits_per_second, strict=True):
            stop = start + part.duration_s
            measures = [(part.loudness_dbfs, ".1f"), (part.silent_share, ".0%"), (part.voiced_share, ".0%")]
            measures += [(part.median_pitch_hz or float("nan"), ".0f"), (bits, ".0f")]
            rows.append([f"{start:.1f} - {stop:.1f}", *(number(*measure) for measure in measures)])
            start = stop
        changes = f"{self.loudness_change_db:.1f} dB of loudness and {self.silence_change:.2f} of the time in pauses"
        return "\n".join([*text_table(rows), f"most that changed from a quarter to the next: {changes}"])


def measure_drift(audio: np.ndarray, sample_rate: int, bits: np.ndarray, frame_rate: float) -> Drift:
    """audio [S] and the surprise of its frames, bits [T]."""
    parts = [measure_speech(part, sample_rate) for part in np.array_split(audio, NUM_PARTS)]
    rates = [float(part.mean()) * frame_rate if len(part) else float("nan") for part in np.array_split(bits, NUM_PARTS)]
    return Drift(parts, rates)
