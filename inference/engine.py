"""Generation: a grid of frames in, the same grid with what was missing drawn. State is an object, never a mode.

A grid has a column for each frame, with codes and perhaps a text token (see model/layout.py): given columns first, then
columns in which codes, text or both are drawn. So a continuation, speech from text, text from speech and speech with
its own text are one loop. B batch, K codebooks, T columns (frames), V codebook size.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.check_inputs import check_inputs, check_leading
from ..model.delay_pattern import ABSENT, delay
from ..model.flatten import TEXT
from ..model.lm import SpeechLM
from ..model.walk import Walk
from .config import SamplingConfig
from .cuda_frame import GraphedFrame, graphed
from .frame_step import FrameStep, is_supported
from .guidance import GuidedWalk
from .labelled import as_labelled
from .noise import Noise
from .sampling import BatchSampling, batch_sampling, draw_again, leading_codebooks, sample
from .windows import Window, each_window, window_frames

if TYPE_CHECKING:
    from .prefix import Prefix

SPARE = 256  # columns that a grid which drops others has more than it needs
POLL = 8  # frames between two looks at whether all rows have ended: the host waits for the device each time


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
    prefix: "Prefix | None" = None  # of the given columns, for every row: the frame step need not take them again
    new_codes: Tensor | None = None  # [K, num_frames] or [B, K, num_frames], of the new columns; ABSENT: to be drawn


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
    walk: Walk | FrameStep | GuidedWalk | None = field(default=None, repr=False)
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
    wide = torch.promote_types(model.dtype, torch.float32)  # of the nats
    nll = torch.zeros(codes.shape, device=device, dtype=wide)
    if request.prefix is not None:
        nll[:, :, :given] = request.prefix.nll
    return State(
        codes, text, user, nll,
        None if text is None else torch.zeros(text.shape, device=device, dtype=wide),
        given, torch.full((batch,), total, device=device),
        Noise(seeds, [model.num_classes] + [model.codebook_size] * (model.num_codebooks - 1), device),
        Noise(seeds, [model.text_size], device, stream=1) if request.draw_text else None,
        Noise(seeds, [model.num_classes], device, stream=2), request, num_codebooks, frame=given,
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


def score_window(model: SpeechLM, state: State, window: Window, contexts: Tensor | None = None) -> None:
    """Add the nats of given frames first..stop of a window to the state.

    contexts: of its steps, if they were taken; codes that lag beyond these are for later steps to score.
    """
    rows, seen = given_rows(state.request), slice(window.start, window.stop)
    text = None if state.text is None else state.text[rows, seen]
    user = None if state.user is None else state.user[rows, :, seen]
    output = model(
        state.codes[rows, :, seen], text=text, user=user, contexts=None if contexts is None else contexts[rows]
    )
    kept = slice(window.first, window.stop)
    state.nll[:, :, kept] += output.nll[:, :, window.first - window.start :]
    if output.text_nll is not None and state.text_nll is not None:
        state.text_nll[:, kept] += output.text_nll[:, window.first - window.start :]


@torch.inference_mode()
def generate(
    model: SpeechLM,
    request: Request,
    seeds: Sequence[int],
    sampling: SamplingConfig | Sequence[SamplingConfig] = SamplingConfig(),
    fused: bool = True,
    keep: bool = True,
    graphs: bool = True,
) -> Iterator[State]:
    """Yield the state each time that another frame is complete in all codebooks, until all are, or every row ended.

    sampling: of all rows, or of each. fused: take the frame step (frame_step.py) where it knows the model; else the
    walk, which draws the same codes. keep: hold every column until the end; else columns are dropped when they were
    yielded and nothing to come depends on them: any number of frames, NO_END included, takes the memory of few.
    graphs: on a GPU, make a frame one CUDA graph (cuda_frame.py) where that is possible.
    The nats of the prompt are there from the second time on. Raises FloatingPointError if the model gives NaN.
    """
    if not fused or not is_supported(model):
        request = replace(request, prefix=None)
    state = start(model, request, seeds, leading_codebooks(sampling), keep)
    settings = batch_sampling(sampling, len(seeds), model.num_codebooks, state.nll)
    has_text = request.text is not None or request.new_text is not None or request.draw_text
    if settings.is_guided and not has_text:
        raise ValueError("guidance weighs the text, and none is given")
    longest, given = max(model.config.delays), state.num_prompt_frames
    total, context = given + request.num_frames, window_frames(model.config)
    capacity = min(total, context) + longest + 1
    draws_all = state.num_codebooks == model.num_codebooks
    can_be_graphed = graphs and fused and draws_all
    with graphed(model, request, settings, len(seeds)) if can_be_graphed else nullcontext() as frames:
        for window in each_window(total, context):
            if window.stop <= given:
                if request.prefix is None:
                    with as_labelled(model):
                        score_window(model, state, window)
            else:
                rows = len(seeds) * (2 if settings.is_guided else 1)
                if not fused or not is_supported(model):
                    state.walk = Walk(model, rows, capacity)
                elif isinstance(state.walk, FrameStep):
                    state.walk.restart()
                elif frames is not None:
                    state.walk = frames.walk
                else:
                    # given codes are asked for only where some lag
                    absent = can_end(model, settings) or request.text_end is not None or longest > 0
                    state.walk = FrameStep(model, rows, capacity, absent or settings.is_guided)
                if settings.is_guided:
                    state.walk = GuidedWalk(state.walk, settings.guidance)
                yield from walk_window(model, state, window.moved(-state.num_dropped), settings, frames)
                check_numbers(state)
                if has_ended(state, settings):
                    return


def walk_window(
    model: SpeechLM, state: State, window: Window, sampling: BatchSampling, frames: GraphedFrame | None
) -> Iterator[State]:
    """Draw the frames of one window that are not given. frames: for the steps that it takes, on a GPU."""
    longest, begin = max(model.config.delays), max(window.first, state.num_prompt_frames)
    num_steps = window.stop - window.start + longest
    walk = state.walk
    assert walk is not None
    heard = None
    if state.user is not None:
        lags = model.config.delays[: state.user.shape[1]]
        heard = delay(state.user[:, :, window.start : window.stop], lags)
        heard = F.pad(heard, (0, num_steps - heard.shape[2]), value=ABSENT)  # [B, U, steps]
    prompt, contexts = Window(window.start, window.first, begin), None
    if begin > window.start:
        with as_labelled(model):
            contexts = prefill(model, state, prompt, heard)
    is_scored = window.first == begin or state.request.prefix is not None
    if not is_scored and contexts is None:
        with as_labelled(model):
            score_window(model, state, prompt)
        is_scored = True
    while walk.position < num_steps:
        column = window.start + walk.position
        if state.num_frames <= column < window.stop:
            if frames is not None:
                frames.leave(state)
            window = make_room(model, state, window, sampling)
            column = window.start + walk.position
        if frames is not None and frames.takes(state, window, column):
            frames.take(state, column, sampling)
        else:
            if frames is not None:
                frames.leave(state)
            with as_labelled(model):
                user = None if heard is None else heard[:, :, walk.position]
                Step(model, state, window, sampling, column, can_end(model, sampling)).take(user)
        done = window.start + walk.position - longest
        if done > state.frame:
            state.frame = done
            yield state
            if not is_scored:  # the first frame does not wait for it
                with as_labelled(model):
                    score_window(model, state, prompt, contexts)
                is_scored = True
            if done % POLL == 0 and has_ended(state, sampling):
                break
    if frames is not None:
        frames.leave(state)


def prefill(model: SpeechLM, state: State, window: Window, heard: Tensor | None) -> Tensor | None:
    """Let the walk take the columns of a window, as many steps, and give their contexts; see `Walk.prefill`.

    heard: [B, U, steps] of the other speaker.
    """
    walk, seen = state.walk, slice(window.start, window.stop)
    assert walk is not None
    # a frame step takes what is given to all rows alike once
    once = isinstance(walk, FrameStep) and window.stop == state.num_prompt_frames
    rows, steps = given_rows(state.request) if once else slice(None), slice(window.stop - window.start)
    codes = delay(state.codes[rows, :, seen], model.config.delays)[:, :, steps]
    text = None if state.text is None else state.text[rows, seen]
    prefix = state.request.prefix if window.stop == state.num_prompt_frames else None
    if prefix is not None and isinstance(walk, FrameStep):
        return walk.prefill(codes, text, prefix=prefix)
    return walk.prefill(codes, text, None if heard is None else heard[rows, :, steps])


def make_room(model: SpeechLM, state: State, window: Window, sampling: BatchSampling) -> Window:
    """Drop columns of a full grid that were yielded and are not needed -> the window, in what is left."""
    check_numbers(state)
    count = state.frame - sampling.repetition_frames
    if not model.config.backbone.sliding_window:
        count = min(count, window.start)  # the next window begins with columns of this one
    count = max(count, 0)
    state.drop(count)
    return window.moved(-count)


def check_numbers(state: State) -> None:
    if state.nll.isnan().any():
        raise FloatingPointError("the model gave NaN logits: its weights or its input are broken")


def can_end(model: SpeechLM, sampling: BatchSampling) -> bool:
    """Whether a row may end before the others, after which its codes are ABSENT."""
    return sampling.stop_at_end and model.config.end != "never"


def has_ended(state: State, sampling: BatchSampling) -> bool:
    """Whether every row has. Where none can, the device is not asked: that would make the host wait."""
    asked = sampling.stop_at_end or state.request.text_end is not None
    return asked and state.frame >= int(state.end.max())


@dataclass(frozen=True)
class Step:
    """One step of every row: what each slot of it holds is known, given and scored, or drawn."""

    model: SpeechLM
    state: State
    window: Window
    sampling: BatchSampling
    column: int  # that text and undelayed codebooks are at
    can_end: bool  # whether a row may end before the others
    scored: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # codebook -> logits and code

    def take(self, user: Tensor | None = None) -> None:
        """Let the walk take the step; what is drawn, and the nats of all that is scored, go into the state."""
        assert self.state.walk is not None
        self.state.walk.step(self.choose, self.known(), user)
        if self.scored:
            self.record()

    def known(self) -> dict[int, Tensor]:
        """Slots that need no logits, [B] each: what lies before the window's first frame, nothing beyond its edge."""
        state, window = self.state, self.window
        absent = torch.full_like(state.end, ABSENT)
        known = {}
        if state.text is not None:
            has_text = self.column < self.num_given or state.request.draw_text or state.request.new_text is not None
            if self.column >= window.stop or not has_text:
                known[TEXT] = absent
            elif self.column < self.num_given or not self.model.predicts_text:
                known[TEXT] = state.text[:, self.column]
        for k, lag in enumerate(self.model.config.delays):
            frame = self.column - lag
            is_inside = window.start <= frame < window.stop
            if not is_inside or k >= state.num_codebooks:  # as scoring has it: nothing is known beyond a window's edge
                known[k] = absent
            elif frame < window.first:
                known[k] = state.codes[:, k, frame]
            elif frame >= self.num_given and not state.request.draw_codes:
                known[k] = absent
        return known

    @cached_property
    def num_given(self) -> int:
        """Columns whose content is given, or was drawn in the window before."""
        return max(self.window.first, self.state.num_prompt_frames)

    def choose(self, slot: int, logits: Tensor, guided: Tensor | None = None) -> Tensor:
        """[B] the value of a slot that is scored: given, or drawn from logits [B, C]; from `guided` in their place."""
        if slot == TEXT:
            return self.draw_text(logits)
        frame = self.column - self.model.config.delays[slot]
        # given: more of its surroundings is known than when the given columns alone were scored
        is_given = frame < self.num_given
        drawn_from = logits if guided is None else guided
        code = self.state.codes[:, slot, frame] if is_given else self.draw_code(slot, frame, drawn_from)
        self.scored[slot] = logits, code
        return code

    def draw_code(self, k: int, frame: int, logits: Tensor) -> Tensor:
        """[B] codes drawn from logits [B, C], where none is given; ABSENT, once a row has ended."""
        model, state, sampling = self.model, self.state, self.sampling
        choices = self.allowed(k, logits)
        noise = self.noise_for(choices, state.noise, k)
        drawn = sample(choices, noise, *sampling.codebooks[k])
        if k == 0 and sampling.repetition_frames:
            recent = state.codes[:, 0, max(0, frame - sampling.repetition_frames) : frame]
            other = self.noise_for(choices, state.again_noise, 0)
            drawn = draw_again(drawn, recent, sampling.most_repeats, choices, other)
        if state.request.new_codes is not None:
            given = state.request.new_codes[:, k, frame - state.num_prompt_frames]
            drawn = torch.where(given == ABSENT, drawn, given)
        if self.can_end:
            if k == 0 and model.config.end == "eos":
                ends = (drawn == model.eos) & (frame < state.end)
                state.end = torch.where(ends, frame, state.end)
            drawn = torch.where(frame < state.end, drawn, ABSENT)
        return drawn

    def noise_for(self, choices: Tensor, noise: Noise, slot: int) -> Tensor:
        """[B, C] of this step, for choices [B, C]: some classes may have been cut off."""
        found = noise.at(self.column)[slot]
        return found if choices.shape[1] == found.shape[1] else found[:, : choices.shape[1]]

    def allowed(self, k: int, logits: Tensor) -> Tensor:
        """logits [B, C] without an unwanted end, and without codes that the codec does not have."""
        size = self.model.codebook_size
        num_codes = min(size, self.state.request.num_codes or size)
        has_end = k == 0 and self.model.config.end == "eos"
        endless = self.sampling.endless
        if has_end and self.can_end and (num_codes < size or endless is not None):
            choices = logits.clone()
            choices[:, num_codes:size] = float("-inf")
            if endless is not None:
                choices[:, size:].masked_fill_(endless, float("-inf"))
            return choices
        if num_codes == size and (self.can_end or not has_end):
            return logits
        return logits[:, :num_codes]

    def record(self) -> None:
        """The codes of the step and their nats, into the state."""
        state, delays = self.state, self.model.config.delays
        first, *others = self.scored
        codes = {k: code for k, (_, code) in self.scored.items()}
        costs = {first: nats(*self.scored[first], state)}
        if others:  # all in one call: they have equally many classes
            logits = torch.stack([self.scored[k][0] for k in others], dim=1).flatten(0, 1)
            cost = nats(logits, torch.stack([codes[k] for k in others], dim=1).flatten(), state)
            costs |= zip(others, cost.view(-1, len(others)).unbind(1), strict=True)
        if len(costs) == state.codes.shape[1] and not any(delays):  # the usual case, with fewer calls
            state.codes[:, :, self.column] = torch.stack(list(codes.values()), dim=1)
            state.nll[:, :, self.column] = torch.stack(list(costs.values()), dim=1)
            costs = {}
        for k, cost in costs.items():
            state.codes[:, k, self.column - delays[k]] = codes[k]
            state.nll[:, k, self.column - delays[k]] = cost
        frame = self.column - max(delays[: state.num_codebooks])
        if self.can_end and self.model.config.end == "zeros" and frame >= self.num_given:
            is_zero = (state.codes[:, : state.num_codebooks, frame] == 0).all(dim=1) & (frame < state.end)
            if self.sampling.endless is not None:
                is_zero &= ~self.sampling.endless.squeeze(1)
            state.end = torch.where(is_zero, frame, state.end)

    def draw_text(self, logits: Tensor) -> Tensor:
        """[B] the text of a new column, drawn if it is not known."""
        state, request, column = self.state, self.state.request, self.column
        assert state.text is not None and state.text_nll is not None
        if request.draw_text:
            assert state.text_noise is not None
            (noise,) = state.text_noise.at(column)
            token = sample(logits, noise, *self.sampling.text)
            state.text[:, column] = torch.where(column < state.end, token, ABSENT)
        token = state.text[:, column]
        state.text_nll[:, column] = nats(logits, token, state)
        if request.text_end is not None and not request.draw_codes:
            state.end = torch.where(token == request.text_end, column + 1, state.end)
        return token


def nats(logits: Tensor, values: Tensor, state: State) -> Tensor:
    """[B] the cost of values, 0 where they are ABSENT."""
    return F.cross_entropy(logits.to(state.nll.dtype), values, ignore_index=ABSENT, reduction="none")
