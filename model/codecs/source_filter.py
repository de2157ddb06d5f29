"""The "spectral" codec's decoder: latents to filters over frequency, and to the pitch of the pulses they filter.

B batch, S samples, N trunk frames, T codec frames, M filters, d width of what is quantized.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codec_shapes import SpectralConfig
from .convnext import CausalConv, State, Trunk
from .excitation import NOISE_PERIOD, noise_table, pitch_curve, pulses


class PitchReader(nn.Module):
    """The pitch that the codes carry. In float64, so that pulses stay in step however a stream is cut."""

    def __init__(self, config: SpectralConfig):
        super().__init__()
        self.mix = CausalConv("pitch", config.codebook_dim, config.pitch_dim, 5)
        self.hidden = nn.Linear(config.pitch_dim, config.pitch_dim)
        self.out = nn.Linear(config.pitch_dim, config.stride)
        nn.init.constant_(self.out.bias, 7.3)

    def forward(self, latent: Tensor, state: State | None = None) -> Tensor:
        """latent [B, T, d] -> log2 of the pitch in Hz at the end of each trunk frame's hop [B, N] float64."""
        x = F.gelu(self.mix(latent.double(), state))
        for layer, activation in ((self.hidden, F.gelu), (self.out, nn.Identity())):
            x = activation(F.linear(x, layer.weight.double(), layer.bias.double()))
        return x.flatten(1).clamp(5.6, 9.2)


