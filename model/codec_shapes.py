"""How a codec is remembered, and the shape of codeclm's own, as plain dataclasses; importing them needs no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .codecs import Codec


@dataclass(frozen=True)
class SpectralConfig:
    """Shape of a "spectral" codec. The embedded one is `SpectralConfig()`."""

    sample_rate: int = 16_000  # samples per second (Hz)
    trunk_hop: int = 320  # samples between trunk frames
    window: int = 640  # samples of the encoder's STFT window
    pitch_window: int = 1024  # samples that the encoder's autocorrelation sees
    stride: int = 2  # trunk frames per codec frame
    filters_per_hop: int = 4  # filters that the decoder makes for one trunk frame
    filter_overlap: int = 4  # filters that act on one sample
    lookahead: int = 1  # trunk frames that the decoder waits for before it speaks
    encoder_dim: int = 256  # width of the encoder
    dim: int = 384  # width at the codec frame rate and in the decoder
    encoder_layers: int = 4  # blocks of the encoder, at the trunk's rate
    latent_layers: int = 1  # blocks after the stride, before the RVQ
    bottleneck_layers: int = 2  # blocks after the RVQ, before the upsampling
    decoder_layers: int = 6  # blocks of the decoder, at the trunk's rate
    kernel: int = 7  # trunk frames seen by one block
    expansion: int = 3  # how much wider a block is inside
    pitch_dim: int = 128  # width of the network that reads the pitch from the codes
    num_codebooks: int = 8  # codes of a frame
    codebook_size: int = 1024  # values of a code
    codebook_dim: int = 64  # width of what is quantized

    @property
    def synthesis_hop(self) -> int:
        """Samples between the decoder's filters."""
        return self.trunk_hop // self.filters_per_hop

    @property
    def synthesis_window(self) -> int:
        """Samples that one filter acts on."""
        return self.filter_overlap * self.synthesis_hop


@dataclass(frozen=True)
class CodecReference:
    """The codec that codes come from, as a model and a token store remember it; the fingerprint decides."""

    name: str = "spectral"  # for people
    fingerprint: str = ""
    sample_rate: int = 0  # Hz
    hop_length: int = 0  # samples per frame
    num_codebooks: int = 0  # K; 0: as many as the model has
    codebook_size: int = 0  # V; 0: as the model has

    @classmethod
    def of(cls, codec: "Codec") -> "CodecReference":
        """What identifies `codec`."""
        return cls(
            codec.name,
            codec.fingerprint,
            codec.sample_rate,
            codec.hop_length,
            codec.num_codebooks,
            codec.codebook_size,
        )

    def require(self, codec: "Codec", name: str) -> None:
        """Raise ValueError if the model `name`, which refers to this codec, is given another one."""
        if self.fingerprint != codec.fingerprint:
            raise ValueError(
                f"{name}: the model was trained on codec '{self.name}' ({self.fingerprint[:12]}), "
                f"not on this '{codec.name}' ({codec.fingerprint[:12]}); give the codec it was trained with"
            )

    @property
    def frame_rate(self) -> float:
        """Frames per second (Hz)."""
        return self.sample_rate / self.hop_length
