"""Fewer codebooks than a model has: what is scored, drawn and heard are the first ones, as if there were no others."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from codeclm.inference import SamplingConfig
from codeclm.inference.config import EvaluateConfig
from codeclm.inference.engine import generate
from codeclm.inference.evaluate.score import evaluate, score_store
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.grid import Request
from codeclm.model import SpeechLM
from codeclm.model.delay_pattern import ABSENT
from codeclm.train.config import OptimizerConfig
from codeclm.train.loop import train
from codeclm.train.new_model import new_model

from .options import OPTIONS, depth, example
from .training import SHORT, SIZE, SOURCE, draw

CASES: dict[str, dict[str, Any]] = {
    **{name: OPTIONS[name] for name in ("default", "first", "sets", "delay", "parallel", "flatten", "text", "zeros")},
    "groups": dict(delays=(0, 0, 0, 0), depth=depth(group_size=2)),
    "late": dict(delays=(0, 2, 1)),
    "gaps": dict(gaps="bos", delays=(0, 1, 1)),
}
TWO = SamplingConfig(temperature=1.2, top_k=0, num_codebooks=2)


def without_others(codes: torch.Tensor, num_codebooks: int = 2) -> torch.Tensor:
    return torch.cat([codes[:, :num_codebooks], torch.full_like(codes[:, num_codebooks:], ABSENT)], dim=1)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_probabilities_of_all_that_the_first_codebooks_may_hold_sum_to_one(make_model, name):
    model: SpeechLM = make_model(codebook_size=3, end="never", **{k: v for k, v in CASES[name].items() if k != "end"})
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)  # 2 codebooks, 2 frames
    codes = torch.cat([every, torch.full((len(every), model.num_codebooks - 2, 2), ABSENT)], dim=1)
    nll = model(codes).nll.sum(dim=(1, 2))
    torch.testing.assert_close((-nll).exp().sum(), nll.new_ones(()), rtol=0, atol=1e-12)
    assert nll.std() > 0.1


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_what_is_drawn_costs_what_scoring_says_and_the_others_are_absent(make_model, name, fused):
    model: SpeechLM = make_model(**CASES[name])
    prompt = example(model, batch=1, num_frames=4)["codes"][0]
    for request in (Request(6, prompt), Request(5)):
        *_, state = generate(model, request, [1, 2], TWO, fused=fused)
        assert (state.codes[:, :2] != ABSENT).all() and (state.codes[:, 2:] == ABSENT).all()
        assert (state.nll[:, 2:] == 0).all()
        torch.testing.assert_close(state.nll, model(state.codes).nll, rtol=0, atol=1e-9)
    assert torch.equal(generated(model, prompt).codes, generated(model, prompt, fused=False).codes)


def generated(model: SpeechLM, prompt: torch.Tensor, fused: bool = True) -> Any:
    *_, state = generate(model, Request(6, prompt), [1, 2], TWO, fused=fused)
    return state


@torch.no_grad()
def test_the_other_codebooks_of_a_prompt_are_not_heard(make_model):
    model: SpeechLM = make_model()
    prompt = example(model, batch=1)["codes"][0]
    other = torch.cat([prompt[:2], (prompt[2:] + 1) % model.codebook_size])
    one, two = generated(model, prompt), generated(model, other)
    assert torch.equal(one.codes, two.codes) and torch.equal(one.nll, two.nll)


@torch.no_grad()
def test_rows_of_a_model_that_ends_with_zeros_end_where_the_first_codebooks_are_zero(make_model):
    model: SpeechLM = make_model(end="zeros", codebook_size=3)
    sampling = replace(TWO, stop_at_end=True, num_codebooks=1)
    *_, state = generate(model, Request(30), range(8), sampling)
    for row, end in enumerate(state.end.tolist()):
        zeros = (state.codes[row, 0] == 0).nonzero().flatten().tolist()
        assert end == (zeros[0] if zeros else 30)
    assert (state.end < 30).any()


def test_numbers_of_codebooks_that_do_not_fit_are_refused(make_model):
    model: SpeechLM = make_model()
    for sampling, message in (
        (replace(TWO, num_codebooks=4), "num_codebooks is 4; this model has 3"),
        ([TWO, replace(TWO, num_codebooks=1)], "num_codebooks must be the same in all rows"),
    ):
        with pytest.raises(ValueError, match=message):
            next(generate(model, Request(2), [0, 1], sampling))
    for config in (SamplingConfig, EvaluateConfig):
        with pytest.raises(ValueError, match="num_codebooks is -1"):
            config(num_codebooks=-1)


# --- sound ---


def test_audio_is_the_codecs_from_the_first_codebooks_also_streamed(make_model, make_codec):
    codec = make_codec()
    lm = SpeechGenerator(make_model(codec=codec), codec, "tiny")
    prompt = (0.1 * np.random.default_rng(0).standard_normal(3000).astype(np.float32), codec.sample_rate)
    made = lm.generate(prompt, 0.3, sampling=TWO)
    assert made.codes.shape[0] == made.nll.shape[0] == 2
    decoded = codec.decode(torch.from_numpy(made.codes)[None])[0, 0].numpy()
    np.testing.assert_array_equal(np.concatenate([made.prompt_audio, made.audio]), decoded)
    streamed = np.concatenate(list(lm.stream(prompt, 0.3, sampling=TWO)))
    np.testing.assert_allclose(streamed, made.audio, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="num_codebooks is 9; this model takes 1 to 3"):
        lm.generate(prompt, 0.3, sampling=replace(TWO, num_codebooks=9))


def test_regenerated_codes_of_the_first_codebooks_only(make_model, make_codec):
    codec = make_codec()
    lm = SpeechGenerator(make_model(codec=codec), codec, "tiny")
    audio = (0.1 * np.random.default_rng(0).standard_normal(3000).astype(np.float32), codec.sample_rate)
    made = lm.regenerate(audio, keep=1, sampling=TWO)
    assert made.codes.shape[0] == 2 and np.array_equal(made.codes[0], lm.encode(audio)[0].numpy())
    with pytest.raises(ValueError, match="2 codebooks are to be kept; it must be 1 to 1"):
        lm.regenerate(audio, keep=2, sampling=TWO)


# --- speech ---


@torch.no_grad()
def test_a_store_is_scored_as_if_its_codec_had_the_first_codebooks_only(make_model, make_codec, make_store, tmp_path):
    codec, rng = make_codec(), np.random.default_rng(0)
    codes = [rng.integers(0, 8, (length, 3)) for length in (5, 30, 12)]
    store, model = make_store(tmp_path / "store", codes, codec), make_model(codec=codec, context_frames=16)
    scores = score_store(model, store, EvaluateConfig(num_codebooks=2), progress=False)
    short = without_others(torch.from_numpy(codes[0].T)[None])
    np.testing.assert_allclose(scores.nll[0], model(short).nll[0, :2].sum(dim=1), rtol=1e-9)
    assert scores.nll.shape == (3, 2) and not np.allclose(
        scores.nll, score_store(model, store, progress=False).nll[:, :2]
    )
    report = evaluate(model, store, "0" * 64, config=EvaluateConfig(num_codebooks=2), progress=False)
    assert report.num_codebooks == 2 and len(report.model.perplexity) == len(report.bigram.perplexity) == 2
    assert report.raw_bits_per_second == pytest.approx(2 * 3 * codec.frame_rate)
    assert "codebooks: 2" in str(report)
    with pytest.raises(ValueError, match="num_codebooks is 4; this model has 3"):
        score_store(model, store, EvaluateConfig(num_codebooks=4), progress=False)


@pytest.mark.slow
def test_codebook_dropout_teaches_a_model_to_do_without_the_others(make_store, codec, tmp_path):
    """The bits of codebook 0 alone, with and without: codebook 1 of the source says where codebook 0 was."""
    store = make_store(tmp_path / "store", draw(SOURCE, [32] * 60, 1), codec)
    fresh = make_store(tmp_path / "fresh", draw(SOURCE, [32] * 60, 2), codec)
    bits = {}
    for share in (0.0, 0.5):
        batch = replace(SHORT.batch, codebook_dropout=share, frames_per_batch=512)
        config = replace(
            SHORT, steps=120, evaluate_every=120, save_every=120, depth_fraction=1.0, batch=batch,
            optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=10),
        )  # fmt: skip
        model = new_model(store, config)
        train(model, codec, store, tmp_path / f"run-{share}", config)
        for number in (1, 2):
            scores = score_store(model, fresh, EvaluateConfig(num_codebooks=number), progress=False)
            bits[share, number] = scores.nll.sum() / scores.num_frames.sum() / np.log(2)
    assert bits[0.5, 1] < bits[0.0, 1] - 0.05
    assert bits[0.5, 1] < 1.4 < np.log2(SIZE)  # the entropy of a move is 1.09
    assert bits[0.5, 2] < 1.1 * bits[0.0, 2]
