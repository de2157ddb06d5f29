"""A recording through a codec and back, in pieces: any length, in the memory of a few minutes of audio.

K codebooks, T frames, S samples.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...data.audio import audio_blocks
from ...data.audio_out import audio_writer
from ...model.codecs import Codec
from ..sound.measures import log_mel_distance

PIECE_S = 60.0  # seconds that are decoded at once


@dataclass(frozen=True)
class RoundTrip:
    num_samples: int
    num_frames: int
    distance: float  # log-mel, between what went in and what came out


def roundtrip(audio: Path, out: Path, codec: Codec) -> RoundTrip:
    """Encode an audio file and decode it into the file `out`, in the format of its suffix, whole or not at all.

    Raises AudioError for a file that cannot be used, ValueError or OSError for one that cannot be written.
    """
    distance, num_frames = _Distance(codec.sample_rate), 0

    def heard() -> Iterator[np.ndarray]:
        for block in audio_blocks(audio, codec.sample_rate, check_speech=True):
            distance.add(original=block)
            yield block

    def counted(pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        nonlocal num_frames
        for codes in pieces:
            num_frames += codes.shape[-1]
            yield codes

    with audio_writer(out, codec.sample_rate) as write:
        written = 0
        for samples in decoded(codec, counted(encoded(codec, heard()))):
            # more than was heard comes at the very end, when the last frame has been filled up
            samples = samples[: distance.num_samples - written]
            written += len(samples)
            distance.add(output=samples)
            write(samples)
    return RoundTrip(written, num_frames, distance.mean())


def encoded(codec: Codec, blocks: Iterable[np.ndarray]) -> Iterator[Tensor]:
    """Blocks [S] -> codes [1, K, T], which joined are the codes of the whole."""
    coder = codec.streaming_encoder()
    for block in blocks:
        if len(block):
            yield coder.push(torch.from_numpy(np.ascontiguousarray(block))[None, None].to(codec.device))
    yield coder.flush()


def decoded(codec: Codec, codes: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """Codes [1, K, T] in any pieces -> blocks [S]: the same samples whatever the pieces."""
    coder, length = codec.streaming_decoder(), max(1, round(PIECE_S * codec.frame_rate))
    for piece in _regrouped(codes, length):
        yield coder.push(piece)[0, 0].cpu().numpy()
    yield coder.flush()[0, 0].cpu().numpy()


def _regrouped(codes: Iterable[Tensor], length: int) -> Iterator[Tensor]:
    """Pieces [1, K, T] -> pieces of `length` frames; the last may be shorter."""
    held: list[Tensor] = []
    for piece in codes:
        held.append(piece)
        while sum(part.shape[-1] for part in held) >= length:
            joined = torch.cat(held, dim=-1)
            yield joined[..., :length]
            held = [joined[..., length:]]
    if any(part.shape[-1] for part in held):
        yield torch.cat(held, dim=-1)


class _Distance:
    """Log-mel distance of two signals that come in blocks of their own: a mean over minutes."""

    def __init__(self, sample_rate: int):
        self.sample_rate, self.length = sample_rate, round(PIECE_S * sample_rate)
        self.original, self.output = np.zeros(0, np.float32), np.zeros(0, np.float32)  # not yet compared
        self.num_samples = self.compared = 0  # heard; compared
        self.total = 0.0

    def add(self, original: np.ndarray | None = None, output: np.ndarray | None = None) -> None:
        if original is not None:
            self.num_samples += len(original)
            self.original = np.concatenate([self.original, original])
        if output is not None:
            self.output = np.concatenate([self.output, output])
        while min(len(self.original), len(self.output)) >= self.length:
            self._compare(self.length)

    def _compare(self, count: int) -> None:
        self.total += count * log_mel_distance(self.original[:count], self.output[:count], self.sample_rate)
        self.original, self.output, self.compared = self.original[count:], self.output[count:], self.compared + count

    def mean(self) -> float:
        """Once all has been added."""
        rest = min(len(self.original), len(self.output))
        if rest:
            self._compare(rest)
        return self.total / self.compared
