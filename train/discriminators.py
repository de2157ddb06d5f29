"""Small discriminators, which learn to tell decoded speech from real speech, and what the codec learns from them.

B batch, S samples, F frequency bins, N STFT frames.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from .codec_losses import magnitude, spectrum

Judgement = tuple[Tensor, list[Tensor]]  # scores, and the features on the way to them


class SpectrumDiscriminator(nn.Module):
    """Convolutions over one complex STFT; returns scores and the features on the way."""

    def __init__(self, window: int, channels: int):
        super().__init__()
        self.window = window
        sizes = [2, channels, channels, channels, channels]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (9, 3), stride=(2, 1), padding=(4, 1)))
            for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.score = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, audio: Tensor) -> Judgement:
        z = spectrum(audio, self.window)
        z = z * (magnitude(z)[..., None] + 1e-5) ** -0.5  # loud bins do not drown the others
        x = z.permute(0, 3, 1, 2)  # [B, 2, F, N], channels last in memory
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.score(x), features


class PeriodDiscriminator(nn.Module):
    """Convolutions over the samples folded into rows of one period (HiFi-GAN, arXiv:2010.05646)."""

    def __init__(self, period: int, channels: int):
        super().__init__()
        self.period = period
        sizes = [1, channels, 2 * channels, 4 * channels, 4 * channels]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), stride=(3, 1), padding=(2, 0)))
            for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.score = weight_norm(nn.Conv2d(sizes[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, audio: Tensor) -> Judgement:
        x = F.pad(audio, (0, -audio.shape[1] % self.period)).view(len(audio), 1, -1, self.period)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.score(x), features


class Discriminators(nn.Module):
    """One discriminator for each STFT window, and one for each period."""

    def __init__(self, windows: Sequence[int] = (240, 512, 1024), periods: Sequence[int] = (), channels: int = 16):
        super().__init__()
        self.parts = nn.ModuleList(
            [
                *(SpectrumDiscriminator(window, channels) for window in windows),
                *(PeriodDiscriminator(period, channels) for period in periods),
            ]
        )

    def forward(self, audio: Tensor) -> list[Judgement]:
        return [part(audio) for part in self.parts]


def discriminator_loss(real: list[Judgement], fake: list[Judgement]) -> Tensor:
    """Hinge loss."""
    losses = [
        F.relu(1 - score.float()).mean() + F.relu(1 + other.float()).mean()
        for (score, _), (other, _) in zip(real, fake, strict=True)
    ]
    return torch.stack(losses).mean()


def adversarial_losses(real: list[Judgement], fake: list[Judgement]) -> tuple[Tensor, Tensor]:
    """(how far the discriminators are from being fooled, feature matching relative to the real features' size)."""
    fooled = torch.stack([F.relu(1 - score.float()).mean() for score, _ in fake]).mean()
    matching = [
        (a.float() - b.detach().float()).abs().mean() / b.detach().float().abs().mean()
        for (_, fake_features), (_, real_features) in zip(fake, real, strict=True)
        for a, b in zip(fake_features, real_features, strict=True)
    ]
    return fooled, torch.stack(matching).mean()
