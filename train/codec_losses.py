"""What the codec is trained to match: spectra at several resolutions, and small STFT discriminators.

B batch, S samples, F frequency bins, N STFT frames.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESOLUTIONS = ((128, 16), (320, 48), (640, 80), (1600, 128))  # (window, mel bands)
PHASE_WINDOWS = (320, 640)  # the windows at which phase counts, too
DISCRIMINATOR_WINDOWS = (240, 512, 1024)


def spectrum(audio: Tensor, window: int) -> Tensor:
    """[B, S] -> real and imaginary part [B, F, N, 2], hop a quarter of the window."""
    taper = torch.hann_window(window, device=audio.device)
    return torch.view_as_real(
        torch.stft(audio.float(), window, window // 4, window=taper, center=True, return_complex=True)
    )


def magnitude(z: Tensor) -> Tensor:
    """[..., 2] -> [...]; with a floor, so that its gradient is finite in silence."""
    return (z.square().sum(dim=-1) + 1e-8).sqrt()


@lru_cache
def mel_filterbank(sample_rate: int, window: int, num_bands: int) -> Tensor:
    """[num_bands, window // 2 + 1]: triangles at equal distances on the mel scale (HTK formula)."""
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, num_bands + 2, dtype=torch.float64) / 2595) - 1)
    frequencies = torch.linspace(0, sample_rate / 2, window // 2 + 1, dtype=torch.float64)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    bank = torch.minimum(rising, falling).clamp_min(0)
    # at low frequencies a short window has no bin inside a band: give the band its nearest bin
    for band in (bank.sum(dim=1) == 0).nonzero().flatten():
        bank[band, (frequencies - edges[band + 1]).abs().argmin()] = 1.0
    return bank.float()


def log_mel(size: Tensor, sample_rate: int, window: int, num_bands: int) -> Tensor:
    """Magnitudes [B, F, N] -> log10 mel magnitudes [B, num_bands, N], floored at -5."""
    return (mel_filterbank(sample_rate, window, num_bands).to(size.device) @ size).clamp_min(1e-5).log10()


def spectral_losses(output: Tensor, target: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """(mel, complex) for two [B, S].

    mel: mean absolute difference of log mel spectra over RESOLUTIONS. complex: squared distance of spectra with
    magnitudes to the power 0.3, with and without phase, over PHASE_WINDOWS; rewards phase where it can be predicted.
    """
    mel_terms, complex_terms = [], []
    for window, bands in RESOLUTIONS:
        a, b = spectrum(output, window), spectrum(target, window)
        size_a, size_b = magnitude(a), magnitude(b)
        mel_terms.append(
            F.l1_loss(log_mel(size_a, sample_rate, window, bands), log_mel(size_b, sample_rate, window, bands))
        )
        if window in PHASE_WINDOWS:
            scale_a, scale_b = size_a**-0.7, size_b**-0.7
            with_phase = (a * scale_a[..., None] - b * scale_b[..., None]).square().sum(dim=-1).mean()
            complex_terms.append(with_phase + (size_a * scale_a - size_b * scale_b).square().mean())
    return torch.stack(mel_terms).mean(), torch.stack(complex_terms).mean()


class SpectrumDiscriminator(nn.Module):
    """Convolutions over one complex STFT; returns scores and the features on the way."""

    def __init__(self, window: int, channels: int):
        super().__init__()
        self.window = window
        sizes = [2, channels, channels, channels, channels]
        self.layers = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(a, b, (9, 3), stride=(2, 1), padding=(4, 1)))
            for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.score = nn.utils.parametrizations.weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        z = spectrum(audio, self.window)
        z = z * (magnitude(z)[..., None] + 1e-5) ** -0.5  # loud bins do not drown the others
        x = z.permute(0, 3, 1, 2)  # [B, 2, F, N], channels last in memory
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.score(x), features


class Discriminators(nn.Module):
    def __init__(self, channels: int = 16):
        super().__init__()
        self.parts = nn.ModuleList(SpectrumDiscriminator(window, channels) for window in DISCRIMINATOR_WINDOWS)

    def forward(self, audio: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        return [part(audio) for part in self.parts]


def discriminator_loss(real: list[tuple[Tensor, list[Tensor]]], fake: list[tuple[Tensor, list[Tensor]]]) -> Tensor:
    """Hinge loss."""
    losses = [
        F.relu(1 - score.float()).mean() + F.relu(1 + other.float()).mean()
        for (score, _), (other, _) in zip(real, fake, strict=True)
    ]
    return torch.stack(losses).mean()


def adversarial_losses(
    real: list[tuple[Tensor, list[Tensor]]], fake: list[tuple[Tensor, list[Tensor]]]
) -> tuple[Tensor, Tensor]:
    """(how far the discriminators are from being fooled, feature matching relative to the real features' size)."""
    fooled = torch.stack([F.relu(1 - score.float()).mean() for score, _ in fake]).mean()
    matching = [
        (a.float() - b.detach().float()).abs().mean() / b.detach().float().abs().mean()
        for (_, fake_features), (_, real_features) in zip(fake, real, strict=True)
        for a, b in zip(fake_features, real_features, strict=True)
    ]
    return fooled, torch.stack(matching).mean()
