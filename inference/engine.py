"""Generation: a grid of frames in, the same grid with what was missing drawn. State is an object, never a mode.

A grid has a column for each frame, with codes and perhaps a text token (see model/layout.py): given columns first, then
columns in which codes, text or both are drawn. So a continuation, speech from text, text from speech and speech with
its own text are one loop. B batch, K codebooks, T columns (frames), V codebook size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.delay_pattern import ABSENT, delay
from ..model.lm import SpeechLM
from ..model.walk import TEXT, Walk
from .config import SamplingConfig
from .labelled import as_labelled
from .sampling import exponential_noise, sample
from .windows import Window, windows

Logits = Callable[[], Tensor]  # of a slot, when they are asked for


@dataclass(frozen=True)
class Request:
    """What is given and what is to be drawn. Shapes without B hold for every row."""

    num_frames: int  # columns to draw, after those that are given
    codes: Tensor | None = None  # [K, T'] or [B, K, T'] given columns, ABSENT allowed
    text: Tensor | None = None  # [T'] or [B, T'] of the given columns, ABSENT allowed
    new_text: Tensor | None = None  # [num_frames] or [B, num_frames], where the text of the new columns is known
    user: Tensor | None = None  # [U, T] or [B, U, T], what the other speaker says, of all columns
    draw_codes: bool = True
    draw_text: bool = False
    text_end: int | None = None  # the token after which a row draws no more text; rows without codes end there
    num_codes: int | None = None  # codes from here on are never drawn: a model may have more than its codec (CSM has)


@dataclass
class State:
    """Where a batch of generations stands: what is in the grid so far, and the walk through the window it is in."""

    codes: Tensor  # [B, K, T], ABSENT where none is (yet)
    text: Tensor | None  # [B, T]
    user: Tensor | None  # [B, U, T]
    nll: Tensor  # [B, K, T] nats
    text_nll: Tensor | None  # [B, T] nats
    num_prompt_frames: int
    end: Tensor  # [B] the frame at which a row ended; T where it did not
    generators: list[torch.Generator]
    request: Request
    walk: Walk | None = field(default=None, repr=False)
    frame: int = 0  # frames that are complete

    @property
    def num_frames(self) -> int:
        """Given and drawn, when none ends before."""
        return self.codes.shape[2]


@torch.inference_mode()
def start(model: SpeechLM, request: Request, seeds: Sequence[int]) -> State:
    """Lay out the grid, one row for each seed, and score what is given. Raises ValueError for what is not the model's.

    Every given code keeps its value while generating, the delayed ones included.
    """
    batch, device, given = len(seeds), model.device, given_columns(request)
    total = given + request.num_frames
    if request.draw_text and not model.predicts_text:
        raise ValueError("this model predicts no text; it was trained without a text stream, or is only given one")
    codes = torch.full((batch, model.num_codebooks, total), ABSENT, device=device)
    text = torch.full((batch, total), ABSENT, device=device) if model.text_size else None
    user = None if request.user is None else expand(request.user, batch, 3).to(device)
    if request.codes is not None:
        prompt = expand(request.codes, batch, 3).to(device)
        model.check_inputs(prompt)
        codes[:, :, :given] = prompt
    for words, columns in ((request.text, slice(0, given)), (request.new_text, slice(given, total))):
        if words is not None:
            if text is None:
                raise ValueError("text was given to a model that has no text stream")
            text[:, columns] = expand(words, batch, 2).to(device)
    model.check_inputs(codes, text, user)
    wide = torch.promote_types(model.dtype, torch.float32)  # of the nats
    state = State(
        codes, text, user, torch.zeros(codes.shape, device=device, dtype=wide),
        None if text is None else torch.zeros(text.shape, device=device, dtype=wide),
        given, torch.full((batch,), total, device=device),
        [torch.Generator().manual_seed(seed) for seed in seeds], request, frame=given,
    )  # fmt: skip
    with as_labelled(model):
        for window in windows(given, model.config.context_frames) if given else []:
            score_window(model, state, window)
    return state


def given_columns(request: Request) -> int:
    """T'. Raises ValueError if codes and texts do not fit together."""
    of_codes, of_text, of_new = (
        None if x is None else x.shape[-1] for x in (request.codes, request.text, request.new_text)
    )
    if of_codes is not None and of_text is not None and of_codes != of_text:
        raise ValueError(f"the given text has {of_text} columns, the given codes {of_codes}; they must be the same")
    if of_new is not None and of_new != request.num_frames:
        raise ValueError(f"the text of new columns has {of_new} tokens for {request.num_frames} columns")
    return of_codes or of_text or 0


