"""Checks of models in use: what generation records, how long sequences are windowed, whether real speech fits.

B rows, K codebooks, T columns (frames).
"""

import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...data.store_writer import Utterance, commit_store, write_shard
from ...data.token_store import TokenStore
from ...model.delay_pattern import ABSENT
from ...model.lm import SpeechLM
from ...model.shapes import TAGGED
from ...model.text_tokens import PAD
from ..config import EvaluateConfig, SamplingConfig
from ..engine import generate
from ..evaluate.score import Scores, score_store
from ..grid import Request, State
from ..windows import window_frames, windows
from .agreement import CODE_AXES, TEXT_AXES
from .findings import Finding, NotApplicable, compare, worst
from .sequences import LAYOUTS, Rows, walked_end

ANY_VALUE = SamplingConfig(temperature=1.0, text_temperature=1.0, top_k=0)
SEEDS = (0, 1)
SHIFTS = (-2, -1, 1, 2)  # frames


# --- generation and scoring ---


def check_windows(model: SpeechLM) -> Finding:
    """What generation records of codes == what scoring gives them, also where the context is full."""
    before, context = model.config.context_frames, 6 + max(model.config.delays)
    model.config.context_frames = context
    try:
        return worst(generated_and_scored(model, context))
    finally:
        model.config.context_frames = before


def generated_and_scored(model: SpeechLM, context: int) -> Iterator[Finding]:
    """What is given is shorter than the context in one case and longer in another."""
    for layout in LAYOUTS if model.text_size else LAYOUTS[:1]:
        if layout == "last" and not model.predicts_text:
            continue  # nothing would be drawn
        for given, new in ((context - 2, context + 3), (context + 2, 4)):
            request = make_request(model, layout, given, new)
            state = list(generate(model, request, SEEDS, ANY_VALUE))[-1]
            yield worst(recorded_and_scored(model, state), f"layout '{layout}', {given} + {new} frames: ")
            if layout == "audio" and request.user is None:
                yield stored_and_scored(model, state)
    if model.config.end == "eos" and not model.config.user_codebooks:
        yield from ends_and_scored(model, context)


