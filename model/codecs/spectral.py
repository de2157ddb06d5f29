"""codeclm's own codec: causal, and light on a CPU because it works on spectral frames, not on samples.

    audio -> compressed STFT -> causal ConvNeXt blocks -> stride 2 -> ConvNeXt -> RVQ
    codes -> RVQ entries -> ConvNeXt -> upsample 2 -> ConvNeXt -> magnitude and phase -> inverse STFT (as in Vocos)

The encoder looks at no sample after its frame, so the codes of a prefix are a prefix of the codes. The decoder's
synthesis window reaches back over the frame before, so audio leaves it `latency_samples` late when streaming.
B batch, S samples, N trunk frames (every `trunk_hop` samples), T codec frames (every `stride` trunk frames), D width.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import SpectralConfig
from ..weights import load_strictly, pack_int8, read_weights
from .base import Codec, StreamingCoder
from .rvq import Quantized, ResidualVectorQuantizer

State = dict[str, Tensor]  # one entry per layer that needs left context; empty at the start of a stream


class CausalConv(nn.Module):
    """Convolution over time that sees the past only. x [B, N, C] -> [B, N, C'].

    Depthwise when `groups` = C. With a `state`, the left context comes from there instead of being silence.
    """

    def __init__(self, key: str, dim_in: int, dim_out: int, kernel: int, groups: int = 1):
        super().__init__()
        self.key, self.context, self.groups = key, kernel - 1, groups
        self.weight = nn.Parameter(torch.empty(dim_out, dim_in // groups, 1, kernel))
        self.bias = nn.Parameter(torch.zeros(dim_out))
        nn.init.trunc_normal_(self.weight, std=1 / math.sqrt(kernel * dim_in / groups))

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        left = None if state is None else state.get(self.key)
        x = F.pad(x, (0, 0, self.context, 0)) if left is None else torch.cat([left, x], dim=1)
        if state is not None:
            state[self.key] = x[:, x.shape[1] - self.context :]
        # [B, C, 1, N] with channels last in memory: several times faster on CPU than conv1d
        image = x.transpose(1, 2).unsqueeze(2)
        return F.conv2d(image, self.weight, self.bias, groups=self.groups).squeeze(2).transpose(1, 2)


class ConvNeXtBlock(nn.Module):
    """arXiv:2201.03545, over time: depthwise convolution, norm, two matrix products, residual."""

    def __init__(self, key: str, dim: int, kernel: int, expansion: int):
        super().__init__()
        self.mix = CausalConv(key, dim, dim, kernel, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, expansion * dim)
        self.down = nn.Linear(expansion * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        return x + self.scale * self.down(F.gelu(self.up(self.norm(self.mix(x, state)))))


class Trunk(nn.Module):
    """A stack of ConvNeXt blocks."""

    def __init__(self, key: str, num_layers: int, dim: int, kernel: int, expansion: int):
        super().__init__()
        self.blocks = nn.ModuleList(ConvNeXtBlock(f"{key}.{i}", dim, kernel, expansion) for i in range(num_layers))

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, state)
        return x


class Encoder(nn.Module):
    window: Tensor

    def __init__(self, config: SpectralConfig):
        super().__init__()
        self.config = config
        num_bins = config.window // 2 + 1
        self.register_buffer("window", torch.hann_window(config.window), persistent=False)
        self.inlet = CausalConv("encoder.inlet", 3 * num_bins, config.encoder_dim, 3)
        self.trunk = Trunk("encoder", config.encoder_layers, config.encoder_dim, config.kernel, config.expansion)
        self.downsample = nn.Linear(config.stride * config.encoder_dim, config.dim)
        self.latent_trunk = Trunk("latent", config.latent_layers, config.dim, config.kernel, config.expansion)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, audio: Tensor, state: State | None = None) -> Tensor:
        """audio [B, S], S a multiple of trunk_hop * stride -> latent [B, T, D]."""
        x = self.inlet(self.features(audio, state), state)
        x = self.trunk(x, state)
        batch, steps, dim = x.shape
        x = self.downsample(x.reshape(batch, steps // self.config.stride, self.config.stride * dim))
        return self.norm(self.latent_trunk(x, state))

    def features(self, audio: Tensor, state: State | None = None) -> Tensor:
        """[B, S] -> [B, N, 3 * bins]: the spectrum with its magnitude to the power 0.3 (real, imaginary), and its log.

        Frame n sees the `window` samples that end with its hop.
        """
        overlap = self.config.window - self.config.trunk_hop
        left = None if state is None else state.get("audio")
        audio = F.pad(audio, (overlap, 0)) if left is None else torch.cat([left, audio], dim=1)
        if state is not None:
            state["audio"] = audio[:, audio.shape[1] - overlap :]
        frames = audio.unfold(1, self.config.window, self.config.trunk_hop) * self.window  # [B, N, window]
        spectrum = torch.fft.rfft(frames.float(), dim=-1)
        magnitude = spectrum.abs().clamp_min(1e-4)
        compressed = spectrum * magnitude ** (0.3 - 1)
        return torch.cat([compressed.real, compressed.imag, magnitude.log() / 4], dim=-1)


class Decoder(nn.Module):
    window: Tensor

    def __init__(self, config: SpectralConfig):
        super().__init__()
        self.config = config
        self.num_bins = config.window // 2 + 1
        self.register_buffer("window", torch.hann_window(config.window), persistent=False)
        self.latent_trunk = Trunk("bottleneck", config.bottleneck_layers, config.dim, config.kernel, config.expansion)
        self.upsample = nn.Linear(config.dim, config.stride * config.dim)
        self.trunk = Trunk("decoder", config.decoder_layers, config.dim, config.kernel, config.expansion)
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, 3 * self.num_bins)

    def spectra(self, latent: Tensor, state: State | None = None) -> Tensor:
        """latent [B, T, D] -> windowed time-domain frames [B, N, window]."""
        x = self.upsample(self.latent_trunk(latent, state))
        batch, steps, _ = x.shape
        x = self.trunk(x.reshape(batch, steps * self.config.stride, self.config.dim), state)
        magnitude, real, imaginary = self.head(self.norm(x)).float().split(self.num_bins, dim=-1)
        # the direction of (real, imaginary) is the phase: smooth everywhere, unlike an angle
        length = torch.sqrt(real**2 + imaginary**2 + 1e-6)
        scale = magnitude.clamp(max=6.0).exp() / length
        return (
            torch.fft.irfft(torch.complex(real * scale, imaginary * scale), n=self.config.window, dim=-1) * self.window
        )

    def forward(self, latent: Tensor) -> Tensor:
        """latent [B, T, D] -> audio [B, T * stride * trunk_hop]."""
        # one silent codec frame more: its synthesis window completes the last frame's audio
        return overlap_add(self.spectra(F.pad(latent, (0, 0, 0, 1))), self.config)[
            :, : latent.shape[1] * self.config.stride * self.config.trunk_hop
        ]


def overlap_add(frames: Tensor, config: SpectralConfig, tail: Tensor | None = None) -> Tensor:
    """Windowed frames [B, N, window] -> [B, N * hop] samples that are complete, `window - hop` samples late.

    tail: [B, window - hop], what earlier frames left over (default: the stream starts, and its first
    `window - hop` samples, which lie before time 0, are dropped). With a tail it is updated in place.
    """
    hop, overlap = config.trunk_hop, config.window - config.trunk_hop
    batch, steps, _ = frames.shape
    total = F.fold(
        frames.transpose(1, 2), output_size=(1, steps * hop + overlap), kernel_size=(1, config.window), stride=(1, hop)
    )[:, 0, 0]
    # analysis and synthesis windows are Hann: their product's overlapped sum is constant only for hop = window / 4,
    # so the frames are divided by what the squared window really sums to in the steady state
    square = torch.hann_window(config.window, device=frames.device) ** 2
    total = total / torch.stack(list(square.split(hop))).sum(dim=0).repeat(steps + overlap // hop)
    if tail is None:
        return total[:, overlap : steps * hop]
    total[:, :overlap] += tail
    tail.copy_(total[:, steps * hop :])
    return total[:, : steps * hop]


def check_config(config: SpectralConfig) -> None:
    """Raise ValueError for a setting that no codec can have."""
    for name, value in asdict(config).items():
        least = 0 if name.endswith("_layers") else 1
        if not isinstance(value, int) or value < least:
            raise ValueError(f"codec setting {name} is {value!r}; it must be a whole number, at least {least}")
    if config.window % config.trunk_hop or config.window == config.trunk_hop:
        # one hop long, the windows would leave gaps: a Hann window starts at zero
        raise ValueError(f"window {config.window} must be 2, 3, ... times trunk_hop {config.trunk_hop}")


class SpectralCodec(Codec):
    """The "spectral" codec; build with a config (random weights) or with `load_codec`."""

    def __init__(self, config: SpectralConfig = SpectralConfig(), name: str = "spectral"):
        super().__init__()
        check_config(config)
        self.config, self.name = config, name
        self.sample_rate = config.sample_rate
        self.hop_length = config.trunk_hop * config.stride
        self.num_codebooks, self.codebook_size = config.num_codebooks, config.codebook_size
        self.encoder = Encoder(config)
        self.quantizer = ResidualVectorQuantizer(
            config.dim, config.num_codebooks, config.codebook_size, config.codebook_dim
        )
        self.decoder = Decoder(config)

    @property
    def latency_samples(self) -> int:
        """Samples by which streamed output lags its frame, beyond the frame itself."""
        return self.config.window - self.config.trunk_hop

    def save(self, folder: Path, packed: bool = False) -> None:
        """Write config.json and model.safetensors. packed: as int8, a quarter of the size and another fingerprint."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(pack_int8(weights) if packed else weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"codec": "spectral", **asdict(self.config)}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path, config: dict, name: str) -> "SpectralCodec":
        """Weights file + the content of config.json -> a frozen codec. Raises ValueError if they do not fit."""
        known = {field.name for field in fields(SpectralConfig)}
        unknown = set(config) - known
        if unknown:
            raise ValueError(f"{path.parent}: unknown codec setting {sorted(unknown)[0]!r}; known: {sorted(known)}")
        try:
            codec = cls(SpectralConfig(**config), name)
        except ValueError as error:
            raise ValueError(f"{path.parent}: {error}") from None
        weights = read_weights(path)
        load_strictly(codec, {key: tensor.float() for key, tensor in weights.items()}, str(path))
        return codec.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, audio: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        self.check_audio(audio, lengths)
        num_samples = audio.shape[-1]
        padded = F.pad(audio[:, 0].float(), (0, -num_samples % self.hop_length))
        if lengths is None:
            return self.quantizer.encode(self.encoder(padded))
        valid = torch.tensor(list(lengths), device=audio.device)
        padded = padded * (torch.arange(padded.shape[1], device=audio.device) < valid[:, None])
        codes = self.quantizer.encode(self.encoder(padded))
        num_valid = torch.tensor([self.num_frames(int(length)) for length in lengths], device=audio.device)
        return codes * (torch.arange(codes.shape[-1], device=audio.device) < num_valid[:, None])[:, None]

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        return self.decoder(self.quantizer.decode(codes))[:, None]

    def forward(self, audio: Tensor, dropout: float = 0.0) -> tuple[Tensor, Quantized]:
        """Training pass. audio [B, S], S a multiple of hop_length -> (reconstruction [B, S], Quantized)."""
        quantized = self.quantizer(self.encoder(audio), dropout)
        return self.decoder(quantized.latent), quantized

    def streaming_encoder(self) -> StreamingCoder:
        return _StreamingEncoder(self)

    def streaming_decoder(self) -> StreamingCoder:
        return _StreamingDecoder(self)


class _StreamingEncoder(StreamingCoder):
    def __init__(self, codec: SpectralCodec):
        self.codec, self.state = codec, State()
        self.pending: Tensor | None = None  # [B, fewer than hop_length samples]

    @torch.no_grad()
    def push(self, chunk: Tensor) -> Tensor:
        self.codec.check_audio(chunk)
        audio = chunk[:, 0].float()
        if self.pending is not None:
            audio = torch.cat([self.pending, audio], dim=1)
        whole = audio.shape[1] // self.codec.hop_length * self.codec.hop_length
        self.pending = audio[:, whole:].clone()  # the caller may use its buffer again
        if whole == 0:
            return torch.zeros(chunk.shape[0], self.codec.num_codebooks, 0, dtype=torch.long, device=chunk.device)
        return self.codec.quantizer.encode(self.codec.encoder(audio[:, :whole], self.state))

    @torch.no_grad()
    def flush(self) -> Tensor:
        if self.pending is None or self.pending.shape[1] == 0:
            batch = 1 if self.pending is None else self.pending.shape[0]
            return torch.zeros(batch, self.codec.num_codebooks, 0, dtype=torch.long)
        padded = F.pad(self.pending, (0, self.codec.hop_length - self.pending.shape[1]))
        return self.codec.quantizer.encode(self.codec.encoder(padded, self.state))


class _StreamingDecoder(StreamingCoder):
    def __init__(self, codec: SpectralCodec):
        self.codec, self.state = codec, State()
        self.tail: Tensor | None = None  # [B, latency_samples]
        self.to_drop = codec.latency_samples  # samples before time 0

    @torch.no_grad()
    def push(self, chunk: Tensor) -> Tensor:
        self.codec.check_codes(chunk)
        return self._synthesise(self.codec.quantizer.decode(chunk))

    @torch.no_grad()
    def flush(self) -> Tensor:
        if self.tail is None:
            return torch.zeros(1, 1, 0)
        latent = self.tail.new_zeros(self.tail.shape[0], 1, self.codec.config.dim)
        return self._synthesise(latent)[..., : self.codec.latency_samples]

    def _synthesise(self, latent: Tensor) -> Tensor:
        frames = self.codec.decoder.spectra(latent, self.state)
        if self.tail is None:
            self.tail = frames.new_zeros(frames.shape[0], self.codec.latency_samples)
        audio = overlap_add(frames, self.codec.config, self.tail)
        dropped, self.to_drop = audio[:, self.to_drop :], max(0, self.to_drop - audio.shape[1])
        return dropped[:, None]
