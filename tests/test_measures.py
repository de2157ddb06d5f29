"""Measures of audio, against signals whose pitch, level and voicing are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeclm.inference.sound import measures
from codeclm.inference.sound.measures import measure_speech, pitch_correlation, pitch_track, si_sdr

RATE = 16_000


def voice(pitch_hz: np.ndarray | float, duration_s: float = 1.0, rate: int = RATE, level: float = 0.3) -> np.ndarray:
    """Harmonics up to 4 kHz, falling by 1/k, of a pitch that may move (array [S])."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(pitch_hz, round(duration_s * rate))) / rate
    count = int(4000 / np.max(pitch_hz))
    signal = np.sum([np.sin(k * phase + k * k) / k for k in range(1, count + 1)], axis=0)
    return level * signal / np.abs(signal).max()


def noise(duration_s: float = 2.0, level: float = 0.1) -> np.ndarray:
    return level * np.random.default_rng(0).normal(size=round(duration_s * RATE))


@settings(max_examples=20)
@given(st.floats(65, 480), st.sampled_from([8_000, 11_050, 16_000, 22_050, 24_000, 44_100]))
def test_pitch_of_a_harmonic_tone_is_found_within_one_percent_at_any_rate(pitch_hz: float, rate: int):
    track = pitch_track(voice(pitch_hz, 0.4, rate), rate)[3:-3]
    assert np.abs(track / pitch_hz - 1).max() < 0.01


def test_of_equally_good_periods_the_shortest_is_the_pitch():
    time = np.arange(RATE) / RATE
    tone = np.sin(2 * np.pi * 250 * time)  # repeats just as well after 2, 3 and 4 periods
    assert pitch_track(tone, RATE)[3:-3] == pytest.approx(250, rel=0.01)


def test_a_moment_that_looks_an_octave_higher_makes_the_track_jump_only_after_a_pause():
    lags = np.tile([80.0, 160.0], (5, 1))
    scores = np.array([[0.6, 0.9], [0.6, 0.9], [0.9, 0.6], [0.6, 0.9], [0.6, 0.9]])
    voiced = np.ones(5, dtype=bool)
    assert measures._best_path(lags, scores, linked=voiced).tolist() == [1, 1, 1, 1, 1]
    assert measures._best_path(lags, scores, linked=~voiced).tolist() == [1, 1, 0, 1, 1]


@pytest.mark.parametrize("strong", [2, 3])
def test_a_strong_harmonic_is_not_taken_for_the_pitch(strong: int):
    time = np.arange(RATE) / RATE
    signal = voice(95.0) + 0.5 * np.sin(2 * np.pi * strong * 95.0 * time)
    assert np.median(pitch_track(signal, RATE)) == pytest.approx(95.0, rel=0.01)


def test_noise_and_silence_are_unvoiced():
    assert measure_speech(noise(), RATE).voiced_share < 0.01
    silence = measure_speech(np.zeros(RATE), RATE)
    assert silence.voiced_share == 0 and silence.silent_share == 1 and silence.loudness_dbfs == -np.inf


def test_a_track_follows_a_glide_without_octave_jumps():
    wanted = np.geomspace(90, 350, 2 * RATE)
    track = pitch_track(voice(wanted, 2.0), RATE)[3:-3]
    expected = wanted[80::160][3:-3]
    assert np.abs(12 * np.log2(track / expected)).max() < 0.5


def test_shares_and_loudness_are_those_of_the_parts_that_were_joined():
    found = measure_speech(np.concatenate([voice(120, 1.0), noise(1.0), np.zeros(2 * RATE)]), RATE)
    assert found.duration_s == 4.0
    assert found.silent_share == pytest.approx(0.5, abs=0.02)
    assert found.voiced_share == pytest.approx(0.25, abs=0.02)
    assert found.median_pitch_hz == pytest.approx(120, rel=0.01)
    tone = measure_speech(0.5 * np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE), RATE)
    assert tone.loudness_dbfs == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.1)


