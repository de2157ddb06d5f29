"""The "spectral" codec's encoder: audio to the latent that is quantized. It looks at no sample after its frame.

B batch, S samples, N trunk frames, T codec frames, d width of what is quantized.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codec_shapes import SpectralConfig
from .convnext import State, Trunk


class Encoder(nn.Module):
    window: Tensor
    pitch_taper: Tensor
    taper_correlation: Tensor

    def __init__(self, config: SpectralConfig):
        super().__init__()
        self.config = config
        self._double: tuple[Encoder, ...] = ()  # in a tuple: it is no part of this module
        self.register_buffer("window", torch.hann_window(config.window), persistent=False)
        self.register_buffer("pitch_taper", torch.hann_window(config.pitch_window), persistent=False)
        self.lags = slice(config.pitch_window * 7 // 512, config.pitch_window * 41 // 256)  # in steps of two samples
        taper = self._correlate(torch.fft.rfft(self.pitch_taper, n=self.pitch_size).abs().square())
        self.register_buffer("taper_correlation", taper, persistent=False)
        num_features = 3 * (config.window // 2 + 1) + 2 * (self.lags.stop - self.lags.start + 2)
        self.inlet = nn.Linear(num_features, config.encoder_dim)
        self.trunk = Trunk("encoder", config.encoder_layers, config.encoder_dim, config.kernel, config.expansion)
        self.downsample = nn.Linear(config.stride * config.encoder_dim, config.dim)
        self.latent_trunk = Trunk("latent", config.latent_layers, config.dim, config.kernel, config.expansion)
        self.norm = nn.LayerNorm(config.dim)
        self.outlet = nn.Linear(config.dim, config.codebook_dim)

    def forward(self, audio: Tensor, state: State | None = None) -> Tensor:
        """audio [B, S], S a multiple of trunk_hop * stride -> latent [B, T, d]."""
        x = self.trunk(self.inlet(self.features(audio, state)), state)
        batch, steps, dim = x.shape
        x = self.downsample(x.reshape(batch, steps // self.config.stride, self.config.stride * dim))
        return self.outlet(self.norm(self.latent_trunk(x, state)))

    @property
    def reach(self) -> int:
        """Codec frames before a frame that its latent depends on."""
        config = self.config
        samples = max(config.window, config.pitch_window) - config.trunk_hop
        trunk_frames = math.ceil(samples / config.trunk_hop) + config.encoder_layers * (config.kernel - 1)
        return math.ceil(trunk_frames / config.stride) + config.latent_layers * (config.kernel - 1)

    def exactly(self, audio: Tensor) -> Tensor:
        """`forward` from the start of a stream, in float64: [B, S] -> [B, T, d]."""
        return self._in_float64()(audio.double())

    def _in_float64(self) -> "Encoder":
        """A copy: other threads use this one meanwhile. Kept where weights are frozen: training changes them."""
        if self._double:
            return self._double[0]
        double = copy.deepcopy(self).double()
        if not any(weight.requires_grad for weight in self.parameters()):
            self._double = (double,)
        return double

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "Encoder":
        self._double = ()  # it would stay behind when the encoder moves
        super()._apply(fn, recurse)
        return self

    def features(self, audio: Tensor, state: State | None = None) -> Tensor:
        """[B, S] -> [B, N, features]: the spectrum with its magnitude to the power 0.3, its log, autocorrelations.

        Frame n sees the samples that end with its hop, `pitch_window` of them for the autocorrelations.
        """
        longest = max(self.config.window, self.config.pitch_window)
        overlap = longest - self.config.trunk_hop
        left = None if state is None else state.get("audio")
        audio = F.pad(audio, (overlap, 0)) if left is None else torch.cat([left, audio], dim=1)
        if state is not None:
            state["audio"] = audio[:, audio.shape[1] - overlap :]
        frames = audio.unfold(1, longest, self.config.trunk_hop)  # [B, N, longest]
        spectrum = torch.fft.rfft(frames[..., longest - self.config.window :] * self.window, dim=-1)
        power = power_of(spectrum)
        compressed = spectrum * power ** ((0.3 - 1) / 2)
        similar = self.autocorrelations(frames[..., longest - self.config.pitch_window :] * self.pitch_taper)
        peaks = [self.peak(correlation) for correlation in similar]
        similar = [4 * correlation for correlation in similar]
        return torch.cat([compressed.real, compressed.imag, power.log() / 8, *similar, *peaks], dim=-1)

    @property
    def pitch_size(self) -> int:
        return 3 * self.config.pitch_window // 2

    def autocorrelations(self, frames: Tensor) -> list[Tensor]:
        """[B, N, pitch_window] -> plain, and of the compressed spectrum: two of [B, N, lags], at most 1."""
        power = power_of(torch.fft.rfft(frames, n=self.pitch_size, dim=-1))
        return [self._correlate(p) for p in (power, power**0.3)]

    def _correlate(self, power: Tensor) -> Tensor:
        """Power spectra [..., pitch_size // 2 + 1], of which the lower half counts -> [..., lags]."""
        correlation = torch.fft.irfft(power[..., : self.pitch_size // 4 + 1], n=self.pitch_size // 2, dim=-1)
        return correlation[..., self.lags] / correlation[..., :1]

    def peak(self, correlation: Tensor) -> Tensor:
        """[B, N, lags] -> height of the best peak, and its log2 frequency less a constant [B, N, 2].

        A longer lag costs a little, so that a multiple of the period is not taken for it.
        """
        lags = torch.arange(self.lags.start, self.lags.stop, device=correlation.device)
        upright = correlation / self.taper_correlation - 0.05 * (lags / self.lags.start).log2()
        before, middle, after = upright[..., :-2], upright[..., 1:-1], upright[..., 2:]
        height, index = torch.where((middle >= before) & (middle > after), middle, -1.0).max(dim=-1, keepdim=True)
        left, top, right = (x.gather(-1, index) for x in (before, middle, after))
        shift = 0.5 * (left - right) / (left - 2 * top + right).clamp(max=-1e-6)  # of a parabola through the three
        lag = lags[1:-1][index] + shift.clamp(-1, 1)
        return torch.cat([height, (4 * self.lags.start / lag).log2()], dim=-1)


def power_of(spectrum: Tensor) -> Tensor:
    """Squared magnitudes, at least 1e-8; several times faster than `abs` of complex numbers."""
    return (spectrum.real.square() + spectrum.imag.square()).clamp_min(1e-8)
