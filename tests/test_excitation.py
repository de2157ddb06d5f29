"""The decoder's sources: pulses with every harmonic at one level, in step across chunks, and white noise."""

import torch

from codeclm.model.codecs.excitation import NOISE_PERIOD, noise_table, pitch_curve, pulses

RATE = 16_000


def steady(hertz: float, seconds: float = 1.0) -> torch.Tensor:
    return torch.full((1, round(seconds * RATE)), hertz, dtype=torch.float64)


def start() -> torch.Tensor:
    return torch.zeros(1, 1, dtype=torch.float64)


def test_pulses_hold_every_harmonic_at_one_level_and_nothing_else():
    audio, _ = pulses(steady(200.0), RATE, start())
    power = torch.fft.rfft(audio[0]).abs().square() / len(audio[0])  # one bin a hertz
    harmonics = power[200:7801:200]
    assert harmonics.max() < 1.02 * harmonics.min()
    assert harmonics.sum() > 0.97 * power.sum()


def test_pulses_have_the_same_mean_power_at_every_pitch():
    for hertz in (61.0, 123.4, 499.0):
        audio, _ = pulses(steady(hertz), RATE, start())
        assert abs(float(audio.square().mean()) - 1) < 0.05


def test_pulses_of_chunks_joined_are_the_pulses_of_the_whole():
    pitch = 7 + torch.rand(1, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole, _ = pulses(pitch_curve(pitch, pitch[:, :1], 320), RATE, start())
    first, phase = pulses(pitch_curve(pitch[:, :13], pitch[:, :1], 320), RATE, start())
    second, _ = pulses(pitch_curve(pitch[:, 13:], pitch[:, 12:13], 320), RATE, phase)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, atol=1e-5, rtol=0)


def test_the_topmost_harmonic_comes_and_goes_softly():
    glide = torch.linspace(390, 400, RATE, dtype=torch.float64)[None]  # the number of harmonics falls by one
    audio, _ = pulses(glide, RATE, start())
    still, _ = pulses(steady(395.0), RATE, start())
    assert audio.diff(n=2).abs().max() < 1.05 * still.diff(n=2).abs().max()


def test_the_pitch_curve_is_straight_in_octaves_and_ends_on_the_pitch():
    curve = pitch_curve(torch.tensor([[8.0, 7.0]]), torch.tensor([[7.0]]), 4)
    torch.testing.assert_close(curve.log2(), torch.tensor([[7.25, 7.5, 7.75, 8.0, 7.75, 7.5, 7.25, 7.0]]))


def test_noise_is_white_at_power_1_and_the_same_everywhere():
    noise = noise_table()
    assert noise.shape == (NOISE_PERIOD,)
    assert abs(float(noise.square().mean()) - 1) < 0.02 and abs(float(noise.mean())) < 0.02
    power = torch.fft.rfft(noise).abs().square()[1:] / NOISE_PERIOD
    bands = torch.stack([band.mean() for band in power.chunk(32)])
    assert bands.min() > 0.8 and bands.max() < 1.2
    similarity = torch.fft.irfft(torch.fft.rfft(noise).abs().square())[1:] / NOISE_PERIOD
    assert similarity.abs().max() < 0.05
    expected = torch.tensor([-0.8953313, 1.7046235, 1.0209373, 1.1861421])
    torch.testing.assert_close(noise[:4], expected, atol=1e-6, rtol=0)