def test_twice_the_amplitude_is_6_db_and_changes_no_pitch():
    quiet, loud = measure_speech(voice(150, level=0.2), RATE), measure_speech(voice(150, level=0.4), RATE)
    assert loud.loudness_dbfs - quiet.loudness_dbfs == pytest.approx(6.02, abs=0.01)
    assert loud.median_pitch_hz == pytest.approx(quiet.median_pitch_hz)
    assert loud.peak == pytest.approx(2 * quiet.peak)


def test_clipped_share_counts_samples_at_full_scale():
    assert measure_speech(voice(150, level=0.9), RATE).clipped_share == 0
    assert measure_speech(np.clip(voice(150, level=3.0), -1, 1), RATE).clipped_share > 0.02


def test_no_samples_count_as_silence_and_nan_is_refused():
    assert measure_speech(np.zeros(0, np.float32), RATE).silent_share == 1
    with pytest.raises(ValueError, match="NaN"):
        measure_speech(np.full(RATE, np.nan), RATE)
    with pytest.raises(ValueError, match="mono"):
        pitch_track(np.zeros((2, RATE)), RATE)


def test_long_audio_gives_the_track_of_its_parts(monkeypatch: pytest.MonkeyPatch):
    signal = voice(np.geomspace(100, 200, RATE)) + noise(1.0, 0.01)
    whole = pitch_track(signal, RATE)
    monkeypatch.setattr(measures, "BLOCK_FRAMES", 7)
    assert np.array_equal(pitch_track(signal, RATE), whole)


def test_pitch_correlation_is_1_with_itself_and_minus_1_with_the_opposite_glide():
    up, down = voice(np.linspace(100, 200, RATE)), voice(np.linspace(200, 100, RATE))
    assert pitch_correlation(up, up, RATE) == pytest.approx(1)
    assert pitch_correlation(up, down, RATE) < -0.95
    assert np.isnan(pitch_correlation(up, noise(1.0), RATE))


def test_log_mel_distance_is_0_for_itself_and_the_logarithm_of_a_gain():
    signal = voice(120) + noise(1.0)
    assert measures.log_mel_distance(signal, signal, RATE) == 0
    assert measures.log_mel_distance(signal, signal / 10, RATE) == pytest.approx(1, abs=0.02)


@settings(max_examples=20)
@given(st.floats(0.01, 100))
def test_si_sdr_does_not_depend_on_the_scale_of_the_output(scale: float):
    clean, error = voice(120), noise(1.0, 0.05)
    assert si_sdr(clean, scale * (clean + error)) == pytest.approx(si_sdr(clean, clean + error), abs=1e-6)


def test_si_sdr_is_the_ratio_of_uncorrelated_parts_in_db():
    clean = np.sin(2 * np.pi * 100 * np.arange(RATE) / RATE)
    error = 0.1 * np.cos(2 * np.pi * 100 * np.arange(RATE) / RATE)
    assert si_sdr(clean, clean + error) == pytest.approx(20, abs=1e-6)
    with pytest.raises(ValueError, match="silent"):
        si_sdr(np.zeros(RATE), clean)


def test_semitones_count_twelve_an_octave():
    assert measures.semitones(220, 110) == pytest.approx(12)
    assert measures.semitones(110, 220) == pytest.approx(-12)
    with pytest.raises(ValueError, match="above 0 Hz"):
        measures.semitones(0, 100)


def test_pesq_and_stoi_rate_equal_audio_best_and_name_what_they_cannot_rate():
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    syllables = voice(np.geomspace(100, 180, 2 * RATE), 2.0) * (np.sin(2 * np.pi * 3 * np.arange(2 * RATE) / RATE) > 0)
    worse = syllables + noise(2.0, 0.1)
    for measure, best in ((measures.pesq_wb, 4.64), (measures.stoi, 1.0)):
        assert measure(syllables, syllables, RATE) == pytest.approx(best, abs=0.01)
        assert measure(syllables, worse, RATE) < best - 0.05
        with pytest.raises(ValueError, match="cannot rate this clip"):
            measure(syllables[:1600], syllables[:1600], RATE)


def test_a_missing_package_is_named_with_what_to_install():
    with pytest.raises(ImportError, match=r"needs: pip install 'codeclm\[eval\]'"):
        measures._eval_package("a_package_that_nobody_has")
