"""inference/cuda_frame.py: the kernels draw what the frame step draws. Here Triton's interpreter runs them."""

from collections import Counter
from typing import Any

import pytest
import torch

from codeclm.inference import SamplingConfig, cuda_frame, fused_weights
from codeclm.inference.cuda_frame import GraphedFrame
from codeclm.inference.cuda_stack import Launcher
from codeclm.inference.engine import generate
from codeclm.inference.frame_step import is_supported
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.grid import Request
from codeclm.inference.products import Product
from codeclm.inference.scheduler import Scheduler
from codeclm.model import SpeechLM, SpeechLMConfig
from codeclm.model.presets import SHAPE_S
from codeclm.model.shapes import TextConfig

from .options import OPTIONS, WORDS, backbone

pytest.importorskip("triton")

CASES: dict[str, dict[str, Any]] = {
    **{name: OPTIONS[name] for name in ("default", "prefix", "csm", "first", "delay", "parallel", "zeros")},
    "windows": dict(context_frames=6),
    "late": dict(delays=(0, 2, 1), context_frames=8),
    "gaps": OPTIONS["never"],
    "biases": dict(backbone=backbone(qkv_bias=True, head_dim=6, final_norm=False)),
    "no rope": dict(backbone=backbone(rope=False)),
    "sliding window": dict(backbone=backbone(sliding_window=3)),
    "text given": dict(text=TextConfig(WORDS, predicted=False)),
    "text": dict(text=TextConfig(WORDS)),
}
SAMPLINGS = (
    SamplingConfig(temperature=(1.1, 0.9), top_k=3),
    SamplingConfig(stop_at_end=True, temperature=1.5, top_k=0, min_p=0.05, top_p=0.9),
    SamplingConfig(temperature=0, top_k=0),
)


@pytest.fixture(scope="module", autouse=True)
def parsed(make_model) -> None:
    """Every kernel runs once, so that the interpreter has parsed it: deep in a generator Python 3.11.7 fails to."""
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(fused_weights, "plain_product", lambda *_: Product)
        GraphedFrame(make_model().float(), 1, 7, False).frame()


def last(model: SpeechLM, request: Request, sampling: Any, batch: int) -> Any:
    *_, state = generate(model, request, list(range(3, 3 + batch)), sampling)
    return state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch", "sampling"),
    [(name, 3, SAMPLINGS[i % 2]) for i, name in enumerate(CASES)]
    + [("default", 1, SAMPLINGS[2]), ("default", 9, SAMPLINGS[1]), ("default", 2, list(SAMPLINGS[:1] + SAMPLINGS[2:]))],
)
@torch.no_grad()
def test_the_kernels_draw_what_the_frame_step_draws(make_model, monkeypatch, name, batch, sampling):
    model: SpeechLM = make_model(**CASES[name]).float()
    prompt = torch.randint(0, model.codebook_size, (model.num_codebooks, 4), generator=torch.Generator().manual_seed(2))
    text = torch.randint(0, WORDS, (8,)) if model.text_size and not model.predicts_text else None
    num_frames = 5 if text is None else 4
    request = Request(
        num_frames, prompt, None if text is None else text[:4], new_text=None if text is None else text[4:], num_codes=6
    )
    expected = last(model, request, sampling, batch)
    taken: list[int] = []
    monkeypatch.setattr(fused_weights, "plain_product", lambda *_: Product)  # as on a GPU
    monkeypatch.setattr(cuda_frame, "is_possible", lambda model, batch: is_supported(model))
    monkeypatch.setattr(cuda_frame.GraphedFrame, "record", counted(cuda_frame.GraphedFrame.record, taken))
    got = last(model, request, sampling, batch)
    assert len(taken) >= 2
    assert torch.equal(got.codes, expected.codes) and torch.equal(got.end, expected.end)
    torch.testing.assert_close(got.nll, expected.nll, rtol=0, atol=1e-4)


def counted(record: Any, taken: list[int]) -> Any:
    def counting(self: Any, state: Any, column: int) -> None:
        taken.append(column)
        record(self, state, column)

    return counting


@torch.no_grad()
def test_a_frame_of_shape_s_is_at_most_205_kernels(monkeypatch):
    launched: list[str] = []
    monkeypatch.setattr(fused_weights, "plain_product", lambda *_: Product)
    monkeypatch.setattr(Launcher, "launch", lambda self, name, *_, **__: launched.append(name))
    GraphedFrame(SpeechLM(SpeechLMConfig(8, 1024, *SHAPE_S)), 1, 1024, False).frame()
    assert 190 < len(launched) <= 205, Counter(launched)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, dict(delays=(0, 2, 1)), dict(context_frames=8), CASES["sliding window"]], ids=str
)
@torch.no_grad()
def test_the_kernels_draw_rows_that_come_and_go_as_each_is_drawn_alone(make_model, make_codec, monkeypatch, options):
    codec = make_codec(codebook_size=7)
    lm = SpeechGenerator(make_model(codec=codec, **options).float(), codec, "tiny")
    draw = torch.Generator().manual_seed(2)
    prompts = [torch.randint(0, 7, (3, given), generator=draw) for given in (4, 1, 7, 3, 5)]
    ends, free = SAMPLINGS[1], SAMPLINGS[0]
    settings = [free, free, SAMPLINGS[2], ends, free]  # some rows that end, and some that may not, take other steps
    work = [(Request(4 + i, prompt, num_codes=7), i, settings[i]) for i, prompt in enumerate(prompts)]
    expected = []
    for request, seed, sampling in work:
        *_, state = generate(lm.model, request, [seed], sampling)
        given = request.codes.shape[1]
        expected.append(state.codes[0, :, given : int(state.end[0])])
    taken: list[int] = []
    monkeypatch.setattr(fused_weights, "plain_product", lambda *_: Product)  # as on a GPU
    monkeypatch.setattr(cuda_frame, "is_possible", lambda model, batch: is_supported(model))
    monkeypatch.setattr(cuda_frame.GraphedFrame, "record", counted(cuda_frame.GraphedFrame.record, taken))
    scheduler = Scheduler(lm, max_rows=3)
    tickets = [scheduler.submit_request(*job) for job in work]
    steps = 0
    while scheduler.step():
        steps += 1
    assert not [ticket.error for ticket in tickets if ticket.error]
    assert 2 <= len(taken) <= steps
    for ticket, codes in zip(tickets, expected, strict=True):
        found = [frame.codes for frame in ticket.take()]
        assert len(found) == codes.shape[1] and torch.equal(torch.stack(found, dim=1), codes)


@torch.no_grad()
def test_where_kernels_cannot_be_launched_the_frame_step_goes_on(make_model, monkeypatch, caplog):
    model: SpeechLM = make_model().float()
    expected = last(model, Request(4), SAMPLINGS[0], 2)
    monkeypatch.setattr(
        cuda_frame, "is_possible", lambda model, batch: is_supported(model) and model not in cuda_frame.hopeless
    )
    monkeypatch.setattr(cuda_frame, "GraphedFrame", no_compiler)
    for _ in range(2):
        assert torch.equal(last(model, Request(4), SAMPLINGS[0], 2).codes, expected.codes)
    (line,) = [record.message for record in caplog.records]
    assert "no graph of a frame (Failed to find C compiler)" in line


def no_compiler(*_: Any) -> None:
    raise RuntimeError("Failed to find C compiler\nPlease specify via CC environment variable")
