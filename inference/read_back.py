"""Which of several readings of a text is the best: the one in which the model, writing down what it hears, finds it.

A model that says texts and writes them has learned both from recordings, and knows a slip of its own when it hears it.
K codebooks, T frames.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..data.align import audio_first, given_columns, heard_beside, heard_in_time
from ..data.text_encoder import clean_text
from ..data.text_times import UNHEARD, token_frames
from ..data.text_tokenizer import TextTokenizer
from ..model.recent_tokens import is_told
from ..model.text_tokens import WRITE
from .generation import Generation
from .labelled import as_labelled

if TYPE_CHECKING:
    from .generator import SpeechGenerator


def best_reading(lm: "SpeechGenerator", readings: Sequence[Generation], text: str) -> Generation:
    """The one in which `text` is found best; the only one is not heard."""
    return readings[0] if len(readings) == 1 else min(readings, key=lambda reading: text_nats(lm, reading, text))


@torch.inference_mode()
def text_nats(lm: "SpeechGenerator", reading: Generation, text: str) -> float:
    """What `text` costs a model of a tagged layout that writes it down while it hears the reading (in "mixed",
    afterwards); infinite where it was not read to its end."""
    assert lm.tokenizer is not None
    tokens, codes = lm.tokenizer.encode(text), reading.codes[:, reading.num_prompt_frames :]
    config, num_frames = lm.model.config.text, codes.shape[1]
    if not num_frames:
        return math.inf
    if config.layout == "timed":
        assert reading.told is not None
        told = reading.told[reading.num_prompt_frames :]
        begun = is_told(torch.from_numpy(told)).numpy().nonzero()[0]  # one for each token, `lead_s` before its sound
        lead, lag = (round(seconds * lm.codec.frame_rate) for seconds in (config.lead_s, config.lag_s))
        frames = written_frames(lm.tokenizer, text, np.minimum(begun + lead, num_frames - 1))
        if frames is None:
            return math.inf
        row = heard_in_time(tokens, frames, num_frames, lag)
        row, grid = heard_beside(row, codes)
    else:
        row, grid = audio_first(codes, [WRITE, *tokens])
    columns, beside, given = (
        torch.from_numpy(values)[None].to(lm.device) for values in (grid, row, given_columns(row))
    )
    with as_labelled(lm.model):
        nats = lm.model(columns, text=beside, given=given).text_nll
    assert nats is not None
    return float(nats.double().sum())


def written_frames(tokenizer: TextTokenizer, text: str, frames: np.ndarray) -> np.ndarray | None:
    """The frames at which the tokens of a text were said -> those of the tokens that write it [L]; None if not all
    were."""
    said, said_places = tokenizer.saying.encode_places(text)
    if len(frames) < len(said):
        return None
    frames = frames[: len(said)]
    if tokenizer.saying is tokenizer:
        return frames
    text = clean_text(text)
    by_character = np.full(len(text), UNHEARD)
    for place, frame in zip(said_places[::-1, 0], frames[::-1], strict=True):  # the first of several stays
        if text[place : place + 1].isalnum():  # else a sign, which a store does not say when it is heard
            by_character[place] = frame
    return token_frames(tokenizer.encode_places(text)[1], by_character)
