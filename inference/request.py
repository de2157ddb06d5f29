"""From what is asked for (a prompt, seconds, a text, codes to keep) to the `Request` that is drawn, before it is.

K codebooks, T frames.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.align import TAIL, said_beside, spread, text_first, told_ahead
from ..data.text_encoder import clean_text
from ..model.delay_pattern import ABSENT
from ..model.shapes import SAYS, SPEAKS, TAGGED, WRITES
from ..model.text_tokens import EOS, SAY, WRITE
from .argument_checks import check_kept
from .config import SAYING, SamplingConfig
from .grid import Request
from .prefix import SUFFIX, Prefix
from .prompt import Audio, Prompt
from .windows import NO_END

if TYPE_CHECKING:
    from .generator import SpeechGenerator

# seconds of a continuation whose duration is not given: at most, if the model ends by itself, and without an end
LONGEST_S, CONTINUATION_S = 20.0, 8.0
SLOWEST_S = 0.2  # for each character of a text: three times what people take
LONGEST_PAUSE_S = 2.0  # in a text that is said token by token


def longest_s(text: str | None) -> float:
    """Seconds after which what ends by itself is stopped."""
    return max(LONGEST_S, SLOWEST_S * len(text or ""))


def until_end(
    lm: "SpeechGenerator", sampling: SamplingConfig, prompt: Prompt, duration_s: float | None, text: str | None
) -> SamplingConfig:
    """`sampling`, so that the model may end where it is to say when, and a text is said as `say` does where nothing
    else is asked for; see `SpeechGenerator.generate_many`."""
    ends = sampling.stop_at_end or (duration_s is None and (prompt is None or text is not None))
    is_usual = replace(sampling, stop_at_end=False) == SamplingConfig()
    says = text is not None and is_usual and text_layout(lm) in TAGGED
    return replace(SAYING if says else sampling, stop_at_end=ends)


def continuation(
    lm: "SpeechGenerator",
    prompt: Prompt,
    duration_s: float | None,
    sampling: SamplingConfig,
    text: str | None,
    endless: bool,
) -> Request:
    """endless: the duration may be infinite. Raises as `SpeechGenerator.generate_many` does."""
    if duration_s is None:
        ends = sampling.stop_at_end and lm.model.config.end != "never"
        duration_s = longest_s(text) if ends else CONTINUATION_S
    if not 0 < duration_s < 24 * 3600 and not (endless and duration_s == math.inf):
        raise ValueError(f"duration must be more than 0 s and less than a day, not {duration_s}")
    if sampling.guidance != 1 and text is None:
        raise ValueError(f"guidance is {sampling.guidance}: it weighs the text, and none is given")
    least, most = getattr(lm.codec, "min_codebooks", 1), lm.model.num_codebooks
    if sampling.num_codebooks and not least <= sampling.num_codebooks <= most:
        raise ValueError(f"num_codebooks is {sampling.num_codebooks}; this model takes {least} to {most} (0: all)")
    num_frames = NO_END if duration_s == math.inf else max(1, round(duration_s * lm.codec.frame_rate))
    if isinstance(prompt, str | Path) and Path(prompt).suffix == SUFFIX:
        prompt = lm.load_prefix(prompt)
    if isinstance(prompt, Prefix):
        prompt.check(lm)
        request = laid_out(lm, num_frames, prompt.codes, text)
        # a text may come before the codes, and fewer codebooks are other codes
        is_same = request.text is None and sampling.num_codebooks in (0, most) and prompt.caches is not None
        return replace(request, prefix=prompt) if is_same else request
    return laid_out(lm, num_frames, None if prompt is None else lm.encode(prompt, sampling.max_prompt_s), text)


def regeneration(lm: "SpeechGenerator", audio: Audio, keep: int, sampling: SamplingConfig, text: str | None) -> Request:
    """See `SpeechGenerator.regenerate`."""
    check_kept(keep, sampling.num_codebooks or lm.model.num_codebooks)
    known = lm.encode(audio, math.inf).clone()
    known[keep:] = ABSENT
    return replace(laid_out(lm, known.shape[1], None, text), new_codes=known)


def filling(
    lm: "SpeechGenerator", before: Audio, after: Audio, duration_s: float, sampling: SamplingConfig, text: str | None
) -> tuple[Request, int]:
    """See `SpeechGenerator.fill`. With the frames of `after`."""
    if text is not None and lm.model.config.text.is_tagged:
        raise ValueError(f"{lm.name}: fills no gap with a text, as what comes before a text is a voice; leave it out")
    end = lm.encode(after, math.inf)
    request, num_last = continuation(lm, before, duration_s, sampling, text, endless=False), end.shape[1]
    gap = torch.full((len(end), request.num_frames), ABSENT, device=end.device)
    request = replace(request, num_frames=request.num_frames + num_last, new_codes=torch.cat([gap, end], dim=1))
    if request.new_text is not None:
        request = replace(request, new_text=F.pad(request.new_text, (0, num_last), value=ABSENT))
    return request, num_last


def text_layout(lm: "SpeechGenerator") -> str:
    """Where the text of the model lies; "none" if it has none, or no tokenizer to read one with."""
    return lm.model.config.text.layout if lm.tokenizer is not None else "none"


def check_writes(lm: "SpeechGenerator") -> None:
    """Raise ValueError for a model that writes no text."""
    if text_layout(lm) not in WRITES:
        raise ValueError(f"{lm.name}: cannot transcribe; train a model with --model.text.layout last")


def transcription(lm: "SpeechGenerator", codes: Tensor, max_tokens: int) -> Request:
    """The words of codes [K, T] are to be drawn. Raises ValueError for a model that writes no text."""
    check_writes(lm)
    layout, tag = text_layout(lm), None
    if layout == "timed":  # the text is drawn beside the codes, and what is left after them
        before = torch.full_like(codes[:, :1], ABSENT)
        return Request(
            codes.shape[1] + TAIL, before, torch.tensor([WRITE]), draw_codes=False, draw_text=True, text_end=EOS,
            new_codes=F.pad(codes, (0, TAIL), value=ABSENT),
        )  # fmt: skip
    if layout == "mixed":
        codes = F.pad(codes, (0, 1), value=ABSENT)
        tag = F.pad(torch.tensor([WRITE]), (codes.shape[1] - 1, 0), value=ABSENT)
    return Request(max_tokens, codes, tag, draw_codes=False, draw_text=True, text_end=EOS)


def sayable(lm: "SpeechGenerator", sampling: SamplingConfig) -> SamplingConfig:
    """`sampling`; but in place of SAYING the default of others for a model that never spoke without a text, and so has
    nothing to weigh it by."""
    return SamplingConfig() if sampling == SAYING and text_layout(lm) not in TAGGED else sampling


def saying(
    lm: "SpeechGenerator",
    text: str,
    voice: Prompt,
    duration_s: float | None,
    sampling: SamplingConfig,
    best_of: int = 1,
) -> Request:
    """See `SpeechGenerator.say`."""
    if best_of < 1:
        raise ValueError(f"best_of is {best_of}; it must be at least 1")
    layout = text_layout(lm)
    if layout not in SAYS:
        raise ValueError(f"{lm.name}: cannot say a text; train a model with --model.text.layout mixed")
    if not clean_text(text):
        raise ValueError("the text is empty; give what is to be said")
    if voice is not None and layout not in TAGGED:
        raise ValueError(f"{lm.name}: takes no voice before a text; train a model with --model.text.layout mixed")
    if best_of > 1 and layout not in TAGGED:
        raise ValueError(f"{lm.name}: writes nothing down to choose by; best_of is for --model.text.layout mixed")
    return continuation(lm, voice, duration_s or longest_s(text), sampling, text, endless=False)


def laid_out(lm: "SpeechGenerator", num_frames: int, codes: Tensor | None, text: str | None) -> Request:
    """Given codes [K, T] and text, as the model was trained."""
    layout = lm.model.config.text.layout if lm.model.text_size else "none"
    if text is None:
        return Request(num_frames, codes, draw_text=layout == "aligned" and lm.model.predicts_text)
    if lm.tokenizer is None or layout not in SPEAKS:
        raise ValueError(f"{lm.name}: cannot speak a given text; train a model with --model.text.layout first")
    words = lm.tokenizer.saying.encode_words(text)
    if layout == "aligned":
        if num_frames == NO_END:
            raise ValueError("a text that is spread over the audio needs a duration that is not infinite")
        empty = np.zeros((lm.model.num_codebooks, num_frames), np.int64)
        new, _ = spread(words, [len(word) for word in clean_text(text).split()], empty)
        return Request(num_frames, codes, new_text=torch.from_numpy(new))
    nothing = np.zeros((lm.model.num_codebooks, 0), np.int64)
    given = nothing if codes is None else codes.cpu().numpy()
    tokens = [token for word in words for token in word]
    if not tokens:
        raise ValueError(f"nothing of the text {text!r} is said; give words")
    if layout not in TAGGED:
        row, grid = text_first(tokens, given)
        return Request(num_frames, torch.from_numpy(grid), torch.from_numpy(row))
    if layout == "mixed":
        row, grid = text_first([SAY, *tokens], nothing, given)
        return Request(num_frames, torch.from_numpy(grid), torch.from_numpy(row), num_voice=given.shape[1])
    before, beside = told_ahead(tokens, lm.model.config.text.lookahead)
    row, grid = said_beside(np.array(before), nothing, given)
    return Request(
        num_frames, torch.from_numpy(grid), torch.from_numpy(row), num_voice=given.shape[1], draw_text=True,
        paced=tuple(beside), longest_pause=round(LONGEST_PAUSE_S * lm.codec.frame_rate),
    )  # fmt: skip


def completed(lm: "SpeechGenerator", request: Request) -> tuple[Request, int]:
    """See `SpeechGenerator.completed`."""
    config = lm.model.config
    extra = max(config.delays) if request.draw_codes and config.end != "eos" else 0
    request = replace(request, num_codes=lm.codec.codebook_size, num_frames=request.num_frames + extra)
    if request.new_text is not None:
        request = replace(request, new_text=F.pad(request.new_text, (0, extra), value=ABSENT))
    if request.new_codes is not None:
        request = replace(request, new_codes=F.pad(request.new_codes, (0, extra), value=ABSENT))
    return request, extra
