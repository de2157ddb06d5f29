"""A text that is said while it is still being written, as a language model's is: no word is said before it is whole,
and where texts are told as phonemes no sentence, as a word's depend on those around it.

In the layout "timed" a text runs a few tokens ahead of its audio (data/align.py), so speech begins when that many are
there, and waits where the next is not.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from ..model.text_tokens import EOS
from .config import SamplingConfig
from .grid import State
from .prompt import Prompt
from .request import LONGEST_S, continuation, text_layout, until_end
from .streaming import stream

if TYPE_CHECKING:
    from .generator import SpeechGenerator


def words_of(parts: Iterable[str]) -> Iterator[str]:
    """Parts of a text, cut anywhere -> its words, each as soon as white space or the end of the text follows it."""
    begun = ""
    for part in parts:
        *whole, begun = f"{begun}{part}|".split()  # the mark keeps the last word, or nothing, apart from white space
        begun = begun[:-1]
        yield from whole
    if begun:
        yield begun


class WrittenText:
    """The tokens of a text that a model says, unit by unit (`TextEncoder.units`), and EOS for each told ahead."""

    def __init__(self, lm: "SpeechGenerator", parts: Iterable[str]):
        assert lm.tokenizer is not None
        encoder = lm.tokenizer.saying
        self.encode, self.ahead = encoder.encode, lm.model.config.text.lookahead
        self.longest_wait = round(LONGEST_S * lm.codec.frame_rate)
        self.needed = 1 + max(lm.model.config.delays)  # tokens that may be told until the next look
        self.units = encoder.units(words_of(parts))
        self.rest: Iterator[list[int]] = chain(map(self.encode, self.units), [[EOS] * self.ahead])

    def beginning(self) -> tuple[str, bool]:
        """As much as is told before the audio, and of one token beside it; whether there may be more."""
        units, num_tokens = [], 0
        for unit in self.units:
            units.append(unit)
            num_tokens += len(self.encode(unit))
            if num_tokens >= self.ahead + self.needed:
                return " ".join(units), True
        return " ".join(units), False

    def tell(self, state: State) -> bool:
        """Let row 0 have what it may tell next, waiting for it -> whether it should go on."""
        pacing = state.pacing
        assert pacing is not None
        while pacing.num_left(0) < self.needed and (tokens := next(self.rest, None)) is not None:
            pacing.add(0, tokens)
        return pacing.num_left(0) > 0 or int(pacing.waited[0]) < self.longest_wait


def stream_written(
    lm: "SpeechGenerator",
    parts: Iterable[str],
    voice: Prompt,
    duration_s: float | None,
    seed: int,
    sampling: SamplingConfig,
) -> Iterator[np.ndarray]:
    """See `SpeechGenerator.stream`. Raises ValueError for a model that needs all of a text at once."""
    if text_layout(lm) != "timed":
        raise ValueError(
            f"{lm.name}: needs all of a text before it says it; join its parts, or train a model with "
            "--model.text.layout timed"
        )
    return _stream_written(lm, WrittenText(lm, parts), voice, duration_s, seed, sampling)


def _stream_written(
    lm: "SpeechGenerator",
    text: WrittenText,
    voice: Prompt,
    duration_s: float | None,
    seed: int,
    sampling: SamplingConfig,
) -> Iterator[np.ndarray]:
    beginning, has_more = text.beginning()
    if not beginning:
        raise ValueError("the text is empty; give what is to be said")
    sampling = until_end(lm, sampling, voice, duration_s, beginning)
    request = continuation(lm, voice, float("inf") if duration_s is None else duration_s, sampling, beginning, True)
    if has_more:  # so it does not end here
        request = replace(request, paced=request.paced[: -text.ahead])
    else:
        text.rest = iter(())
    yield from stream(lm, request, seed, sampling, text.tell)
