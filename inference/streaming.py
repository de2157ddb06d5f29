"""A continuation as it is made: chunks of audio that join to what `generate` gives. K codebooks, S samples."""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..model.delay_pattern import ABSENT
from .config import SamplingConfig
from .engine import generate
from .grid import Request, State
from .threads import decoding_threads
from .windows import NO_END

if TYPE_CHECKING:
    from .generator import SpeechGenerator


LARGEST = 8  # frames that wait for the decoder at most: it is several times faster with as many at once


def frames_at_once(num_said: int) -> int:
    """How many frames the decoder is given at a time: the more, the more a listener has in hand already."""
    return min(LARGEST, max(1, num_said // 2))


class AudioStream:
    """Codes in, the audio of the continuation out: the prompt goes through the decoder, too, and is dropped."""

    def __init__(self, lm: "SpeechGenerator", num_frames: int = NO_END, num_voice: int = 0):
        """num_frames: columns that count; those after them are dropped. num_voice: the first ones, dropped as well."""
        self.codec, self.num_frames = lm.codec, num_frames
        self.decoder = lm.codec.streaming_decoder()
        self.num_seen = num_voice  # columns that were taken from states
        self.to_drop = 0  # samples of the prompt that are still to come
        self.num_said = 0  # frames of the continuation that went to the decoder
        self.waiting: list[Tensor] = []  # codes [K, N] that did not go there yet
        self.num_given = 0  # columns of the prompt among them

    def take(self, state: State) -> np.ndarray:
        """What the new columns of a state let the decoder say [S]; it may say it some frames later."""
        before = state.num_dropped
        stop = min(before + state.frame, before + int(state.end[0]), self.num_frames)
        codes = state.codes[0, : state.num_codebooks, self.num_seen - before : stop - before]
        given = before + state.num_prompt_frames - self.num_seen
        self.num_seen = max(stop, self.num_seen)
        self.waiting = [*self.waiting, codes]  # a copy of this stream may have the same list
        self.num_given += min(max(0, given), codes.shape[1])
        num_new = sum(codes.shape[1] for codes in self.waiting) - self.num_given
        return self.push_waiting() if num_new >= frames_at_once(self.num_said) else np.zeros(0, np.float32)

    def push_waiting(self) -> np.ndarray:
        codes, given = torch.cat(self.waiting, dim=1), self.num_given
        self.waiting, self.num_given = [], 0
        self.num_said += codes.shape[1] - given
        return self.push(codes, given)

    def push(self, codes: Tensor, num_given: int = 0) -> np.ndarray:
        """As `take`. codes: [K, N] of the next columns, of which the first `num_given` are the prompt's."""
        audible = codes[0] != ABSENT  # columns of text alone make no sound
        self.to_drop += int(audible[:num_given].sum()) * self.codec.hop_length
        return self._kept(self.decoder.push(codes[None, :, audible])) if audible.any() else np.zeros(0, np.float32)

    def copy(self) -> "AudioStream | None":
        """Another that goes on from here, or None where the codec offers none."""
        other, decoder = copy(self), self.decoder.copy()
        if decoder is None:
            return None
        other.decoder = decoder
        return other

    def push_with(self, others: "Sequence[AudioStream]", codes: Tensor) -> list[np.ndarray]:
        """`push` a row of codes [R, K, N] to this one and to each of the others, after the prompt and all audible."""
        found = self.decoder.push_with([other.decoder for other in others], codes)
        return [stream._kept(audio) for stream, audio in zip((self, *others), found, strict=True)]

    def finish(self) -> np.ndarray:
        last = [self.push_waiting()] if self.waiting else []
        return np.concatenate([*last, self._kept(self.decoder.flush())])

    def _kept(self, audio) -> np.ndarray:
        samples = audio[0, 0].cpu().numpy()
        dropped = min(self.to_drop, len(samples))
        self.to_drop -= dropped
        return samples[dropped:]


def stream(
    lm: "SpeechGenerator",
    request: Request,
    seed: int,
    sampling: SamplingConfig,
    tell: Callable[[State], bool] | None = None,
) -> Iterator[np.ndarray]:
    """Chunks [S] float32 of the continuation, as soon as the codec can say them.

    tell: what the state learns after each frame, once its chunk was taken; False ends it.
    """
    request, extra = lm.completed(request)
    states = generate(lm.model, request, [seed], sampling, keep=False, graphs=tell is None)
    given = 0 if request.codes is None else request.codes.shape[-1]
    audio = AudioStream(lm, given + request.num_frames - extra, request.num_voice)
    goes_on = True
    while True:
        with decoding_threads(lm.threads):
            state = next(states, None) if goes_on else None
            chunk = audio.finish() if state is None else audio.take(state)
        if len(chunk):
            yield chunk
        if state is None:
            return
        goes_on = tell is None or tell(state)
