"""How a model and a token store remember the codec that codes come from; importing it needs no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .codecs import Codec


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
