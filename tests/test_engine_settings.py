"""inference/engine.py: new columns whose codes are known, guidance by the text, repetition, and rows that differ."""

from dataclasses import replace

import pytest
import torch

from codeclm.inference import SamplingConfig
from codeclm.inference.bench.counts import count
from codeclm.inference.engine import generate
from codeclm.inference.grid import Request, State
from codeclm.inference.windows import windows
from codeclm.model.delay_pattern import ABSENT
from codeclm.model.shapes import TextConfig

FREE = SamplingConfig(temperature=1.0, top_k=0)
MODELS = {
    "depth": dict(),
    "late": dict(delays=(0, 1, 2)),
    "delay": dict(delays=(0, 1, 2), pattern="delay"),
    "flatten": dict(pattern="flatten"),
    "windows": dict(context_frames=6),
    "never": dict(delays=(0, 1, 2), end="never", gaps="bos"),
    "zeros": dict(end="zeros"),
}


def run(model, request: Request, seeds=(0, 1), sampling=FREE) -> State:
    return list(generate(model, request, seeds, sampling))[-1]


def draw_codes(num_frames: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(0, 7, (3, num_frames), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def check_scores(model, state: State) -> None:
    """What was recorded while drawing is what the model gives the finished grid, window by window."""
    for window in windows(state.num_frames, model.config.context_frames):
        text = None if state.text is None else state.text[:, window.start : window.stop]
        nll = model(state.codes[:, :, window.start : window.stop], text=text).nll[:, :, window.first - window.start :]
        torch.testing.assert_close(state.nll[:, :, window.first : window.stop], nll, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("with_prompt", [True, False])
def test_codes_that_are_known_are_kept_and_scored_and_the_others_are_drawn_around_them(make_model, name, with_prompt):
    model = make_model(**MODELS[name])
    known = draw_codes(9)
    known[1:] = ABSENT  # codebook 0 is kept
    known[:, 6:] = draw_codes(3, 4)  # then everything is given: an end after a gap
    prompt = draw_codes(4, 5) if with_prompt else None
    state = run(model, Request(9, prompt, new_codes=known))
    new = state.codes[:, :, 4 if with_prompt else 0 :]
    is_known = (known != ABSENT).expand(2, 3, 9)
    assert torch.equal(new[is_known], known.expand(2, 3, 9)[is_known]) and new.min() >= 0
    assert not torch.equal(new[0], new[1])  # seeds differ in what is drawn
    check_scores(model, state)


def test_each_row_keeps_codes_of_its_own_and_what_is_drawn_depends_on_them(make_model):
    model = make_model()
    known = torch.stack([draw_codes(6), draw_codes(6, 4)])
    known[:, 1:] = ABSENT
    together = run(model, Request(6, new_codes=known), seeds=(5, 5))
    assert not torch.equal(together.codes[0, 1:], together.codes[1, 1:])
    for row in range(2):
        alone = run(model, Request(6, new_codes=known[row]), seeds=(5,))
        assert torch.equal(alone.codes[0], together.codes[row])
    free = run(model, Request(6), seeds=(5, 5))
    same = run(model, Request(6, new_codes=torch.full((3, 6), ABSENT)), seeds=(5, 5))
    assert torch.equal(free.codes, same.codes)  # where nothing is known nothing changes


def test_a_code_that_is_known_is_no_end_even_where_the_model_would_end(make_model):
    model = make_model()
    with torch.no_grad():
        model.head_0.weight[model.eos] *= 3
    stopping = replace(FREE, stop_at_end=True)
    assert (run(model, Request(8), range(9), stopping).end < 8).any()
    known = draw_codes(8)
    known[1:] = ABSENT
    state = run(model, Request(8, new_codes=known), range(9), stopping)
    assert (state.end == 8).all() and torch.equal(state.codes[:, 0], known[0].expand(9, 8))


@pytest.mark.parametrize(
    "codes, message", [(draw_codes(4), "4 frames for 5 columns"), (draw_codes(5) + 5, "codes span"),
                       (draw_codes(5)[:2], "codes have 2 codebooks")]
)  # fmt: skip
def test_known_codes_that_do_not_fit_are_refused(make_model, codes, message):
    with pytest.raises(ValueError, match=message):
        run(make_model(), Request(5, new_codes=codes))


# --- guidance ---


@pytest.fixture(scope="module", params=["depth", "delay"])
def speaker(make_model, request):
    delays = (0, 1, 2) if request.param == "delay" else (0, 0, 0)
    return make_model(delays, pattern=request.param, text=TextConfig(11))


@torch.no_grad()
@pytest.mark.parametrize("layout", ["first", "aligned"])
def test_a_guided_code_is_the_likeliest_between_and_beyond_with_and_without_text(make_model, layout):
    model = make_model(text=TextConfig(11))
    words = torch.tensor([4, 9, 2, 7])
    codes = torch.full((3, 4), ABSENT) if layout == "first" else draw_codes(4)
    request = Request(4, codes, words, new_text=None if layout == "first" else words)
    greedy = SamplingConfig(temperature=0.0)
    drawn = []
    for weight in (0.0, 1.0, 3.0):
        state = run(model, request, (0,), replace(greedy, guidance=weight))
        check_scores(model, state)  # the model's own nats, whatever the weight
        own = model(state.codes, text=state.text, return_logits=True).logits
        without = model(state.codes, text=torch.full_like(state.text, ABSENT), return_logits=True).logits
        mixed = (without + weight * (own - without))[:, :, 4:, :7]
        assert torch.equal(mixed.argmax(dim=-1), state.codes[:, :, 4:])
        drawn.append(state.codes)
    assert torch.equal(drawn[1], run(model, request, (0,), greedy).codes)
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


@torch.no_grad()
def test_where_a_voice_comes_before_the_text_guidance_weighs_both(make_model):
    model = make_model(text=TextConfig(11))
    voice, text = draw_codes(5), torch.tensor([4, 9, 2])
    codes = torch.cat([voice, torch.full((3, 3), ABSENT)], dim=1)
    beside = torch.cat([torch.full((5,), ABSENT), text])
    request = Request(4, codes, beside, num_voice=5)
    drawn = []
    for weight in (0.0, 1.0, 3.0):
        state = run(model, request, (0,), SamplingConfig(temperature=0.0, guidance=weight))
        check_scores(model, state)
        own = model(state.codes, text=state.text, return_logits=True).logits
        alone = state.codes[:, :, 5:]
        without = model(alone, text=torch.full_like(state.text[:, 5:], ABSENT), return_logits=True).logits
        mixed = (without + weight * (own[:, :, 5:] - without))[:, :, 3:, :7]
        assert torch.equal(mixed.argmax(dim=-1), state.codes[:, :, 8:])
        drawn.append(state.codes[:, :, 8:])
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_guidance_also_weighs_a_text_that_the_model_writes_itself(speaker):
    request = Request(6, draw_codes(3), draw_text=True)
    guided = run(speaker, request, (0, 1), replace(FREE, guidance=2.0))
    assert guided.text[:, 3:].min() >= 0
    check_scores(speaker, guided)


def test_guidance_without_a_text_is_refused(make_model, speaker):
    for model in (make_model(), speaker):
        with pytest.raises(ValueError, match="guidance weighs the text, and none is given"):
            run(model, Request(4), sampling=replace(FREE, guidance=2.0))


# --- repetition, and rows that differ ---


def test_a_model_that_repeats_itself_is_made_to_go_on(make_model):
    model = make_model()
    with torch.no_grad():
        model.head_0.weight.zero_()  # all codes are as likely as each other: greedy takes the first, for ever
    greedy = SamplingConfig(temperature=0.0)
    stuck = run(model, Request(40), (0, 1, 2), greedy).codes[:, 0]
    assert (stuck == stuck[:, :1]).all()
    free = run(model, Request(40), (0, 1, 2), replace(greedy, repetition_share=0.25, repetition_frames=8)).codes[:, 0]
    repeats = (free.unfold(1, 8, 1) == stuck[0, 0]).sum(dim=-1)
    assert repeats.float().mean() < 5 and len(free.unique()) == 7
    assert torch.equal(free[:, :3], stuck[:, :3]) and (free[:, 3:12] != stuck[0, 0]).any()  # from the third repeat on


def test_a_code_is_drawn_again_by_other_random_numbers(make_model):
    once, again = (run(make_model(), Request(30), sampling=replace(FREE, repetition_share=share)) for share in (1, 0))
    assert not torch.equal(once.codes[:, 0], again.codes[:, 0])  # the same numbers would draw the same code


def test_rows_that_may_not_end_go_on_beside_rows_that_do(make_model):
    for end in ("eos", "zeros"):
        model = make_model(end=end)
        with torch.no_grad():
            model.head_0.weight.mul_(0.2)
            model.depth_decoder.heads.mul_(0.2)
        rows = [replace(FREE, stop_at_end=row % 2 == 0) for row in range(60)]
        state = run(model, Request(40), range(60), rows)
        ends = state.end.view(30, 2)
        assert (ends[:, 1] == 40).all() and (ends[:, 0] < 40).any(), end
        assert state.codes[1::2, :, : state.frame].min() >= 0
        check_scores(model, run(model, Request(40), range(2), [replace(FREE, temperature=t) for t in (0.5, 2.0)]))


def test_rows_may_look_back_on_other_numbers_of_frames_for_repetition(make_model):
    model = make_model()
    rows = [replace(FREE, temperature=0.3, repetition_share=0.1, repetition_frames=frames) for frames in (4, 30)]
    together = run(model, Request(40), (5, 5, 5), [*rows, FREE])
    for row, sampling in enumerate([*rows, FREE]):
        assert torch.equal(run(model, Request(40), (5,), sampling).codes[0], together.codes[row])
    assert not torch.equal(together.codes[0], together.codes[1])


class Frames:
    """An engine for `count`."""

    name = "frames"

    def __init__(self, model, sampling, with_codes: bool = False):
        self.model, self.sampling, self.with_codes = model, sampling, with_codes

    def run(self, num_frames, mark) -> None:
        codes = torch.full((3, num_frames), ABSENT) if self.with_codes else None
        request = Request(num_frames, text=torch.tensor([1, 2]), new_codes=codes)
        for _ in generate(self.model, request, (0, 1), self.sampling):
            mark()


def test_settings_of_each_codebook_cost_nothing_and_no_setting_makes_the_host_wait(make_model):
    model = make_model(text=TextConfig(11, predicted=False))
    usual = SamplingConfig(top_k=5)
    operations = count(Frames(model, usual)).operations
    for same in (SamplingConfig((0.9, 0.7), top_k=(5, 6, 4)), [usual, usual]):
        assert count(Frames(model, same)).operations == operations
    mixed = [SamplingConfig(0.0, guidance=2.0), SamplingConfig(top_k=3, top_p=0.5, min_p=0.1)]
    for more in (SamplingConfig(top_k=5, top_p=0.5, min_p=0.1), replace(usual, repetition_share=0.1),
                 replace(usual, guidance=2.0), mixed):  # fmt: skip
        for with_codes in (True, False):
            found = count(Frames(model, more, with_codes))
            assert found.syncs == 0 and found.operations > operations
