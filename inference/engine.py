"""Generation: a grid of frames in, the same grid with what was missing drawn. State is an object, never a mode.

A grid (grid.py) has a column for each frame: given columns first, then those in which codes, text or both are drawn.
So a continuation, speech from text, text from speech and speech with its own text are one loop; step.py is its body.
B batch, K codebooks, T columns (frames).
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.delay_pattern import ABSENT, delay
from ..model.lm import SpeechLM
from ..model.walk import Walk
from .config import SamplingConfig
from .cuda_frame import GraphedFrame, graphed
from .frame_step import FrameStep, is_supported
from .grid import Request, State, given_rows, start
from .guidance import GuidedStep, GuidedWalk, check_guided
from .labelled import as_labelled
from .resources import release_memory
from .sampling import BatchSampling, batch_sampling, leading_codebooks
from .step import Step, can_end
from .windows import Window, each_window, window_frames

SCORED_STEPS = 32  # that the depth decoder scores at once on a CPU: more would be no faster, and take memory
POLL = 8  # frames between two looks at whether all rows have ended: the host waits for the device each time


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
    walk, which draws the same codes. keep: hold every column until the end, and add the nats of the prompt from the
    second time on; else columns are dropped when they were yielded and nothing to come depends on them, and a prompt is
    not scored: any number of frames, NO_END included, takes the memory of few.
    graphs: on a GPU, make a frame one CUDA graph (cuda_frame.py) where that is possible.
    Raises FloatingPointError if the model gives NaN.
    """
    if not fused or not is_supported(model):
        request = replace(request, prefix=None)
    state = start(model, request, seeds, leading_codebooks(sampling), keep)
    settings = batch_sampling(sampling, len(seeds), model.num_codebooks, state.nll)
    check_guided(request, settings)
    longest, given = max(model.config.delays), state.num_prompt_frames
    total, context = given + request.num_frames, window_frames(model.config)
    capacity = min(total, context) + longest + 1
    draws_all = state.num_codebooks == model.num_codebooks
    can_be_graphed = graphs and fused and draws_all
    with graphed(model, request, settings, len(seeds)) if can_be_graphed else nullcontext() as frames:
        for window in each_window(total, context):
            if window.stop <= given:
                if keep and request.prefix is None:
                    with as_labelled(model):
                        score_window(model, state, window)
            else:
                if not fused or not is_supported(model):
                    walk = partial(Walk, model, len(seeds), capacity)
                    state.walk = GuidedWalk(walk(), walk(), settings.guidance) if settings.is_guided else walk()
                elif isinstance(state.walk, FrameStep):
                    state.walk.restart()
                elif frames is not None:
                    state.walk = frames.walk
                else:
                    # given codes are asked for only where some lag
                    absent = can_end(model, settings) or request.text_end is not None or longest > 0
                    if settings.is_guided:
                        step = FrameStep(model, 2 * len(seeds), capacity)
                        state.walk = GuidedStep(step, settings.guidance)
                    else:
                        state.walk = FrameStep(model, len(seeds), capacity, absent)
                yield from walk_window(model, state, window.moved(-state.num_dropped), settings, frames, keep)
                check_numbers(state)
                if has_ended(state, settings):
                    return


def walk_window(
    model: SpeechLM, state: State, window: Window, sampling: BatchSampling, frames: GraphedFrame | None, scores: bool
) -> Iterator[State]:
    """Draw the frames of one window that are not given. frames: for the steps that it takes, on a GPU.

    scores: whether the given ones are to have nats.
    """
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
    is_scored = window.first == begin or state.request.prefix is not None or not scores
    contexts = None if is_scored else contexts
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
                is_scored, contexts = True, None
                release_memory()  # the whole prompt took more than a frame will
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
    user = None if heard is None else heard[rows, :, steps]
    if not isinstance(walk, GuidedWalk | GuidedStep):
        return walk.prefill(codes, text, user)
    return walk.prefill(codes, text, user, max(state.request.num_voice - state.num_dropped - window.start, 0))


def score_window(model: SpeechLM, state: State, window: Window, contexts: Tensor | None = None) -> None:
    """Add the nats of given frames first..stop of a window to the state.

    contexts: of its steps, if they were taken; codes that lag beyond these are for later steps to score.
    """
    rows, seen = given_rows(state.request), slice(window.start, window.stop)
    text = None if state.text is None else state.text[rows, seen]
    user = None if state.user is None else state.user[rows, :, seen]
    output = model(
        state.codes[rows, :, seen],
        text=text,
        user=user,
        contexts=None if contexts is None else contexts[rows],
        depth_chunk=SCORED_STEPS if model.device.type == "cpu" else 0,
    )
    kept = slice(window.first, window.stop)
    state.nll[:, :, kept] += output.nll[:, :, window.first - window.start :]
    if output.text_nll is not None and state.text_nll is not None:
        state.text_nll[:, kept] += output.text_nll[:, window.first - window.start :]


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


def has_ended(state: State, sampling: BatchSampling) -> bool:
    """Whether every row has. Where none can, the device is not asked: that would make the host wait."""
    asked = sampling.stop_at_end or state.request.text_end is not None
    return asked and state.frame >= int(state.end.max())
