"""The ring cache of inference/frame_step.py: positions without end, and rows that begin and end on their own."""

import pytest
import torch
from torch import Tensor

from codeclm.inference.frame_step import FrameStep, is_supported
from codeclm.inference.grid import Request
from codeclm.model import SpeechLM
from codeclm.model.delay_pattern import ABSENT
from codeclm.model.flatten import TEXT
from codeclm.model.shapes import TextConfig
from codeclm.model.walk import Walk

from .options import WORDS, backbone, depth
from .test_frame_step import last

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


def draw(model: SpeechLM, num_frames: int, seed: int = 0) -> Tensor:
    return torch.randint(
        model.codebook_size, (model.num_codebooks, num_frames), generator=torch.Generator().manual_seed(seed)
    )


def take(walk: FrameStep | Walk, codes: Tensor) -> list[Tensor]:
    """A step that holds codes [B, K] -> the logits of each codebook [B, C]."""
    found: list[Tensor] = []

    def choose(slot: int, logits: Tensor) -> Tensor:
        found.append(logits.clone())
        return codes[:, slot]

    walk.step(choose, {TEXT: torch.full((len(codes),), ABSENT)} if walk.model.text_size else None)
    return found


def alone(model: SpeechLM, prompt: Tensor, codes: Tensor, text: Tensor | None = None) -> list[list[Tensor]]:
    """What the walk says of each frame of codes [K, T] after a prompt [K, S]."""
    walk = Walk(model, 1, prompt.shape[1] + codes.shape[1])
    walk.prefill(prompt[None], None if text is None else text[None])
    return [take(walk, codes[None, :, t]) for t in range(codes.shape[1])]


def check(found: list[Tensor], row: int, expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours[row], theirs[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("given", [0, 4, 9])
@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.parametrize("options", [dict(), dict(pattern="parallel"), dict(text=TextConfig(WORDS))], ids=str)
def test_a_ring_sees_what_the_window_shows_past_ten_times_its_size(make_model, options, window, given):
    model = make_model(backbone=backbone(sliding_window=window), **options)
    request = Request(10 * window + 7, draw(model, given) if given else None)
    fused, walked = (last(model, request, fused) for fused in (True, False))
    assert isinstance(fused.walk, FrameStep) and fused.walk.backbone.capacity == window
    assert torch.equal(fused.codes, walked.codes)
    torch.testing.assert_close(fused.nll, walked.nll, rtol=0, atol=1e-9)


def test_a_ring_of_several_buckets_sees_what_its_window_shows(make_model):
    model = make_model(backbone=backbone(sliding_window=150))
    codes = draw(model, 400)[None]
    expected = model(codes, return_logits=True).logits
    ring = FrameStep(model, 1, 400)
    for t in range(400):
        for k, logits in enumerate(take(ring, codes[:, :, t])):
            found = expected[:, k, t, : logits.shape[1]]
            torch.testing.assert_close(logits.log_softmax(-1), found.log_softmax(-1), rtol=0, atol=1e-9)


OPTIONS = {
    "full": {},
    "window": dict(backbone=backbone(sliding_window=5)),
    "no bos": dict(bos=False),
    "no rope": dict(backbone=backbone(rope=False)),
    "text": dict(text=TextConfig(WORDS)),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_row_that_joins_a_running_batch_is_as_it_is_alone(make_model, name):
    """Each row has at most 10 positions, as many as the cache holds; together they go round it several times."""
    model: SpeechLM = make_model(**OPTIONS[name])
    step = FrameStep(model, 3, 10)
    least = 0 if model.config.bos else 1
    lengths = [4, least, 7, 2, max(least, 1), 3]
    given, expected = [[]] * 3, [[]] * 3
    checked = 0
    for t in range(40):
        for row in range(3):
            if t in (0, 11) or (row != 1 and t % 6 == row):
                seed = 3 * t + row
                prompt = draw(model, lengths[seed % 6], seed)
                codes = draw(model, 10 - prompt.shape[1], seed + 1000)
                text = torch.arange(prompt.shape[1]) if model.text_size else None
                step.join(row, prompt, text)
                assert step.starts[row] == step.position - prompt.shape[1]
                given[row], expected[row] = list(codes.T), alone(model, prompt, codes, text)
        filler = torch.zeros(model.num_codebooks, dtype=torch.long)
        found = take(step, torch.stack([codes.pop(0) if codes else filler for codes in given]))
        for row in range(3):
            if expected[row]:
                check(found, row, expected[row].pop(0))
                checked += 1
    assert checked > 60 and step.position > 40


def test_a_prompt_longer_than_the_ring_and_than_the_time_so_far_joins(make_model):
    model = make_model(backbone=backbone(sliding_window=4))
    step = FrameStep(model, 2, 100)
    first, second, codes = draw(model, 2, 1), draw(model, 23, 2), draw(model, 30, 3)
    step.join(0, first)
    step.join(1, second)
    expected = [alone(model, prompt, codes) for prompt in (first, second)]
    for t in range(30):
        found = take(step, codes.T[t].expand(2, -1))
        for row in range(2):
            check(found, row, expected[row][t])


def test_a_model_whose_depth_decoder_has_a_window_is_walked(make_model):
    model = make_model(depth=depth(sliding_window=1))
    assert not is_supported(model)
    state = last(model, Request(6), fused=True)
    torch.testing.assert_close(state.nll, model(state.codes).nll, rtol=0, atol=1e-9)
