"""Audio to go on from, as codes. K codebooks, T frames, S samples."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.audio import check_usable, load_audio
from ..model.codecs import Codec
from .prefix import Prefix
from .threads import decoding_threads

Audio = str | Path | tuple[np.ndarray, int]  # a file, or (samples [S], sample_rate)
Prompt = Audio | Prefix | None


def encode_end(codec: Codec, audio: Audio, max_s: float, threads: int | None = None) -> Tensor:
    """The last `max_s` seconds of audio, a frame at least -> codes [K, T]. Raises AudioError for unusable audio.

    A last frame that the audio does not fill is left out: it would tell of an end.
    """
    if isinstance(audio, tuple):
        samples = resampled(*audio, codec.sample_rate)
        check_usable(samples, codec.sample_rate, "the prompt")
    else:
        samples = load_audio(audio, codec.sample_rate)
    hop = codec.hop_length
    whole = len(samples) // hop * hop or len(samples)
    kept = whole if math.isinf(max_s) else max(1, round(max_s * codec.frame_rate)) * hop
    first = max(0, whole - kept)
    with decoding_threads(threads):
        return codec.encode(torch.from_numpy(samples[first:whole])[None, None].to(codec.device))[0]


def resampled(samples: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """Samples [S] at `rate` Hz -> float32 [S] at `sample_rate`."""
    samples = np.asarray(samples, np.float32)
    if rate == sample_rate:
        return samples
    import soxr

    return np.asarray(soxr.resample(samples, rate, sample_rate, "HQ"), np.float32)
