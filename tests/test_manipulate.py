"""sound/manipulate.py and stretch.py: what is done to speech is what it is called, and nothing else."""

from pathlib import Path

import numpy as np
import pytest

from codeclm.data.audio import load_audio, loudness_dbfs
from codeclm.inference.sound.manipulate import (
    at_level,
    coloured,
    in_room,
    join,
    low_pass,
    quietest,
    trimmed,
    with_noise,
)
from codeclm.inference.sound.measures import measure_speech, semitones
from codeclm.inference.sound.stretch import shift_pitch, stretch

RATE = 16_000


@pytest.fixture(scope="module")
def voice() -> np.ndarray:
    return load_audio(Path(__file__).parent.parent / "model/pretrained/prompt.flac", RATE)


@pytest.mark.parametrize("factor", [0.5, 1 / 1.35, 1.0, 1.5])
def test_a_stretched_voice_keeps_pitch_and_level(factor, voice):
    stretched = stretch(voice, factor, RATE)
    assert len(stretched) == round(factor * len(voice))
    before, after = measure_speech(voice, RATE), measure_speech(stretched, RATE)
    assert abs(semitones(after.median_pitch_hz, before.median_pitch_hz)) < 0.5
    assert abs(after.loudness_dbfs - before.loudness_dbfs) < 1.0


def test_stretched_by_one_a_voice_is_the_same(voice):
    np.testing.assert_allclose(stretch(voice, 1.0, RATE), voice, rtol=0, atol=1e-6)


@pytest.mark.parametrize("by", [-4, 4])
def test_a_shifted_voice_is_higher_by_so_many_semitones_and_as_long(by, voice):
    shifted = shift_pitch(voice, by, RATE)
    pitches = [measure_speech(audio, RATE).median_pitch_hz for audio in (shifted, voice)]
    assert abs(semitones(*pitches) - by) < 0.5 and abs(len(shifted) - len(voice)) <= 2


def test_a_factor_of_nothing_is_refused(voice):
    with pytest.raises(ValueError, match="factor is 0"):
        stretch(voice, 0, RATE)


def test_a_level_is_reached_unless_peaks_would_be_clipped(voice):
    assert loudness_dbfs(at_level(voice, -26.0)) == pytest.approx(-26.0, abs=1e-3)
    loud = at_level(voice, 0.0)
    assert np.abs(loud).max() == pytest.approx(0.99) and loudness_dbfs(loud) < 0


def test_noise_has_its_level_and_less_of_high_frequencies(voice):
    noise = with_noise(voice, 15.0, np.random.default_rng(0)) - voice
    assert loudness_dbfs(voice) - loudness_dbfs(noise) == pytest.approx(15.0, abs=0.01)
    power = np.square(np.abs(np.fft.rfft(noise)))
    octaves = [power[len(power) >> n + 1 : len(power) >> n].sum() for n in range(4)]  # pink: as much in each
    np.testing.assert_allclose(octaves, np.mean(octaves), rtol=0.1)


def test_a_room_decays_by_60_db_in_its_time():
    click = np.zeros(RATE, np.float32)
    click[0] = 1.0
    tail = in_room(click, 0.6, RATE, np.random.default_rng(0)) - click
    early, late = (loudness_dbfs(tail[start : start + 1600]) for start in (1600, 1600 + 4800))
    assert early - late == pytest.approx(30.0, abs=1.0)  # in 0.3 s
    assert np.square(tail).sum() == pytest.approx(1.0, rel=1e-3) and np.abs(tail[round(0.6 * RATE) :]).max() < 1e-9


def test_low_pass_takes_what_is_above_and_leaves_what_is_below(voice):
    before, after = (np.abs(np.fft.rfft(audio)) for audio in (voice, low_pass(voice, 3400.0, RATE)))
    hz = np.fft.rfftfreq(len(voice), 1 / RATE)
    np.testing.assert_allclose(after[hz < 3200], before[hz < 3200], rtol=0, atol=1e-3)
    assert after[hz > 3600].max() < 1e-3


def test_silence_around_speech_goes_but_for_its_edge(voice):
    silence = np.zeros(RATE, np.float32)
    inner = trimmed(voice, RATE)
    assert len(trimmed(np.concatenate([silence, inner, silence]), RATE)) == pytest.approx(len(inner), abs=0.1 * RATE)


def test_the_quietest_place_is_the_gap(voice):
    gap = np.concatenate([0.1 + voice[:8000], np.zeros(400), 0.1 + voice[8000:16_000]])
    assert abs(quietest(gap, 1000, 15_000, RATE) - 8200) < 100


def test_a_joint_is_a_cross_fade():
    audio, start = join(np.full(1000, 1.0), np.full(800, -1.0), RATE)
    assert (len(audio), start) == (1640, 840)
    assert np.all(audio[:840] == 1) and np.all(audio[1000:] == -1) and np.abs(np.diff(audio)).max() < 0.02


def test_a_coloured_sound_has_other_bands_and_the_same_rhythm():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(RATE).astype(np.float32)
    output = coloured(noise, 6.0, RATE, np.random.default_rng(1))
    assert output.shape == noise.shape and np.isfinite(output).all()
    ratio = np.abs(np.fft.rfft(output)) / np.abs(np.fft.rfft(noise))
    decibel = 20 * np.log10(ratio[100 : RATE // 2])
    assert decibel.max() - decibel.min() > 6  # other bands
    assert np.abs(np.diff(decibel)).max() < 1  # and smooth between them
    assert np.array_equal(coloured(noise, 0.0, RATE, rng).round(3), noise.round(3))
