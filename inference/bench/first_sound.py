"""A model with its codec, frame by frame: how soon a listener hears something, and how fast the whole is.

B batch, K codebooks, T frames, S samples.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...model.pretrained import PROMPT
from ..config import SamplingConfig
from ..engine import Request, generate
from ..generator import SpeechGenerator
from ..machine import synchronize
from ..resources import NAN

PROMPT_S = 3.0  # of the bundled recording, encoded before the clock starts
AUDIBLE = 10 ** (-50 / 20)  # -50 dBFS
STARTS = 10  # how often the first sound is waited for, each time with other seeds


@dataclass(frozen=True)
class Heard:
    """From the call with an encoded prompt to samples on the host, every row's."""

    first_ms: float  # the first sample, median
    audible_ms: float  # the first one above -50 dBFS, median; NaN: silence
    audible_p95_ms: float
    real_time: float  # times real time of each row: codes and audio, by the median


def first_sound(lm: SpeechGenerator, batch: int, num_frames: int, rounds: int) -> Heard:
    """Generate and decode as a stream, again and again."""
    prompt = lm.encode(PROMPT, PROMPT_S).expand(batch, -1, -1)
    seeds = range(batch)
    for _ in stream(lm, prompt, min(num_frames, 8), seeds):  # warms up
        pass
    starts = [listen(lm, prompt, num_frames, range(n * batch, (n + 1) * batch)) for n in range(1, STARTS + 1)]
    first, audible = (1000 * np.array(values) for values in zip(*starts, strict=True))
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in stream(lm, prompt, num_frames, seeds):
            pass
        synchronize(lm.device)
        taken.append(time.perf_counter() - start)
    duration_s = num_frames / lm.codec.frame_rate
    return Heard(
        float(np.median(first)), float(np.median(audible)), float(np.percentile(audible, 95)),
        duration_s / float(np.median(taken)),
    )  # fmt: skip


def listen(lm: SpeechGenerator, prompt: Tensor, num_frames: int, seeds: Sequence[int]) -> tuple[float, float]:
    """Seconds until every row has a first sample, and one that is heard; NaN: it never has."""
    start, first = time.perf_counter(), NAN
    heard = torch.zeros(len(seeds), dtype=torch.bool)
    for audio in stream(lm, prompt, num_frames, seeds):
        if not audio.shape[-1]:
            continue
        heard |= (audio.cpu().abs() > AUDIBLE).any(dim=1)
        now = time.perf_counter() - start
        first = now if np.isnan(first) else first
        if heard.all():
            return first, now
    return first, NAN


def stream(lm: SpeechGenerator, prompt: Tensor, num_frames: int, seeds: Sequence[int]) -> Iterator[Tensor]:
    """The continuation of a prompt [B, K, T], audio [B, S] as soon as it is there."""
    decoder = lm.codec.streaming_decoder()
    to_skip = prompt.shape[2] * lm.codec.hop_length
    done = 0
    request = Request(num_frames, prompt, num_codes=lm.codec.codebook_size)
    for state in generate(lm.model, request, seeds, SamplingConfig()):
        codes = state.codes[:, :, done : state.frame]  # the first time with the prompt
        audio, done = decoder.push(codes)[:, 0], state.frame
        yield audio[:, to_skip:]
        to_skip = max(0, to_skip - audio.shape[1])
    yield decoder.flush()[:, 0, to_skip:]