def make_request(model: SpeechLM, layout: str, given: int, new: int) -> Request:
    """Random columns to start from, and what is to be drawn in each layout."""
    generator = torch.Generator().manual_seed(given)
    codes = torch.randint(model.codebook_size, (model.num_codebooks, given), generator=generator)
    user = text = new_text = None
    if model.config.user_codebooks:
        user = torch.randint(model.codebook_size, (model.config.user_codebooks, given + new), generator=generator)
    if model.text_size:
        text, new_text = torch.randint(model.text_size, (given + new,), generator=generator).split([given, new])
    if layout in ("audio", "last"):
        text = new_text = None
    elif layout == "first":
        codes, new_text = torch.full_like(codes, ABSENT), None
    elif layout in TAGGED and text is not None:
        codes[:, given // 2 :], text[: given // 2], new_text = ABSENT, ABSENT, None
    elif model.predicts_text:
        new_text = None
    draws_text = layout == "last" or (layout in ("aligned", "timed") and model.predicts_text)
    paced = tuple(range(min(PAD, model.text_size))) if layout == "timed" and draws_text else ()
    return Request(
        new, codes, text, new_text, user, draw_codes=layout != "last", draw_text=draws_text, paced=paced,
        longest_pause=2,
    )  # fmt: skip


def recorded_and_scored(model: SpeechLM, state: State) -> Iterator[Finding]:
    """Window by window, as windows.py has it."""
    dtype = model.dtype
    for window in windows(state.num_frames, window_frames(model.config)):
        seen, kept = slice(window.start, window.stop), slice(window.first - window.start, None)
        text, user = (None if x is None else x[..., seen] for x in (state.text, state.user))
        output = model(state.codes[:, :, seen], text=text, user=user)
        assert output.nll is not None
        recorded = state.nll[:, :, window.first : window.stop].to(dtype)
        yield compare(recorded, output.nll[:, :, kept], CODE_AXES, f"from {window.first} on, ")
        if output.text_nll is not None and state.text_nll is not None:
            recorded = state.text_nll[:, window.first : window.stop].to(dtype)
            yield compare(recorded, output.text_nll[:, kept], TEXT_AXES, f"from {window.first} on, text of ")


def stored_and_scored(model: SpeechLM, state: State) -> Finding:
    """The same codes from a token store, as `codeclm evaluate` scores them."""
    scores = score_from_store(model, list(state.codes))
    whole = torch.zeros(scores.nll.shape, dtype=torch.float64)
    for window in windows(state.num_frames, window_frames(model.config)):
        nll = model(state.codes[:, :, window.start : window.stop]).nll[:, :, window.first - window.start :]
        whole += nll.sum(dim=2).double().cpu()
    per_frame = np.asarray(scores.nll) / state.num_frames
    return compare(torch.from_numpy(per_frame), whole / state.num_frames, ("row", "codebook"), "nats/frame of ")


def ends_and_scored(model: SpeechLM, context: int) -> Iterator[Finding]:
    """EOS costs what it does where it is drawn, also after a frame that fills a window."""
    lengths = (context - 1, context, context + 1, 2 * context - context // 2)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(model.codebook_size, (model.num_codebooks, n), generator=generator) for n in lengths]
    scores = score_from_store(model, rows)
    for codes, length, scored in zip(rows, lengths, scores.eos_nll, strict=True):
        start = windows(length + 1, window_frames(model.config))[
            -1
        ].start  # of the window in which the frame after the last is drawn
        seen = codes[None, :, start:].to(model.device)
        row = Rows("audio", seen, torch.tensor([True], device=model.device), (seen.shape[2],))
        expected = walked_end(model, row)
        yield compare(expected.new_tensor([scored]), expected, ("row",), f"EOS after {length} frames of ")


def score_from_store(model: SpeechLM, rows: list[Tensor]) -> Scores:
    """Codes [K, T] of each row through a token store and `score_store`."""
    codec = replace(model.config.codec, codebook_size=model.codebook_size)  # any code that the model knows
    with tempfile.TemporaryDirectory() as folder:
        entries = [
            Utterance(f"{i}", codes.shape[1] * codec.hop_length, codes.T.cpu().numpy()) for i, codes in enumerate(rows)
        ]
        commit_store(Path(folder), codec, [write_shard(Path(folder), 0, entries, codec)])
        return score_store(model, TokenStore(folder), EvaluateConfig(), progress=False)


# --- real speech ---


def check_shifts(model: SpeechLM, codes: Tensor) -> Finding:
    """Codebooks 1.. of real speech [K, T], some frames early or late against codebook 0, cost more than in place."""
    if model.num_codebooks == 1:
        raise NotApplicable("the model has one codebook")
    codes = codes[:, : model.config.context_frames].to(model.device)
    margin, num_frames = max(SHIFTS), codes.shape[1]

    def bits(shift: int) -> float:
        """Per frame; the same frames of codebook 0 every time."""
        coarse = codes[:1, margin : num_frames - margin]
        fine = codes[1:, margin - shift : num_frames - margin - shift]
        nll = model(torch.cat([coarse, fine])[None]).nll
        return float(nll.sum()) / nll.shape[2] / math.log(2)

    own, raw = bits(0), model.num_codebooks * math.log2(model.codebook_size)
    shifted = {shift: bits(shift) for shift in SHIFTS}
    nearest = min(SHIFTS, key=lambda shift: shifted[shift])
    if not min(own, shifted[nearest]) < raw:
        raise NotApplicable(f"the model is not trained: speech costs {own:.1f} bits a frame, raw codes {raw:.1f}")
    costs = f"{shifted[nearest] / own - 1:+.1%} bits a frame when codebooks 1.. are {nearest:+d} frames off"
    if shifted[nearest] > own:
        return Finding(note=f"{own:.1f} bits a frame in place, at least {costs}")
    return Finding(problem=f"{costs}, against {own:.1f} in place")
