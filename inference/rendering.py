"""From the columns of a row that was drawn to a `Generation`, which one hears. K codebooks, T columns."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..data.align import told_apart
from ..model.delay_pattern import ABSENT
from .generation import Generation
from .threads import decoding_threads

if TYPE_CHECKING:
    from .generator import SpeechGenerator


def rendered(
    lm: "SpeechGenerator",
    codes: Tensor,
    nll: Tensor,
    text: Tensor | None,
    num_given: int,
    seed: int,
    finish_reason: str,
) -> Generation:
    """codes, nll: [K, T]. text: [T]. num_given: columns that were given, the first ones."""
    audible = (codes[0] != ABSENT).nonzero().flatten()  # columns of text alone make no sound
    codes, nll = codes[:, audible], nll[:, audible]
    told = None if text is None else text[audible].cpu().numpy()
    if text is not None and lm.model.config.text.layout == "timed":
        text = torch.tensor(told_apart(text.tolist(), lm.model.config.text.lookahead))
    cut = int((audible < num_given).sum())
    audio = np.zeros(0, np.float32)
    if len(audible):
        # decoded in one go, so that the continuation joins the prompt without a seam
        with decoding_threads(lm.threads):
            audio = lm.codec.decode(codes[None].to(lm.device))[0, 0].cpu().numpy()
    return Generation(
        audio=audio[cut * lm.codec.hop_length :],
        prompt_audio=audio[: cut * lm.codec.hop_length],
        sample_rate=lm.codec.sample_rate,
        codes=codes.cpu().numpy(),
        nll=nll.cpu().numpy(),
        num_prompt_frames=cut,
        finish_reason=finish_reason,
        text="" if lm.tokenizer is None or text is None else lm.tokenizer.decode(text.tolist()),
        seed=seed,
        told=told,
    )
