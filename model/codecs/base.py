"""What every codec offers: audio in, codes out, and back; offline and streaming.

B batch, S samples, K codebooks, T frames. A codec is frozen: it computes in eval mode, in float32 and without
gradients. Its numbers about time and size are attributes; nothing else in the project spells them out.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checksums import write_checksums
from ..weights import write_checkpoint

LEADING = "leading_codebooks"  # in a codec's config.json: how many of its codebooks are used, where it is not all


def write_codec(folder: Path, values: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """config.json, model.safetensors and their checksums: what a codec's `save` writes."""
    write_checkpoint(folder, values, weights)
    write_checksums(folder)


def fingerprint_of(
    weights: dict[str, Tensor], sample_rate: int, hop_length: int, num_codebooks: int, codebook_size: int
) -> str:
    """sha256 of a codec, in hexadecimal."""
    digest = hashlib.sha256(f"{sample_rate} {hop_length} {num_codebooks} {codebook_size}".encode())
    for key, tensor in sorted(weights.items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


class StreamingCoder(ABC):
    """One direction of a codec with its state: push chunks, then flush; the outputs joined equal the offline one."""

    @abstractmethod
    def push(self, chunk: Tensor) -> Tensor:
        """Encoder: audio [B, 1, S] of any S -> the codes [B, K, T] that are complete. Decoder: the reverse."""

    @abstractmethod
    def flush(self) -> Tensor:
        """What is still held back. The coder must not be used afterwards."""

    def copy(self) -> "StreamingCoder | None":
        """Another that goes on from here, or None where a codec offers none."""
        return None

    def push_with(self, others: Sequence["StreamingCoder"], chunk: Tensor) -> list[Tensor]:
        """`push` a row of chunk to this one and each of `others` of the same codec, at once where that is possible."""
        return [coder.push(row[None]) for coder, row in zip((self, *others), chunk, strict=True)]


class Codec(nn.Module, ABC):
    """A frozen neural audio codec. `codes` are integers [B, K, T], coarsest codebook first."""

    name: str
    sample_rate: int  # Hz
    hop_length: int  # samples per frame
    num_codebooks: int  # K
    codebook_size: int  # V, the same for all codebooks
    _fingerprint: str | None = None  # once it was asked for

    @property
    def frame_rate(self) -> float:
        """Frames per second (Hz)."""
        return self.sample_rate / self.hop_length

    @property
    def bitrate(self) -> float:
        """Raw rate of the codes in bits/s: frame_rate * K * log2 V."""
        return self.frame_rate * self.num_codebooks * math.log2(self.codebook_size)

    @property
    def fingerprint(self) -> str:
        """sha256 over weights, sample rate, hop length, K and V: equal fingerprints mean interchangeable codes."""
        if self._fingerprint is None:
            numbers = self.sample_rate, self.hop_length, self.num_codebooks, self.codebook_size
            self._fingerprint = fingerprint_of(self.fingerprinted(), *numbers)
        return self._fingerprint

    def fingerprinted(self) -> dict[str, Tensor]:
        """The tensors that decide what codes mean, under names that last: by default all weights."""
        return self.state_dict()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def num_frames(self, num_samples: int) -> int:
        """Frames that `num_samples` samples become: the last one is filled up with silence."""
        return math.ceil(num_samples / self.hop_length)

    @abstractmethod
    def encode(self, audio: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """audio [B, 1, S] float -> codes [B, K, T], T = num_frames(S).

        lengths: samples that are valid in each row (default all); codes of later frames are 0.
        Raises ValueError for an empty, wrongly shaped or non-finite input, or lengths that do not fit it.
        """

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """codes [B, K', T] with K' <= K leading codebooks -> audio [B, 1, T * hop_length].

        Raises ValueError for codes out of range, more than K codebooks, or no frame.
        """

    @abstractmethod
    def streaming_encoder(self) -> StreamingCoder: ...

    @abstractmethod
    def streaming_decoder(self) -> StreamingCoder: ...

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors, which `load_codec(folder)` reads."""

    def check_audio(self, audio: Tensor, lengths: Sequence[int] | None = None) -> None:
        if audio.ndim != 3 or audio.shape[1] != 1:
            raise ValueError(f"audio must be [B, 1, S] (mono), not {list(audio.shape)}")
        if not audio.is_floating_point():
            raise ValueError(f"audio must be floating point in -1..1, not {audio.dtype}")
        if audio.shape[-1] == 0 or audio.shape[0] == 0:
            raise ValueError("audio is empty: there is nothing to encode")
        if not all(math.isfinite(bound) for bound in audio.aminmax()):  # makes no mask as large as the audio
            raise ValueError("audio holds NaN or infinite samples")
        batch, _, num_samples = audio.shape
        if lengths is not None and (len(lengths) != batch or not all(1 <= n <= num_samples for n in lengths)):
            raise ValueError(f"lengths must be {batch} numbers from 1 to {num_samples}, not {list(lengths)}")

    def check_codes(self, codes: Tensor) -> None:
        if codes.ndim != 3 or codes.is_floating_point():
            raise ValueError(f"codes must be integers [B, K, T], not {codes.dtype} {list(codes.shape)}")
        if not 1 <= codes.shape[1] <= self.num_codebooks:
            raise ValueError(f"codes have {codes.shape[1]} codebooks; codec '{self.name}' has {self.num_codebooks}")
        if codes.shape[-1] == 0 or codes.shape[0] == 0:
            raise ValueError("codes hold no frame: there is nothing to decode")
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.codebook_size:
            raise ValueError(f"codes span {low}..{high}; codec '{self.name}' has 0..{self.codebook_size - 1}")