def expand(values: Tensor, batch: int, dims: int) -> Tensor:
    """Without a batch dimension: the same for every row."""
    return values if values.ndim == dims else values.expand(batch, *values.shape)


def score_window(model: SpeechLM, state: State, window: Window) -> None:
    """The nats of given frames first..stop of a window, into the state."""
    seen, request = slice(window.start, window.stop), state.request
    given = (request.codes, 2), (request.text, 1), (request.user, 2)
    same = all(values is None or values.ndim == dims for values, dims in given)
    rows = slice(0, 1 if same else None)  # what is given to every row is scored once
    text = None if state.text is None else state.text[rows, seen]
    user = None if state.user is None else state.user[rows, :, seen]
    output = model(state.codes[rows, :, seen], text=text, user=user)
    kept = slice(window.first, window.stop)
    state.nll[:, :, kept] = output.nll[:, :, window.first - window.start :]
    if output.text_nll is not None and state.text_nll is not None:
        state.text_nll[:, kept] = output.text_nll[:, window.first - window.start :]


@torch.inference_mode()
def generate(
    model: SpeechLM, request: Request, seeds: Sequence[int], sampling: SamplingConfig = SamplingConfig()
) -> Iterator[State]:
    """Yield the state each time that another frame is complete in all codebooks, until all are, or every row ended."""
    state = start(model, request, seeds)
    for window in windows(state.num_frames, model.config.context_frames):
        if window.stop > state.num_prompt_frames:
            yield from walk_window(model, state, window, sampling)
            if has_ended(state, sampling):
                return


def walk_window(model: SpeechLM, state: State, window: Window, sampling: SamplingConfig) -> Iterator[State]:
    """Draw the frames of one window that are not given."""
    longest, begin = max(model.config.delays), max(window.first, state.num_prompt_frames)
    num_steps = window.stop - window.start + longest
    walk = state.walk = Walk(model, len(state.generators), num_steps + 1)
    known = begin - window.start  # columns, and so many steps hold given codes only
    if known:
        seen = slice(window.start, begin)
        delayed = delay(state.codes[:, :, seen], model.config.delays)[:, :, :known]
        user = None
        if state.user is not None:
            lags = model.config.delays[: state.user.shape[1]]
            user = delay(state.user[:, :, seen], lags)[:, :, :known]
        with as_labelled(model):
            walk.prefill(delayed, None if state.text is None else state.text[:, seen], user)
    while walk.position < num_steps:
        with as_labelled(model):
            step(model, state, window, sampling)
        done = window.start + walk.position - longest
        if done > state.frame:
            state.frame = done
            yield state
            if has_ended(state, sampling):
                return


def has_ended(state: State, sampling: SamplingConfig) -> bool:
    """Whether every row has. Where none can, the device is not asked: that would make the host wait at each frame."""
    can_end = sampling.stop_at_end or state.request.text_end is not None
    return can_end and state.frame >= int(state.end.max())


def step(model: SpeechLM, state: State, window: Window, sampling: SamplingConfig) -> None:
    """One step of every row: draws what is not given, records the nll of what was drawn."""
    walk = state.walk
    assert walk is not None
    column, delays = window.start + walk.position, model.config.delays

    def choose(slot: int, logits: Logits) -> Tensor:
        if slot == TEXT:
            return choose_text(model, state, window, column, logits, sampling)
        return choose_code(model, state, window, column - delays[slot], slot, logits, sampling)

    user = None
    if state.user is not None:
        frames = [column - lag for lag in delays[: state.user.shape[1]]]
        user = torch.stack([
            state.user[:, k, t] if window.start <= t < window.stop else nothing(state) for k, t in enumerate(frames)
        ], dim=1)  # fmt: skip
    walk.step(choose, user)


