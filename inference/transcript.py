"""What is said in a recording of any length: it is cut where it is quiet, and each passage is written down by itself.

K codebooks, T frames, S samples.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..data.audio import MIN_DURATION_S, AudioError, audio_blocks, check_usable
from ..data.pieces import pieces_of
from .beam_search import likeliest_text
from .config import BeamConfig, SamplingConfig
from .labelled import as_labelled
from .passage import Passage
from .prompt import Audio, resampled
from .request import transcription
from .threads import decoding_threads
from .windows import window_frames

if TYPE_CHECKING:
    from .generator import SpeechGenerator


def passages_of(
    lm: "SpeechGenerator",
    audio: Audio,
    max_s: float,
    beam: BeamConfig,
    sampling: SamplingConfig | None,
    max_tokens: int,
) -> Iterator[Passage]:
    """See `SpeechGenerator.passages`. A file is read as it is written down, so the memory does not grow with it."""
    rate, hop = lm.codec.sample_rate, lm.codec.hop_length
    limit, least = hop * max(1, round(max_s * lm.codec.frame_rate)), round(MIN_DURATION_S * rate)
    start = 0
    for piece in pieces_of(blocks_of(audio, rate), limit, least, hop, rate):
        stop = start + len(piece)
        try:
            codes = lm.encode((piece, rate), math.inf)
        except AudioError:  # too quiet or too short to hold words
            codes = None
        if codes is not None and (text := written_down(lm, codes, beam, sampling, max_tokens)):
            yield Passage(start / rate, stop / rate, text)
        start = stop


def blocks_of(audio: Audio, rate: int) -> Iterator[np.ndarray]:
    """Samples [S] at `rate` Hz. Raises AudioError for unusable audio, for some only once all of it was read."""
    if isinstance(audio, str | Path):
        yield from audio_blocks(audio, rate, check_speech=True)
        return
    samples = resampled(*audio, rate)
    check_usable(samples, rate, "the recording")
    yield samples


def written_down(
    lm: "SpeechGenerator",
    codes: Tensor,
    beam: BeamConfig = BeamConfig(),
    sampling: SamplingConfig | None = None,
    max_tokens: int = 200,
) -> str:
    """The words of a passage. codes: [K, T]. Raises ValueError for a model that writes no text."""
    request, tokenizer = transcription(lm, codes, max_tokens), lm.tokenizer
    assert request.codes is not None and tokenizer is not None
    fits = request.codes.shape[1] + request.num_frames <= window_frames(lm.model.config)
    if sampling is not None or not fits:
        return lm.run(request, [0], sampling or SamplingConfig(text_temperature=0.0))[0].text
    with decoding_threads(lm.threads), as_labelled(lm.model):
        ngram = tokenizer.ngram if beam.ngram_weight else None
        return tokenizer.decode(likeliest_text(lm.model, request, tokenizer.num_pieces, beam, ngram))
