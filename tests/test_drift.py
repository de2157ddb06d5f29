"""inference/sound/drift.py: what changes along a continuation is seen in the quarter in which it changes."""

import numpy as np
import pytest

from codeclm.inference.sound.drift import measure_drift

RATE = 16_000


def buzz(pitch_hz: float, seconds: float, level: float) -> np.ndarray:
    """A voice-like sound: harmonics that fall off."""
    time = np.arange(round(seconds * RATE)) / RATE
    return level * sum(np.sin(2 * np.pi * pitch_hz * n * time) / n for n in range(1, 9))


def test_each_quarter_is_measured_alone():
    pause = np.zeros(RATE)
    parts = [buzz(120, 2, 0.2), buzz(120, 2, 0.02), buzz(240, 2, 0.02), np.concatenate([buzz(240, 1, 0.02), pause])]
    bits = np.repeat([10.0, 20.0, 30.0, 40.0], 50)
    drift = measure_drift(np.concatenate(parts), RATE, bits, 25.0)
    assert drift.bits_per_second == [250, 500, 750, 1000]
    assert [round(part.median_pitch_hz, -1) for part in drift.parts] == [120, 120, 240, 240]
    assert drift.loudness_change_db == pytest.approx(20, abs=0.5)
    assert drift.silence_change == pytest.approx(0.5, abs=0.05)
    lines = drift.table().splitlines()
    assert lines[1].split()[:3] == ["0.0", "-", "2.0"] and len(lines) == 6
    assert "20.0 dB" in lines[-1] and "0.49 of the time" in lines[-1]


def test_silence_is_said_as_such():
    drift = measure_drift(np.concatenate([buzz(120, 3, 0.2), np.zeros(RATE)]), RATE, np.zeros(0), 25.0)
    assert drift.loudness_change_db == float("inf")
    assert drift.table().splitlines()[4].split() == ["3.0", "-", "4.0", "-", "100%", "0%", "-", "-"]