def nothing(state: State) -> Tensor:
    """[B] ABSENT."""
    return torch.full_like(state.end, ABSENT)


def choose_code(
    model: SpeechLM, state: State, window: Window, frame: int, k: int, logits: Logits, sampling: SamplingConfig
) -> Tensor:
    """[B] what codebook k holds at `frame`: given, drawn, or ABSENT."""
    if not window.start <= frame < window.stop:  # as scoring has it: nothing is known beyond the edge of a window
        return nothing(state)
    if frame < max(window.first, state.num_prompt_frames):
        given = state.codes[:, k, frame]
        if window.first <= frame:  # known more of what surrounds it than when the given columns alone were scored
            state.nll[:, k, frame] = nats(logits(), given, state)
        return given
    return draw_code(model, state, frame, k, logits(), sampling) if state.request.draw_codes else nothing(state)


def draw_code(model: SpeechLM, state: State, frame: int, k: int, logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """[B] codes drawn from logits [B, C] into the state; ABSENT, once a row has ended."""
    noise = exponential_noise(state.generators, model.num_classes)[:, : logits.shape[1]].to(logits.device)
    choices = allowed(model, logits, k, state.request, sampling)
    drawn = sample(choices, sampling.depth_temperature if k else sampling.temperature, sampling.top_k, noise)
    drawn = torch.where(frame < state.end, drawn, ABSENT)
    nll = nats(logits, drawn, state)
    if k == 0:
        ends = drawn == model.eos
        state.end = torch.where(ends, frame, state.end)
        nll, drawn = nll.masked_fill(ends, 0.0), drawn.masked_fill(ends, ABSENT)
    state.nll[:, k, frame], state.codes[:, k, frame] = nll, drawn
    if model.config.end == "zeros" and sampling.stop_at_end and k == model.num_codebooks - 1:
        is_zero = (state.codes[:, :, frame] == 0).all(dim=1) & (frame < state.end)
        state.end = torch.where(is_zero, frame, state.end)
    return drawn


def nats(logits: Tensor, values: Tensor, state: State) -> Tensor:
    """[B] what values cost, 0 where they are ABSENT."""
    return F.cross_entropy(logits.to(state.nll.dtype), values, ignore_index=ABSENT, reduction="none")


def allowed(model: SpeechLM, logits: Tensor, k: int, request: Request, sampling: SamplingConfig) -> Tensor:
    """logits [B, C] with -inf where nothing may be drawn: an end that is not wanted, codes that the codec has not."""
    no_end = k == 0 and model.config.end == "eos" and not sampling.stop_at_end
    if not no_end and request.num_codes is None:
        return logits
    choices = logits.clone()
    if no_end:
        choices[:, model.eos] = float("-inf")
    if request.num_codes is not None:
        choices[:, request.num_codes : model.codebook_size] = float("-inf")
    return choices


def choose_text(
    model: SpeechLM, state: State, window: Window, column: int, logits: Logits, sampling: SamplingConfig
) -> Tensor:
    """[B] the text of a column: given, drawn, or ABSENT."""
    assert state.text is not None and state.text_nll is not None
    request = state.request
    if column >= window.stop:
        return nothing(state)
    if column < max(window.first, state.num_prompt_frames):
        return state.text[:, column]
    if request.draw_text:
        noise = exponential_noise(state.generators, model.text_size).to(state.end.device)
        token = sample(logits(), sampling.text_temperature, sampling.top_k, noise)
        token = torch.where(column < state.end, token, ABSENT)
        state.text[:, column] = token
    elif request.new_text is not None:
        token = state.text[:, column]
    else:
        return nothing(state)
    if model.predicts_text:
        state.text_nll[:, column] = nats(logits(), token, state)
    if request.text_end is not None and not request.draw_codes:
        state.end = torch.where(token == request.text_end, column + 1, state.end)
    return token
