"""What the codec is compared by: zero for what sounds equal, more for what sounds worse, gradients that are finite."""

import pytest
import torch

from codeclm.train import codec_losses as losses

RATE = 16_000


def speech_like(seed: int = 0) -> torch.Tensor:
    """[2, S]: harmonics and breath under a moving envelope."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(RATE) / RATE
    tone = sum(torch.sin(2 * torch.pi * 150 * n * time) / n for n in range(1, 20))
    envelope = 0.1 + torch.sin(2 * torch.pi * torch.tensor([[3.0], [2.0]]) * time).square()
    return 0.1 * envelope * (tone + 0.2 * torch.randn(2, RATE, generator=generator))


def test_what_sounds_equal_costs_nothing_and_noise_costs_more_the_louder_it_is():
    target, noise = speech_like(), torch.randn(2, RATE, generator=torch.Generator().manual_seed(1))
    equal, quiet, loud = (
        losses.reconstruction_terms(output, target, RATE)
        for output in (-target, target + 0.003 * noise, target + 0.03 * noise)
    )
    for name in equal.keys() - {"level"}:
        assert equal[name] < 2e-3 and 2 * equal[name] < quiet[name] < loud[name], name


def test_the_level_loss_is_the_distance_in_bels():
    target = speech_like()
    assert float(losses.level_loss(target / 10, target, RATE)) == pytest.approx(2.0, abs=1e-2)
    assert float(losses.level_loss(-target, target, RATE)) == 0.0


def test_every_loss_has_a_finite_gradient_in_silence():
    for target in (torch.zeros(2, RATE), speech_like()):
        output = torch.zeros(2, RATE, requires_grad=True)
        for name, loss in losses.reconstruction_terms(output, target, RATE).items():
            (gradient,) = torch.autograd.grad(loss, output, retain_graph=True)
            assert torch.isfinite(loss) and torch.isfinite(gradient).all(), name


def test_added_noise_disturbs_more_than_noise_that_is_missing():
    clean, noise = speech_like(), 0.02 * torch.randn(2, RATE, generator=torch.Generator().manual_seed(1))
    assert (
        losses.loudness_losses(clean + noise, clean, RATE)[1]
        > 2 * losses.loudness_losses(clean, clean + noise, RATE)[1]
    )


def test_loudness_is_relative_to_the_target_whatever_its_level():
    target, output = speech_like(), speech_like(seed=5)
    one, other = (losses.loudness_losses(scale * output, scale * target, RATE) for scale in (1.0, 0.1))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_envelopes_are_compared_by_shape_not_by_level():
    target = speech_like()
    assert losses.envelope_loss(0.3 * target, target, RATE) < 2e-3
    flat = target / target.unfold(1, 400, 400).square().mean(dim=2).sqrt().repeat_interleave(400, dim=1)
    assert losses.envelope_loss(flat, target, RATE) > 0.2


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000])
def test_every_bin_belongs_to_a_bark_band_and_every_band_has_a_bin(rate: int):
    bank, threshold = losses.bark_filterbank(rate, losses.samples(losses.EAR_S, rate))
    assert (bank.sum(dim=0) >= 1).all() and (bank.sum(dim=1) >= 1).all()
    assert threshold.shape == (49, 1) and 0.1 < threshold.min() < 1  # lowest at 3 to 4 kHz, just under 0 dB
