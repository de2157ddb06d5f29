"""backbone.sliding_window: scored, generated and compressed with exactly the same look back, at any length."""

import numpy as np
import pytest
import torch

from codeclm.inference.evaluate.score import score_store
from codeclm.inference.grid import Request
from codeclm.inference.windows import Window, describe, window_frames, windows
from codeclm.model import SpeechLM, transformer
from codeclm.model.shapes import TextConfig
from codeclm.model.transformer import KVCache

from .options import OPTIONS, WORDS, backbone, example
from .test_frame_step import last

WINDOW = 5
SLIDING = {
    name: options | dict(backbone=backbone(sliding_window=WINDOW))
    for name, options in OPTIONS.items()
    if name in ("default", "delay", "parallel", "flatten", "text", "text flat", "user", "no bos", "zeros", "never")
} | {"delay, text": dict(delays=(0, 1, 2), text=TextConfig(WORDS), backbone=backbone(sliding_window=WINDOW))}


@pytest.fixture(params=SLIDING)
def model(make_model, request) -> SpeechLM:
    return make_model(context_frames=8, **SLIDING[request.param])


@torch.no_grad()
def test_scores_in_pieces_are_those_of_one_pass(model, monkeypatch):
    inputs = example(model, num_frames=13 * WINDOW)
    ends = torch.tensor([True, False, True])
    whole = model(**inputs, ends=ends)  # more than a piece would have been taken apart
    monkeypatch.setattr(transformer, "PIECE", 1)
    pieces = model(**inputs, ends=ends)
    for name in ("loss", "nll", "eos_nll", "text_nll"):
        ours, theirs = getattr(pieces, name), getattr(whole, name)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("given", [1, 4 * WINDOW])
@torch.no_grad()
def test_generation_records_what_scoring_gives_past_ten_times_the_window(model, given, monkeypatch):
    monkeypatch.setattr(transformer, "PIECE", 1)
    inputs = example(model, batch=1, num_frames=12 * WINDOW)
    codes, text, user = (inputs[name][0] if name in inputs else None for name in ("codes", "text", "user"))
    prompt = codes[:, :given], None if text is None else text[:given]
    request = Request(12 * WINDOW - given, *prompt, user=user, draw_text=model.predicts_text)
    state = last(model, request, fused=False)
    scored = model(state.codes, text=state.text, user=state.user)
    torch.testing.assert_close(state.nll, scored.nll, rtol=0, atol=1e-9)
    fused = last(model, request, fused=True)
    assert torch.equal(fused.codes, state.codes)
    torch.testing.assert_close(fused.nll, state.nll, rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_store_is_scored_without_windows(model, make_store, tmp_path):
    if model.config.user_codebooks or model.text_size:
        pytest.skip("a store has neither")
    utterances = [np.random.default_rng(n).integers(0, 7, (n, 3)) for n in (3, 50, 20)]
    store = make_store(tmp_path / "store", utterances, model.config.codec)
    scores = score_store(model, store, progress=False)
    for codes, nats in zip(utterances, scores.nll, strict=True):
        expected = model(torch.from_numpy(codes.T)[None]).nll[0].sum(dim=-1)
        np.testing.assert_allclose(nats, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("pieces", [1, 4, 64])
@pytest.mark.parametrize("window", [1, 2, 9])
@torch.no_grad()
def test_a_cache_with_a_window_holds_few_positions_and_gives_what_one_pass_does(
    make_model, monkeypatch, window, pieces
):
    monkeypatch.setattr(transformer, "PIECE", pieces)
    stack = make_model(backbone=backbone(sliding_window=window)).backbone
    x = torch.randn(2, 300, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cache = KVCache(stack.config, 2, 1 << 40, x)
    found = torch.cat([stack(part, cache) for part in x.split([1, 70, 1, 1, 100, 2, 125], dim=1)], dim=1)
    torch.testing.assert_close(found, stack(x), rtol=0, atol=1e-9)
    assert cache.length == 300 and cache.capacity == window - 1 + max(window, pieces)


def test_full_attention_keeps_its_windows_and_a_sliding_window_needs_none(make_model):
    full, sliding = make_model(context_frames=8), make_model(context_frames=8, backbone=backbone(sliding_window=5))
    assert window_frames(full.config) == 8
    assert windows(10_000, window_frames(sliding.config), 9_999) == [Window(0, 0, 10_000, ends=True)]
    assert "sliding window" in describe(window_frames(sliding.config), 25.0)
