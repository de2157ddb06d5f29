"""A model with its codec, as `lm.stream` gives it: how soon a listener hears something, and how fast the whole is.

S samples.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...data.audio import load_audio
from ...model.pretrained import PROMPT
from ..config import SamplingConfig
from ..generator import SpeechGenerator
from ..grid import Request
from ..playback import NEVER
from ..streaming import stream

# the beginning of the bundled recording, encoded before the clock starts: it ends amid a word, where no pause is due
PROMPT_S = 3.0
AUDIBLE = 10 ** (-50 / 20)  # -50 dBFS
STARTS = 10  # how often the first sound is waited for, each time with another seed
LONGEST_S = 5.0  # of audio in which it is waited for
WARM = 10  # frames before anything is measured


@dataclass(frozen=True)
class Heard:
    """From the call with an encoded prompt to samples on the host; batch 1."""

    model: str
    first_ms: float  # the first sample, median
    audible_ms: float  # the first one above -50 dBFS, median; infinite: half of the starts were silent
    audible_p95_ms: float
    real_time: float  # times real time, codes and audio, by the median of the rounds


def first_sound(lm: SpeechGenerator, num_frames: int, rounds: int, prompt: Tensor | None = None) -> Heard:
    """Generate and decode as a stream, again and again. prompt: codes [K, T], in place of the bundled recording's."""
    codes = lm.encode(spoken_prompt(lm)) if prompt is None else prompt

    def chunks(count: int, seed: int) -> Iterator[np.ndarray]:
        return stream(lm, Request(count, codes), seed, SamplingConfig())

    for _ in chunks(WARM, 0):
        pass
    longest = round(LONGEST_S * lm.codec.frame_rate)
    starts = [listen(chunks(longest, seed)) for seed in range(STARTS)]
    first, audible = (1000 * np.array(values) for values in zip(*starts, strict=True))
    taken = []
    for seed in range(rounds):
        start = time.perf_counter()
        for _ in chunks(num_frames, seed):
            pass
        taken.append(time.perf_counter() - start)
    return Heard(
        model=lm.name,
        first_ms=float(np.median(first)),
        audible_ms=float(np.median(audible)),
        audible_p95_ms=float(np.percentile(audible, 95, method="higher")),
        real_time=num_frames / lm.codec.frame_rate / float(np.median(taken)),
    )


def spoken_prompt(lm: SpeechGenerator) -> tuple[np.ndarray, int]:
    """Samples [S] and their rate."""
    rate = lm.codec.sample_rate
    return load_audio(PROMPT, rate)[: round(PROMPT_S * rate)], rate


def listen(chunks: Iterable[np.ndarray]) -> tuple[float, float]:
    """chunks: [S] each. -> seconds until the first sample, and until the first that is heard, or NEVER."""
    start, first = time.perf_counter(), NEVER
    for audio in chunks:
        now = time.perf_counter() - start
        first = min(first, now) if len(audio) else first
        if (np.abs(audio) > AUDIBLE).any():
            return first, now
    return first, NEVER