class Decoder(nn.Module):
    window: Tensor
    noise: Tensor
    phases: Tensor

    def __init__(self, config: SpectralConfig):
        super().__init__()
        self.config = config
        self.num_bins = config.synthesis_window // 2 + 1
        self.register_buffer("window", torch.hann_window(config.synthesis_window), persistent=False)
        self.register_buffer("noise", noise_table(), persistent=False)
        self.register_buffer("phases", dispersing_phases(self.num_bins, config.dispersion), persistent=False)
        self.pitch = PitchReader(config)
        self.inlet = nn.Linear(config.codebook_dim, config.dim)
        self.latent_trunk = Trunk("bottleneck", config.bottleneck_layers, config.dim, config.kernel, config.expansion)
        self.upsample = nn.Linear(config.dim, config.stride * config.dim)
        self.trunk = Trunk("decoder", config.decoder_layers, config.dim, config.kernel, config.expansion)
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, 2 * config.filters_per_hop * self.num_bins)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.constant_(self.head.bias, -4.0)

    def filters(self, latent: Tensor, state: State) -> Tensor:
        """latent [B, T, d] -> gains of pulses and noise [B, M, 2, bins]."""
        x = self.upsample(self.latent_trunk(self.inlet(latent), state))
        batch, steps, _ = x.shape
        x = self.trunk(x.reshape(batch, steps * self.config.stride, self.config.dim), state)
        return self.head(self.norm(x)).float().clamp(max=6.0).exp().view(batch, -1, 2, self.num_bins)

    def sources(self, pitch: Tensor, state: State) -> Tensor:
        """log2 Hz [B, N] -> pulses and noise [B, 2, N * trunk_hop + what the first window sees before them]."""
        batch, steps = pitch.shape
        frequency = pitch_curve(pitch, state.get("pitch.before", pitch[:, :1]), self.config.trunk_hop)
        phase = state.get("pitch.phase", pitch.new_zeros(batch, 1))
        voice, state["pitch.phase"] = pulses(frequency, self.config.sample_rate, phase)
        start = state.get("noise.start", torch.zeros(batch, 1, dtype=torch.long, device=pitch.device))
        index = start + torch.arange(frequency.shape[1], device=pitch.device)
        sources = torch.stack([voice, self.noise[index % NOISE_PERIOD]], dim=1)
        state["pitch.before"], state["noise.start"] = pitch[:, -1:], index[:, -1:] % NOISE_PERIOD + 1
        left = state.get("sources", sources.new_zeros(batch, 2, self.overlap))
        sources = torch.cat([left, sources], dim=2)
        state["sources"] = sources[..., sources.shape[2] - self.overlap :]
        return sources

    def synthesise(self, gains: Tensor, sources: Tensor) -> Tensor:
        """Gains [B, M, 2, bins] and sources [B, 2, M * hop + overlap] -> windowed frames [B, M, window]."""
        frames = sources.unfold(2, self.config.synthesis_window, self.config.synthesis_hop) * self.window
        spectra = torch.fft.rfft(frames, dim=-1).transpose(1, 2)  # [B, M, 2, bins]
        if self.config.dispersion:
            spectra = spectra * self.phases
        return torch.fft.irfft((spectra * gains).sum(dim=2), n=self.config.synthesis_window, dim=-1) * self.window

    def push(self, latent: Tensor, state: State, pitch: Tensor | None = None) -> Tensor:
        """latent [B, T, d] -> the audio [B, S] that is complete with it, `latency_samples` behind; updates `state`.

        pitch: log2 Hz [B, T * stride] to sing at instead of what the codes say.
        """
        config, batch = self.config, len(latent)
        gains = self.filters(latent, state)
        sung: Tensor = self.pitch(latent, state) if pitch is None else pitch.double()
        early = dropped(state, "early frames", config.lookahead, sung.shape[1])
        gains, sung = gains[:, early * config.filters_per_hop :], sung[:, early:]
        if sung.shape[1] == 0:
            return gains.new_zeros(batch, 0)
        if "tail" not in state:
            state["tail"] = gains.new_zeros(batch, self.overlap)
        frames = self.synthesise(gains, self.sources(sung, state))
        audio = bent(overlap_add(frames, self.window, config.synthesis_hop, state["tail"]), config.knee / 100)
        return audio[:, dropped(state, "early samples", self.overlap, audio.shape[1]) :]  # what lies before time 0

    @property
    def overlap(self) -> int:
        return self.config.synthesis_window - self.config.synthesis_hop

    @property
    def latency_samples(self) -> int:
        return self.config.lookahead * self.config.trunk_hop + self.overlap

    def closing(self, batch: int) -> Tensor:
        """Silent codec frames [B, T', d] after which all audio of a stream is complete."""
        frames = -(-self.latency_samples // (self.config.trunk_hop * self.config.stride))
        return self.window.new_zeros(batch, frames, self.config.codebook_dim)

    def forward(self, latent: Tensor, pitch: Tensor | None = None) -> Tensor:
        """latent [B, T, d] -> audio [B, T * stride * trunk_hop].

        pitch: log2 Hz [B, T * stride] at the ends of the trunk hops, for training: phase and noise are random then.
        """
        steps = latent.shape[1] * self.config.stride
        padded = torch.cat([latent, self.closing(len(latent))], dim=1)
        state = State()
        if pitch is not None:
            state["pitch.phase"] = torch.rand(len(latent), 1, dtype=torch.float64, device=latent.device)
            state["noise.start"] = torch.randint(NOISE_PERIOD, (len(latent), 1), device=latent.device)
            # trunk frame n of the decoder speaks hop n - lookahead
            after = padded.shape[1] * self.config.stride - steps - self.config.lookahead
            pitch = F.pad(pitch.unsqueeze(1), (self.config.lookahead, after), mode="replicate").squeeze(1)
        return self.push(padded, state, pitch)[:, : steps * self.config.trunk_hop]


def dispersing_phases(num_bins: int, delay: int) -> Tensor:
    """[2, bins] of size 1, for pulses and noise: the pulses' frequencies come one by one within `delay` samples.

    A pulse whose frequencies come all at once has higher peaks than speech.
    """
    share = torch.linspace(0, 1, num_bins, dtype=torch.float64)
    angle = math.pi / 2 * delay * share * (1 - share)  # the delay is minus its slope: -delay / 2 to delay / 2
    angles = torch.stack([angle, torch.zeros_like(angle)])
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def bent(audio: Tensor, knee: float) -> Tensor:
    """What lies above `knee` comes ever closer to 1; 0: nothing is changed."""
    if not knee:
        return audio
    room = 1 - knee
    return torch.where(audio.abs() > knee, audio.sign() * (knee + room * ((audio.abs() - knee) / room).tanh()), audio)


def dropped(state: State, key: str, total: int, length: int) -> int:
    """How many of the next `length` items of a stream belong to its first `total`, which are left out."""
    left = int(state.get(key, torch.tensor(total)))
    state[key] = torch.tensor(max(0, left - length))
    return min(left, length)


def overlap_add(frames: Tensor, window: Tensor, hop: int, tail: Tensor) -> Tensor:
    """Windowed frames [B, M, window] -> [B, M * hop] samples that are complete, `window - hop` samples late.

    tail: [B, window - hop], what earlier frames left over; updated in place.
    """
    batch, steps, size = frames.shape
    overlap = size - hop
    total = F.fold(
        frames.transpose(1, 2), output_size=(1, steps * hop + overlap), kernel_size=(1, size), stride=(1, hop)
    )[:, 0, 0]
    # both windows are Hann: divide by what their product sums to in the steady state
    total = total / torch.stack(list((window**2).split(hop))).sum(dim=0).repeat(steps + overlap // hop)
    total = torch.cat([total[:, :overlap] + tail, total[:, overlap:]], dim=1)
    tail.copy_(total[:, steps * hop :].detach())
    return total[:, : steps * hop]
