"""The grid of a generation: `Request` says what is given and what is to be drawn, `State` holds it while it is filled.

A column for each frame, with codes and perhaps a text token (see model/layout.py): given columns first, then those in
which codes, text or both are drawn. B batch, K codebooks, T columns (frames), U codebooks of another speaker.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.check_inputs import check_inputs, check_leading
from ..model.delay_pattern import ABSENT
from ..model.lm import SpeechLM
from ..model.walk import Walk
from .frame_step import FrameStep
from .guidance import GuidedStep, GuidedWalk
from .noise import Noise
from .pacing import Pacing

if TYPE_CHECKING:
    from .prefix import Prefix

SPARE = 256  # columns that a grid which drops others has more than it needs


@dataclass(frozen=True)
class Request:
    """What is given and what is to be drawn. Shapes without B hold for every row."""

    num_frames: int  # columns to draw, after those that are given
    codes: Tensor | None = None  # [K, T'] or [B, K, T'] given columns, ABSENT allowed
    text: Tensor | None = None  # [T'] or [B, T'] of the given columns, ABSENT allowed
    new_text: Tensor | None = None  # [num_frames] or [B, num_frames], where the text of the new columns is known
    user: Tensor | None = None  # [U, T] or [B, U, T], the codes of another speaker, of all columns (Moshi)
    draw_codes: bool = True
    draw_text: bool = False
    text_end: int | None = None  # the token after which a row draws no more text; rows without codes end there
    num_codes: int | None = None  # codes from here on are never drawn: a model may have more than its codec (CSM has)
    prefix: "Prefix | None" = None  # the given columns of every row: the frame step need not take them again
    new_codes: Tensor | None = None  # [K, num_frames] or [B, K, num_frames], of the new columns; ABSENT: to be drawn
    num_voice: int = 0  # the first given columns are another utterance: heard, and no part of the result
    paced: tuple[int, ...] = ()  # text tokens that are drawn in this order, each when the model draws so (pacing.py)
    longest_pause: int = 0  # columns after which the next of them begins in any case


@dataclass
class State:
    """Where a batch of generations stands: what is in the grid so far, and the walk through the window it is in.

    Columns count from the first that the grid holds: `num_dropped` came before it.
    """

    codes: Tensor  # [B, K, T], ABSENT where none is (yet)
    text: Tensor | None  # [B, T]
    user: Tensor | None  # [B, U, T]
    nll: Tensor  # [B, K, T] nats
    text_nll: Tensor | None  # [B, T] nats
    num_prompt_frames: int
    end: Tensor  # [B] the frame at which a row ended; T where it did not
    noise: Noise  # for codes
    text_noise: Noise | None
    again_noise: Noise  # for a code of codebook 0 that is drawn a second time
    request: Request
    num_codebooks: int  # leading ones that are heard and drawn; the others are ABSENT
    pacing: Pacing | None = None  # where a text is said token by token
    walk: Walk | FrameStep | GuidedWalk | GuidedStep | None = field(default=None, repr=False)
    frame: int = 0  # frames that are complete
    num_dropped: int = 0  # columns that the grid does not hold any more

    @property
    def num_frames(self) -> int:
        """Columns of the grid: given and drawn, when none ends before."""
        return self.codes.shape[2]

    def drop(self, count: int) -> None:
        """Forget the first columns, and make room at the end: for as many, and at least SPARE."""
        # new tensors: the walk may hold a view of the last column
        for name, empty in ("codes", ABSENT), ("nll", 0), ("text", ABSENT), ("text_nll", 0):
            if (grid := getattr(self, name)) is not None:
                setattr(self, name, F.pad(grid[..., count:], (0, max(count, SPARE)), value=empty))
        self.num_dropped += count
        self.num_prompt_frames -= count
        self.frame -= count
        self.end = self.end - count
        for noise in vars(self).values():
            if isinstance(noise, Noise):
                noise.drop(count)


@torch.inference_mode()
def start(model: SpeechLM, request: Request, seeds: Sequence[int], num_codebooks: int = 0, keep: bool = True) -> State:
    """Lay out the grid, one row for each seed. Raises ValueError for what is not the model's.

    Every given code keeps its value while generating, the delayed ones included. keep: as in `generate`.
    num_codebooks: leading ones that are heard and drawn; the others are ABSENT (0: all).
    """
    num_codebooks = check_leading(num_codebooks, model.num_codebooks)
    batch, device, given = len(seeds), model.device, given_columns(request)
    total = width = given + request.num_frames
    if not keep and request.new_text is None and request.user is None:
        width = min(total, given + SPARE)
    if request.draw_text and not model.predicts_text:
        raise ValueError("this model predicts no text; it was trained without a text stream, or is only given one")
    codes = torch.full((batch, model.num_codebooks, width), ABSENT, device=device)
    text = torch.full((batch, width), ABSENT, device=device) if model.text_size else None
    if request.codes is not None:
        prompt = request.codes.expand(batch, *request.codes.shape[-2:]).to(device)
        check_inputs(model.config, prompt)
        codes[:, :, :given] = prompt
        codes[:, num_codebooks:] = ABSENT
    for words, columns in ((request.text, slice(0, given)), (request.new_text, slice(given, total))):
        if words is not None:
            if text is None:
                raise ValueError("text was given to a model that has no text stream")
            text[:, columns] = words.expand(batch, words.shape[-1]).to(device)
    user = None if request.user is None else request.user.expand(batch, *request.user.shape[-2:]).to(device)
    check_inputs(model.config, codes, text, user)
    if request.new_codes is not None:
        new_codes = request.new_codes.expand(batch, *request.new_codes.shape[-2:]).to(device)
        check_inputs(model.config, new_codes)
        request = replace(request, new_codes=new_codes)
    wide = torch.promote_types(model.dtype, torch.float32)  # the precision of the nats
    nll = torch.zeros(codes.shape, device=device, dtype=wide)
    pacing = None
    if request.paced:
        pacing = Pacing.of(batch, device)
        pacing.set_rows(range(batch), request.paced, request.longest_pause)
    if request.prefix is not None:
        nll[:, :, :given] = request.prefix.nll
    return State(
        codes, text, user, nll,
        None if text is None else torch.zeros(text.shape, device=device, dtype=wide),
        given, torch.full((batch,), total, device=device),
        Noise(seeds, [model.num_classes] + [model.codebook_size] * (model.num_codebooks - 1), device),
        Noise(seeds, [model.text_size], device, stream=1) if request.draw_text else None,
        Noise(seeds, [model.num_classes], device, stream=2), request, num_codebooks, pacing, frame=given,
    )  # fmt: skip


def given_columns(request: Request) -> int:
    """T'. Raises ValueError if codes and texts do not fit together."""
    of_codes, of_text, of_new, of_new_codes = (
        x if x is None else x.shape[-1] for x in (request.codes, request.text, request.new_text, request.new_codes)
    )
    if of_codes is not None and of_text is not None and of_codes != of_text:
        raise ValueError(f"the given text has {of_text} columns, the given codes {of_codes}; they must be the same")
    if of_new is not None and of_new != request.num_frames:
        raise ValueError(f"the text of new columns has {of_new} tokens for {request.num_frames} columns")
    if of_new_codes is not None and of_new_codes != request.num_frames:
        raise ValueError(f"the codes of new columns are {of_new_codes} frames for {request.num_frames} columns")
    return of_codes or of_text or 0


def given_rows(request: Request) -> slice:
    """The rows of what is given: the first one, where it is the same in all."""
    given = (request.codes, 2), (request.text, 1), (request.user, 2)
    same = all(values is None or values.ndim == dims for values, dims in given)
    return slice(0, 1 if same else None)
