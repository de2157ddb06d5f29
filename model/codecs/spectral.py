"""codeclm's own codec: causal, and light on a CPU because it works on spectral frames, not on samples.

    audio -> compressed STFT, autocorrelation -> causal ConvNeXt blocks -> stride 2 -> ConvNeXt -> RVQ
    codes -> RVQ entries -> ConvNeXt -> upsample 2 -> ConvNeXt -> filters over frequency
                         -> pitch -> pulses, and noise ----------------> filtered -> inverse STFT

A source and filters, as in vocoders: the network learns spectra, and harmonics are coherent by construction.
The encoder looks at no sample after its frame, so the codes of a prefix are a prefix of the codes. The decoder waits
for `lookahead` trunk frames and overlaps its windows, so audio leaves it `latency_samples` late when streaming.
B batch, S samples, N trunk frames (every `trunk_hop` samples), T codec frames (every `stride` trunk frames).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codec_shapes import SpectralConfig
from ..shapes import MAX_LAYERS, MAX_WIDTH
from ..strict import strict
from ..weights import check_fit, pack_int8, read_weights
from .base import Codec, StreamingCoder, write_codec
from .convnext import State
from .float32 import frozen
from .rvq import Quantized, ResidualVectorQuantizer
from .source_filter import Decoder
from .spectral_encoder import Encoder

MAY_BE_ZERO = ("lookahead", "dispersion", "knee")
PIECE_FRAMES = 500  # longer audio is computed in such pieces: memory is theirs


def check_config(config: SpectralConfig) -> None:
    """Raise ValueError for a setting that no codec can have."""
    for name, value in asdict(config).items():
        least = 0 if name.endswith("_layers") or name in MAY_BE_ZERO else 1
        most = MAX_LAYERS if name.endswith("_layers") or name == "num_codebooks" else MAX_WIDTH
        if not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"codec setting {name} is {value!r}; it must be a whole number from {least} to {most}")
    if config.trunk_hop % config.filters_per_hop:
        raise ValueError(f"trunk_hop {config.trunk_hop} must be a multiple of filters_per_hop {config.filters_per_hop}")
    if config.knee > 99 or config.dispersion > config.synthesis_hop:
        given = f"knee {config.knee} and dispersion {config.dispersion}"
        raise ValueError(f"{given} must be at most 99 and {config.synthesis_hop} (the hop of the filters)")
    if config.filter_overlap < 2:
        # one hop long, the windows would leave gaps: a Hann window starts at zero
        raise ValueError(f"filter_overlap is {config.filter_overlap}; it must be at least 2")
    if min(config.window, config.pitch_window) < config.trunk_hop:
        given = f"window {config.window} and pitch_window {config.pitch_window}"
        raise ValueError(f"{given} must not be shorter than trunk_hop {config.trunk_hop}")


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
        self.quantizer = ResidualVectorQuantizer(config.codebook_dim, config.num_codebooks, config.codebook_size)
        self.decoder = Decoder(config)

    @property
    def latency_samples(self) -> int:
        """Samples by which streamed output lags its frame, beyond the frame itself."""
        return self.decoder.latency_samples

    def save(self, folder: Path, packed: bool = False) -> None:
        """Write config.json and model.safetensors. packed: as int8, a quarter of the size and another fingerprint."""
        weights = self.state_dict()
        write_codec(folder, {"codec": "spectral", **asdict(self.config)}, pack_int8(weights) if packed else weights)

    @classmethod
    def load(cls, path: Path, config: dict, name: str) -> "SpectralCodec":
        """Weights file + the content of config.json -> a frozen codec. Raises ValueError if they do not fit."""
        weights = {key: tensor.float() for key, tensor in read_weights(path).items()}
        try:
            settings = strict(SpectralConfig, config)
            with torch.device("meta"):
                shape = cls(settings, name)
        except ValueError as error:
            raise ValueError(f"{path.parent}: {error}") from None
        check_fit(shape, weights, str(path))  # before memory is taken that the config alone asks for
        codec = cls(settings, name)
        codec.load_state_dict(weights)
        return codec.eval().requires_grad_(False)

    @frozen()
    def encode(self, audio: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        self.check_audio(audio, lengths)
        padded = F.pad(audio[:, 0].float(), (0, -audio.shape[-1] % self.hop_length))
        valid = None
        if lengths is not None:
            valid = torch.tensor(list(lengths), device=audio.device)
            padded = padded * (torch.arange(padded.shape[1], device=audio.device) < valid[:, None])
        codes = _StreamingEncoder(self).take(padded)
        if valid is None:
            return codes
        num_valid = (valid + self.hop_length - 1) // self.hop_length
        return codes * (torch.arange(codes.shape[-1], device=audio.device) < num_valid[:, None])[:, None]

    @frozen()
    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        return _StreamingDecoder(self).take(codes, last=True)[..., : codes.shape[-1] * self.hop_length]

    def forward(
        self, audio: Tensor, pitch: Tensor, dropout: float = 0.0, quantize: bool = True
    ) -> tuple[Tensor, Tensor, Quantized]:
        """Training pass. audio [B, S], S a multiple of hop_length; pitch in Hz [B, N], 0 where unvoiced.

        Returns the reconstruction [B, S], sung at the true pitch, the log2 pitch that was read [B, N], and Quantized.
        """
        latent = self.encoder(audio).float()
        quantized = self.quantizer(latent, dropout) if quantize else Quantized.none(latent)
        read = self.read_pitch(quantized.latent)
        sung = read.detach()
        true = torch.where(pitch > 0, pitch.double().clamp_min(1.0).log2(), sung)
        # half of the rows sing what was read where that is near, as they will have to without the true pitch
        near = ((sung - true).abs() < 0.06) & (torch.rand(len(audio), 1, device=audio.device) < 0.5)
        return self.decoder(quantized.latent, torch.where(near, sung, true)), read, quantized

    def read_pitch(self, latent: Tensor) -> Tensor:
        """Latents of whole recordings [B, T, D] -> the pitch that they say, as log2 Hz [B, N]."""
        read = self.decoder.pitch(torch.cat([latent, self.decoder.closing(len(latent))], dim=1))
        return read[:, self.config.lookahead : self.config.lookahead + latent.shape[1] * self.config.stride]

    def streaming_encoder(self) -> StreamingCoder:
        return _StreamingEncoder(self)

    def streaming_decoder(self) -> StreamingCoder:
        return _StreamingDecoder(self)


class _StreamingEncoder(StreamingCoder):
    """Where rounding could decide about a code, the frame is computed again in float64, so chunks do not matter."""

    def __init__(self, codec: SpectralCodec):
        self.codec, self.state = codec, State()
        self.pending: Tensor | None = None  # [B, fewer than hop_length samples]
        self.heard: Tensor | None = None  # [B, the samples of `reach` frames at most] before the next frame

    @frozen()
    def push(self, chunk: Tensor) -> Tensor:
        self.codec.check_audio(chunk)
        audio = chunk[:, 0].float()
        if self.pending is not None:
            audio = torch.cat([self.pending, audio], dim=1)
        whole = audio.shape[1] // self.codec.hop_length * self.codec.hop_length
        self.pending = audio[:, whole:].clone()  # the caller may overwrite its chunk
        return self.take(audio[:, :whole]) if whole else self._no_codes(len(audio))

    @frozen()
    def flush(self) -> Tensor:
        if self.pending is None or self.pending.shape[1] == 0:
            return self._no_codes(1 if self.pending is None else len(self.pending))
        return self.take(F.pad(self.pending, (0, self.codec.hop_length - self.pending.shape[1])))

    def _no_codes(self, batch: int) -> Tensor:
        return torch.zeros(batch, self.codec.num_codebooks, 0, dtype=torch.long, device=self.codec.device)

    def take(self, audio: Tensor) -> Tensor:
        """Whole frames [B, S] -> codes [B, K, T]."""
        pieces = audio.split(PIECE_FRAMES * self.codec.hop_length, dim=1)
        return torch.cat([self._piece(piece) for piece in pieces], dim=-1)

    def _piece(self, audio: Tensor) -> Tensor:
        reach, hop = self.codec.encoder.reach, self.codec.hop_length
        codes, doubtful = self.codec.quantizer.encode(self.codec.encoder(audio, self.state))
        heard = audio if self.heard is None else torch.cat([self.heard, audio], dim=1)
        before = (heard.shape[1] - audio.shape[1]) // hop
        windows: dict[int, list[tuple[int, int]]] = defaultdict(list)  # frames of a window -> (row, frame) of its last
        for row, frame in doubtful.nonzero().tolist():
            windows[min(before + frame, reach) + 1].append((row, frame))
        for length, places in windows.items():
            ends = [(row, (before + frame + 1) * hop) for row, frame in places]
            latent = self.codec.encoder.exactly(
                torch.stack([heard[row, end - length * hop : end] for row, end in ends])
            )
            exact, _ = self.codec.quantizer.encode(latent[:, -1:])
            for (row, frame), code in zip(places, exact, strict=True):
                codes[row, :, frame] = code[:, 0]
        self.heard = heard[:, max(0, heard.shape[1] - reach * hop) :].clone()
        return codes


class _StreamingDecoder(StreamingCoder):
    def __init__(self, codec: SpectralCodec):
        self.codec, self.state = codec, State()
        self.batch = 0  # rows of the stream
        self.num_samples = 0  # that the codes so far stand for

    def push(self, chunk: Tensor) -> Tensor:
        self.codec.check_codes(chunk)
        return self.take(chunk)

    def copy(self) -> "_StreamingDecoder":
        other = _StreamingDecoder(self.codec)
        other.state = {key: value.clone() for key, value in self.state.items()}
        other.batch, other.num_samples = self.batch, self.num_samples
        return other

    def push_with(self, others: Sequence[StreamingCoder], chunk: Tensor) -> list[Tensor]:
        coders = [self, *(coder for coder in others if isinstance(coder, _StreamingDecoder))]
        states = [coder.state for coder in coders]
        if len(coders) <= len(others) or not all(is_alike(state, states[0]) for state in states):
            return super().push_with(others, chunk)
        joint = _StreamingDecoder(self.codec)
        joint.state = {
            key: torch.cat([state[key] for state in states]) if value.ndim else value
            for key, value in states[0].items()
        }
        audio = joint.push(chunk)
        for row, coder in enumerate(coders):
            coder.state = {
                key: value[row : row + 1].clone() if value.ndim else value for key, value in joint.state.items()
            }
            coder.batch, coder.num_samples = 1, coder.num_samples + joint.num_samples
        return list(audio.split(1))

    @frozen()
    def flush(self) -> Tensor:
        if not self.batch:
            return torch.zeros(1, 1, 0, device=self.codec.device)
        decoder = self.codec.decoder
        rest = decoder.push(decoder.closing(self.batch), self.state)
        return rest[:, None, : min(decoder.latency_samples, self.num_samples)]

    @frozen()
    def take(self, codes: Tensor, last: bool = False) -> Tensor:
        """codes [B, K, T] -> audio [B, 1, S]. last: also what `flush` would give, and silence after it."""
        self.batch = codes.shape[0]
        self.num_samples += codes.shape[-1] * self.codec.hop_length
        latents = [self.codec.quantizer.decode(piece) for piece in codes.split(PIECE_FRAMES, dim=-1)]
        if last:
            latents[-1] = torch.cat([latents[-1], self.codec.decoder.closing(self.batch)], dim=1)
        return torch.cat([self.codec.decoder.push(latent, self.state) for latent in latents], dim=1)[:, None]


def is_alike(state: State, other: State) -> bool:
    """Whether two streams of a row each can go on as one of two rows: all but their first frames can."""
    return state.keys() == other.keys() and all(
        value.shape == other[key].shape and (value.ndim > 0 or int(value) == int(other[key]))
        for key, value in state.items()
    )
