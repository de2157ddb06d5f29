"""Codecs that work in blocks: a stream is cut at the same frames whatever chunks it comes in.

Rounding differs between tensors of different shapes, and where two codebook entries are nearly as near it flips codes:
so every row is encoded alone, in blocks counted from its first frame, offline as in a stream. Equality is then one of
bits, and memory does not grow with the length. B batch, S samples, K codebooks, T frames, n frames of a window.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import LEADING, Codec, StreamingCoder
from .float32 import frozen

State = dict[Any, Any]  # what one row of a stream (encoding), or one batch (decoding), carries from window to window


@dataclass(frozen=True)
class Blocks:
    """How many frames one call of the network takes. With right = 0, a stream lags by less than `least` frames.

    For an encoder `least` = `most`. Set both to 1 in `codec.encoder_blocks` for the lowest latency; codes can then
    differ at near-ties from those of other blocks.
    """

    least: int  # new frames a call waits for
    most: int  # new frames it takes at once: memory is bounded by these
    left: int = 0  # frames before the new ones that it is given again: the receptive field, where no state is carried
    right: int = 0  # frames after the new ones that it waits for
    first: int = 1  # frames the first call waits for, where the padding of the beginning mirrors what follows


class BlockCodec(Codec):
    """A codec that says what one window becomes; offline, batched and streaming follow from that."""

    encoder_blocks: Blocks
    decoder_blocks: Blocks
    full_codebooks: int  # K, were all of them used
    min_codebooks: int = 1

    @property
    def leading(self) -> dict[str, int]:
        """What config.json says of the number of codebooks: nothing where all are used."""
        return {LEADING: self.num_codebooks} if self.num_codebooks < self.full_codebooks else {}

    @abstractmethod
    def encode_window(self, audio: Tensor, state: State) -> Tensor:
        """audio [1, 1, n * hop_length] -> codes [1, K, n]. state: {} at the start of a stream."""

    @abstractmethod
    def decode_window(self, codes: Tensor, state: State) -> Tensor:
        """codes [B, K', n] -> audio [B, 1, n * hop_length]."""

    @frozen()
    def encode(self, audio: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        self.check_audio(audio, lengths)
        lengths = [audio.shape[-1]] * len(audio) if lengths is None else [int(length) for length in lengths]
        shape = len(audio), self.num_codebooks, self.num_frames(audio.shape[-1])
        codes = torch.zeros(shape, dtype=torch.long, device=audio.device)
        for row, length in enumerate(lengths):
            coder = BlockEncoder(self)
            found = torch.cat([coder.take(audio[row : row + 1, :, :length]), coder.flush()], dim=-1)
            codes[row, :, : found.shape[-1]] = found[0]
        return codes

    @frozen()
    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        coder = BlockDecoder(self)
        return torch.cat([coder.take(codes), coder.flush()], dim=-1)

    def streaming_encoder(self) -> StreamingCoder:
        return BlockEncoder(self)

    def streaming_decoder(self) -> StreamingCoder:
        return BlockDecoder(self)


class _BlockCoder(StreamingCoder):
    """Holds what has come, from `left` frames before the next block on. One frame is `unit` elements of the input."""

    def __init__(self, codec: BlockCodec, blocks: Blocks, unit: int):
        self.codec, self.blocks, self.unit = codec, blocks, unit
        self.pending: Tensor | None = None  # [B, C, ...], from frame `begin` on
        self.begin = self.done = 0  # frames: first held, first not yet coded

    @frozen()
    def take(self, chunk: Tensor) -> Tensor:
        """`push` of what has been checked."""
        if self.pending is not None and len(self.pending) != len(chunk):
            raise ValueError(f"this stream has {len(self.pending)} rows, the chunk {len(chunk)}")
        self.pending = chunk if self.pending is None else torch.cat([self.pending, chunk], dim=-1)
        outputs = [self._empty(chunk)]
        while (ready := self._held() - self.blocks.right - self.done) >= self._wanted():
            outputs.append(self._next(ready))
        self.pending = self.pending.clone()  # little is left, and the chunk is the caller's, to be used again
        return torch.cat(outputs, dim=-1)

    @frozen()
    def flush(self) -> Tensor:
        if self.pending is None:
            return self._empty(torch.zeros(1, 1, 0, device=self.codec.device))
        outputs = [self._empty(self.pending)]
        self.pending = F.pad(self.pending, (0, -self.pending.shape[-1] % self.unit))  # the last frame, filled up
        while self._held() > self.done:
            outputs.append(self._next(self._held() - self.done))
        return torch.cat(outputs, dim=-1)

    def _wanted(self) -> int:
        """Frames that the next call waits for."""
        return self.blocks.least if self.done else max(self.blocks.least, self.blocks.first)

    def _held(self) -> int:
        """Frames that are here as a whole, counted from the start of the stream."""
        return self.begin + (0 if self.pending is None else self.pending.shape[-1] // self.unit)

    def _next(self, ready: int) -> Tensor:
        """Code the next frames, of those that are ready as many as a call takes, with what their window sees beside."""
        assert self.pending is not None
        count = min(ready, max(self.blocks.most, self._wanted()))
        start = max(self.done - self.blocks.left, 0)
        stop = min(self.done + count + self.blocks.right, self._held())
        window = self.pending[..., (start - self.begin) * self.unit : (stop - self.begin) * self.unit]
        found = self._run(window)
        scale = found.shape[-1] // (stop - start)
        found = found[..., (self.done - start) * scale : (self.done - start + count) * scale]
        self.done += count
        keep = max(self.done - self.blocks.left, 0)
        self.pending, self.begin = self.pending[..., (keep - self.begin) * self.unit :], keep
        return found

    @abstractmethod
    def _empty(self, like: Tensor) -> Tensor:
        """No output, for as many rows as `like` has."""

    @abstractmethod
    def _run(self, window: Tensor) -> Tensor:
        """What a window becomes, all of its frames."""


class BlockEncoder(_BlockCoder):
    def __init__(self, codec: BlockCodec):
        super().__init__(codec, codec.encoder_blocks, codec.hop_length)
        self.states: list[State] = []  # one for each row

    def push(self, chunk: Tensor) -> Tensor:
        self.codec.check_audio(chunk)
        return self.take(chunk)

    def _run(self, window: Tensor) -> Tensor:
        self.states = self.states or [{} for _ in window]
        rows = zip(window.float().split(1), self.states, strict=True)
        return torch.cat([self.codec.encode_window(row, state) for row, state in rows])

    def _empty(self, like: Tensor) -> Tensor:
        return torch.zeros(len(like), self.codec.num_codebooks, 0, dtype=torch.long, device=like.device)


class BlockDecoder(_BlockCoder):
    def __init__(self, codec: BlockCodec):
        super().__init__(codec, codec.decoder_blocks, 1)
        self.state: State = {}

    def push(self, chunk: Tensor) -> Tensor:
        self.codec.check_codes(chunk)
        return self.take(chunk)

    def _run(self, window: Tensor) -> Tensor:
        return self.codec.decode_window(window.long(), self.state)

    def _empty(self, like: Tensor) -> Tensor:
        return torch.zeros(len(like), 1, 0, device=like.device)
