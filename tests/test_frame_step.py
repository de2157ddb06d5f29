"""inference/frame_step.py: the fused step draws what the readable walk draws, for every model it knows."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from codeclm.data.align import told_ahead
from codeclm.inference import SamplingConfig
from codeclm.inference.engine import generate
from codeclm.inference.frame_step import FrameStep, is_supported
from codeclm.inference.fused_weights import fused_weights
from codeclm.inference.grid import Request
from codeclm.model import SpeechLM
from codeclm.model.shapes import TextConfig
from codeclm.model.text_tokens import PAD

from .options import OPTIONS, WORDS, backbone, depth

CASES: dict[str, dict[str, Any]] = OPTIONS | {
    "windows": dict(context_frames=6),
    "late": dict(delays=(0, 2, 1), context_frames=8),
    "biases": dict(backbone=backbone(qkv_bias=True, head_dim=6, final_norm=False)),
    "text given, late": dict(text=TextConfig(WORDS, predicted=False), delays=(0, 1, 2)),
    "groups": dict(delays=(0, 0, 1, 1, 2), depth=depth(group_size=2)),
    "groups, one not whole": dict(delays=(0,) * 6, depth=depth(group_size=2, first_codebook="depth"), gaps="bos"),
    "groups after a prefix": dict(delays=(0,) * 5, depth=depth(group_size=3, conditioning="prefix", embeddings="wide")),
    "no rope": dict(backbone=backbone(rope=False)),
    "sliding text": dict(text=TextConfig(WORDS), backbone=backbone(sliding_window=5), context_frames=8),
    "told ahead": dict(text=TextConfig(WORDS, layout="timed", lookahead=3), backbone=backbone(sliding_window=5)),
    "told ahead, windows": dict(text=TextConfig(WORDS, layout="timed", lookahead=3), context_frames=8),
}

SAMPLING = SamplingConfig(temperature=(1.1, 0.9), top_k=5)


def last(model: SpeechLM, request: Request, fused: bool, sampling: SamplingConfig = SAMPLING, seeds=(3, 4, 5)):
    *_, state = generate(model, request, list(seeds), sampling, fused=fused)
    assert isinstance(state.walk, FrameStep) == (fused and is_supported(model))
    return state


def requests(model: SpeechLM) -> dict[str, Request]:
    """Something to go on from, in every way that the model takes."""
    draw = torch.Generator().manual_seed(2)
    codes = torch.randint(0, model.codebook_size, (model.num_codebooks, 4), generator=draw)
    found = {"prompt": Request(9, codes), "few codes": Request(5, codes, num_codes=model.codebook_size - 1)}
    if model.config.bos:
        found["from nothing"] = Request(7)
    if model.text_size:
        text = torch.randint(0, model.text_size, (4,), generator=draw)
        new = torch.randint(0, model.text_size, (6,), generator=draw)
        found["with text"] = Request(6, codes, text, new_text=new)
        found["text before a silent prompt"] = Request(6, torch.full_like(codes, -1), text)
        voice, after = codes.clone(), text.clone()
        voice[:, 2:] = after[:2] = -1
        found["text after a voice"] = Request(6, voice, after, num_voice=2)
        if model.predicts_text:
            found["own text"] = Request(6, codes, text, draw_text=True)
        if ahead := model.config.text.lookahead:
            before, beside = told_ahead([5, 5, 7, 6], ahead)
            nothing, text = torch.full((model.num_codebooks, len(before)), -1), torch.tensor(before)
            found["a text that is said"] = Request(
                20, nothing, text, draw_text=True, paced=tuple(beside), longest_pause=3
            )
            in_time = torch.tensor([token for own in beside for token in (PAD, own)])
            found["a text that is said in time"] = Request(len(in_time), nothing, text, new_text=in_time)
    return found


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_step_draws_what_the_walk_draws(make_model, name):
    model: SpeechLM = make_model(**CASES[name])
    known = 0
    for request in requests(model).values():
        for sampling in (SAMPLING, SamplingConfig(stop_at_end=True, temperature=1.5, top_k=0, min_p=0.05, top_p=0.9)):
            fused, walked = (last(model, request, fused, sampling) for fused in (True, False))
            known += isinstance(fused.walk, FrameStep)
            assert_same(fused, walked)
    assert known == (2 * len(requests(model)) if is_supported(model) else 0)


OF_EACH_KIND = ["default", "delay", "first", "text", "text flat", "zeros", "never", "windows", "late", "sliding text"]
EACH_ITS_OWN = [
    SamplingConfig(temperature=0.0),
    SamplingConfig(temperature=(1.5, 0.8), top_k=(0, 3), stop_at_end=True),
    SamplingConfig(temperature=1.0, top_k=4, top_p=0.8, min_p=0.01),
]
REPEATS = SamplingConfig(temperature=0.1, top_k=1, repetition_share=0.2, repetition_frames=4)


@pytest.mark.parametrize(
    "name", ["default", "delay", "first", "text", "text flat", "zeros", "never", "windows", "late"]
)
@torch.no_grad()
def test_the_step_draws_what_the_walk_draws_with_every_setting_and_a_row_what_it_draws_alone(make_model, name):
    model: SpeechLM = make_model(**CASES[name])
    for what, request in requests(model).items():
        draw = torch.Generator().manual_seed(5)
        kept = torch.randint(-1, model.codebook_size, (model.num_codebooks, request.num_frames), generator=draw)
        guided = [replace(SAMPLING, guidance=weight) for weight in (1.0, 2.5, 0.0)]
        settings = [EACH_ITS_OWN, REPEATS, *([guided] if "text" in what else [])]
        for given, sampling in [(replace(request, new_codes=kept), EACH_ITS_OWN), *((request, s) for s in settings)]:
            states = []
            for fused in (True, False):
                *_, state = generate(model, given, [3, 4, 5], sampling, fused=fused)
                states.append(state)
            assert_same(*states)
            for row in range(3):
                own = sampling if isinstance(sampling, SamplingConfig) else sampling[row]
                *_, alone = generate(model, given, [3 + row], own)
                stop = alone.frame
                assert torch.equal(alone.codes[0, :, :stop], states[0].codes[row, :, :stop]), (what, row)


def assert_same(fused, walked) -> None:
    for field in ("codes", "text", "end"):
        ours, theirs = getattr(fused, field), getattr(walked, field)
        assert ours is theirs is None or torch.equal(ours, theirs), field
    torch.testing.assert_close(fused.nll, walked.nll, rtol=0, atol=1e-9)
    if walked.text_nll is not None:
        torch.testing.assert_close(fused.text_nll, walked.text_nll, rtol=0, atol=1e-9)


@torch.no_grad()
def test_fused_weights_are_kept_until_a_weight_changes(make_model):
    model: SpeechLM = make_model()
    first = fused_weights(model)
    assert fused_weights(model) is first
    before = last(model, Request(9), fused=True).codes
    model.backbone.blocks[0].down.weight.add_(0.5)  # as an optimizer does
    assert fused_weights(model) is not first
    fused, walked = (last(model, Request(9), fused) for fused in (True, False))
    assert torch.equal(fused.codes, walked.codes) and not torch.equal(fused.codes, before)
    model.load_state_dict({name: 0.5 * tensor for name, tensor in model.state_dict().items()})
    fused, walked = (last(model, Request(9), fused) for fused in (True, False))
    torch.testing.assert_close(fused.nll, walked.nll, rtol=0, atol=1e-9)
