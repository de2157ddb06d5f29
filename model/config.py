"""The shapes of the networks as plain dataclasses; importing them needs neither torch nor transformers."""

import difflib
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class TransformerConfig:
    """A decoder-only transformer: RMSNorm, RoPE, SwiGLU, grouped-query attention, no biases."""

    dim: int = 256
    num_layers: int = 8
    num_heads: int = 4
    num_kv_heads: int = 4
    ff_dim: int = 768
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ValueError(f"dim {self.dim} must be num_heads {self.num_heads} times an even number")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


@dataclass(frozen=True)
class CodecReference:
    """Which codec a model's codes come from; the fingerprint decides, the name is for people."""

    name: str = "spectral"
    fingerprint: str = ""
    sample_rate: int = 0  # Hz
    hop_length: int = 0  # samples per frame

    @property
    def frame_rate(self) -> float:
        """Frames per second (Hz)."""
        return self.sample_rate / self.hop_length


@dataclass(frozen=True)
class SpectralConfig:
    """Shape of a "spectral" codec. The embedded one is `SpectralConfig()`."""

    sample_rate: int = 16_000  # Hz
    trunk_hop: int = 320  # samples between trunk frames
    window: int = 640  # samples of the STFT window
    stride: int = 2  # trunk frames per codec frame
    encoder_dim: int = 256
    dim: int = 384  # width at the codec frame rate and in the decoder
    encoder_layers: int = 4
    latent_layers: int = 1  # after the stride, before the RVQ
    bottleneck_layers: int = 2  # after the RVQ, before the upsampling
    decoder_layers: int = 5
    kernel: int = 7  # trunk frames seen by one block
    expansion: int = 3
    num_codebooks: int = 8
    codebook_size: int = 1024
    codebook_dim: int = 8


BACKBONE = TransformerConfig()
DEPTH = TransformerConfig(dim=192, num_layers=3, num_heads=4, num_kv_heads=4, ff_dim=512)


def nested(kind: type, value: Any, name: str) -> Any:
    """`value` as the dataclass `kind`. Raises ValueError that names the nearest known key for an unknown one."""
    if isinstance(value, kind):
        return value
    known = [field.name for field in fields(kind)]
    for key in value:
        if key not in known:
            nearest = (difflib.get_close_matches(key, known, 1) or known)[0]
            raise ValueError(f"unknown setting '{name}.{key}'; did you mean '{name}.{nearest}'?")
    return kind(**value)
