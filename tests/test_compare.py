"""One clip against its reconstruction: mel distances at six resolutions, and means."""

from dataclasses import replace

import numpy as np
import pytest

from codeclm.inference.sound.compare import (
    ClipMeasures,
    Words,
    compare,
    heard_error_rate,
    mean_measures,
    mel_distance,
    text_error_rate,
)

RATE = 16_000
RNG = np.random.default_rng(0)
NOISE = 0.1 * RNG.normal(size=RATE)


def test_mel_distance_is_0_for_itself_and_the_logarithm_of_a_gain():
    assert mel_distance(NOISE, NOISE, RATE) == 0
    assert mel_distance(NOISE, NOISE / 10, RATE) == pytest.approx(1, abs=0.03)
    with pytest.raises(ValueError, match="nothing to compare"):
        mel_distance(NOISE, NOISE[:0], RATE)


def test_a_click_moves_the_mel_distance_of_short_windows(monkeypatch: pytest.MonkeyPatch):
    quiet = 1e-3 * NOISE
    clicked = quiet.copy()
    clicked[8000] = 1.0

    def at(window: int) -> float:
        monkeypatch.setattr("codeclm.inference.sound.compare.MEL_WINDOWS", (window,))
        return mel_distance(quiet, clicked, RATE)

    assert at(2048) > 5 * at(64) > 0  # a long window smears it over many frames: both are heard in the mean


def test_the_level_and_the_shape_of_a_louder_copy_are_told_apart():
    time = np.arange(2 * RATE) / RATE
    speech = 0.2 * np.sign(np.sin(2 * np.pi * 150 * time + 3 * np.sin(8 * time))) * (np.sin(12 * time) > -0.5)
    measured = compare(speech, 2 * speech, RATE)
    assert measured.loudness_difference_db == pytest.approx(6.02, abs=0.05)
    assert measured.si_sdr_db > 80 and measured.pitch_correlation == pytest.approx(1)
    assert np.isnan(measured.word_error_rate)


def test_means_skip_what_is_not_defined_and_pool_word_errors():
    pytest.importorskip("jiwer")
    one, two = (ClipMeasures(*([value] * 10)) for value in (1.0, float("nan")))
    mean = mean_measures([one, two], [Words("a b", "a b c"), Words("noise", "", "d")])
    assert mean.stoi == 1 and mean.word_error_rate == pytest.approx(1 / 3) and mean.text_error_rate == 1
    empty = mean_measures([two], [Words()])
    assert np.isnan([empty.stoi, empty.word_error_rate, empty.text_error_rate]).all()


def test_what_is_heard_is_compared_with_the_true_text_as_it_is_said_and_with_the_original_as_it_is_written():
    pytest.importorskip("jiwer")
    words = Words("mister 5", "Mr 5", "Mr. five", "en")
    assert (heard_error_rate([words]), text_error_rate([words])) == (0.5, 0)
    assert text_error_rate([replace(words, language="fr")]) == 1
    assert text_error_rate([words, Words("noise", "noise"), Words("", "", "a b", "en")]) == 0.5
