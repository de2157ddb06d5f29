"""inference/engine.py: what is generated is what the model says, and one row does not know of the others."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from codeclm.data.audio import AudioError, load_audio
from codeclm.data.audio_out import save_audio
from codeclm.inference import SamplingConfig
from codeclm.inference.engine import generate
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.grid import Request, State
from codeclm.inference.windows import windows
from codeclm.model.delay_pattern import ABSENT
from codeclm.model.shapes import DepthConfig, TextConfig

DELAYS = [(0, 0, 0), (0, 1, 1), (1, 1, 3)]
FREE = SamplingConfig(temperature=1.0, top_k=0)


def run(model, prompt, num_frames, seeds, sampling=FREE) -> State:
    return list(generate(model, Request(num_frames, prompt), seeds, sampling))[-1]


@pytest.fixture(scope="module")
def prompt() -> torch.Tensor:
    return torch.randint(0, 7, (3, 5), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("delays", DELAYS)
@pytest.mark.parametrize("with_prompt", [False, True])
def test_the_recorded_nll_is_what_the_model_gives_the_codes(make_model, prompt, delays, with_prompt):
    model = make_model(delays)
    given = prompt if with_prompt else None
    state = run(model, given, 6, [0, 1])
    codes = state.codes
    frames = 6 + (5 if with_prompt else 0)
    assert codes.shape == (2, 3, frames) and codes.min() >= 0 and codes.max() < 7
    with torch.no_grad():
        expected = model(codes).nll
    torch.testing.assert_close(state.nll, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("delays", DELAYS)
def test_every_step_goes_through_the_backbone_once(make_model, prompt, delays):
    model, positions = make_model(delays), []
    model.backbone.register_forward_hook(lambda module, args, output: positions.append(output.shape[1]))
    *_, state = generate(model, Request(6, prompt), [0], fused=False)
    assert sum(positions) == state.num_frames + max(delays) and positions[0] == prompt.shape[1] + 1
    with torch.no_grad():
        torch.testing.assert_close(state.nll, model(state.codes).nll, rtol=0, atol=1e-9)


@pytest.mark.parametrize("delays", DELAYS)
def test_every_code_of_the_prompt_is_kept(make_model, prompt, delays):
    model = make_model(delays)
    codes = run(model, prompt, 6, [0, 1, 2]).codes
    assert torch.equal(codes[:, :, :5], prompt.expand(3, 3, 5))


@pytest.mark.parametrize("delays", DELAYS)
def test_each_row_of_a_batch_is_the_seed_alone(make_model, prompt, delays):
    model = make_model(delays)
    together = run(model, prompt, 8, [5, 6, 7]).codes
    for row, seed in enumerate([5, 6, 7]):
        assert torch.equal(run(model, prompt, 8, [seed]).codes[0], together[row])
    assert not torch.equal(together[0], together[1]) and not torch.equal(together[1], together[2])


@torch.no_grad()
def test_temperature_zero_takes_the_likeliest_code_of_every_step(make_model):
    model = make_model((0, 0, 0))
    codes = run(model, None, 5, [0], SamplingConfig(temperature=0.0)).codes
    nll = model(codes).nll
    for k in range(3):
        for t in range(5):
            variants = codes.repeat(7, 1, 1)
            variants[:, k, t] = torch.arange(7)
            assert model(variants).nll[:, k, t].min() >= nll[0, k, t] - 1e-12


def test_eos_is_drawn_only_when_asked_for(make_model):
    model = make_model((0, 1, 1))
    with torch.no_grad():
        model.head_0.weight[:-1] *= 0.01
        # the direction that the backbone starts in makes EOS by far the likeliest
        direction = model.backbone(model.embed_frames(torch.full((1, 3, 1), model.bos)))[0, 0]
        model.head_0.weight[model.eos] = 5 * direction / direction.norm()
    state = run(model, None, 10, range(20))
    assert (state.end == 10).all() and state.frame == 10 and state.codes.min() >= 0
    stopped = run(model, None, 10, range(20), replace(FREE, stop_at_end=True))
    assert (stopped.end < 10).all() and stopped.frame < 10


@pytest.mark.parametrize("delays", DELAYS)
def test_a_row_that_ended_has_all_its_codes_and_their_nll(make_model, delays):
    model = make_model(delays)
    with torch.no_grad():
        model.head_0.weight[model.eos] *= 0.1  # neither at once nor never
    prompt = torch.randint(0, 7, (3, 4), generator=torch.Generator().manual_seed(0))
    state = run(model, prompt, 12, range(30), replace(FREE, stop_at_end=True))
    codes, nll = state.codes, state.nll
    ended = (state.end < 16).nonzero().flatten().tolist()
    assert len(ended) >= 3 and len({int(state.end[row]) for row in ended}) > 1
    for row in ended:
        end = int(state.end[row])
        assert codes[row, :, :end].min() >= 0 and (codes[row, :, end:] == ABSENT).all()
        scored = model(codes[row : row + 1, :, :end], ends=torch.tensor([True])).nll[0]
        # the prompt's last delayed codes were scored before codebook 0 went on
        assert (scored - nll[row, :, :end]).abs().max() < 1e-5


def test_prompt_codes_of_another_model_are_refused(make_model):
    model = make_model((0, 0, 0))
    for bad in (torch.full((3, 2), 7), torch.zeros(2, 2, dtype=torch.long), torch.zeros(3, 0, dtype=torch.long)):
        with pytest.raises(ValueError, match="codes"):
            run(model, bad, 2, [0])
    assert ABSENT not in run(model, None, 2, [0]).codes


OPTIONS = [
    {"pattern": "delay", "delays": (0, 1, 2)},
    {"pattern": "parallel"},
    {"pattern": "flatten"},
    {"depth": DepthConfig(dim=8, num_layers=1, num_heads=2, num_kv_heads=2, ff_dim=16, first_codebook="depth")},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("context_frames", [512, 6])
def test_every_pattern_records_the_nll_that_scoring_gives_also_past_its_context(
    make_model, prompt, options, context_frames
):
    model = make_model(options.get("delays", (0, 0, 0)), context_frames=context_frames,
                       **{key: value for key, value in options.items() if key != "delays"})  # fmt: skip
    state = run(model, prompt, 9, [0, 1])
    expected = torch.zeros_like(state.nll)
    for window in windows(14, context_frames):
        with torch.no_grad():
            nll = model(state.codes[:, :, window.start : window.stop]).nll
        expected[:, :, window.first : window.stop] = nll[:, :, window.first - window.start :]
    torch.testing.assert_close(state.nll, expected, rtol=0, atol=1e-9)
    assert state.codes.min() >= 0 and torch.equal(state.codes[:, :, :5], prompt.expand(2, 3, 5))


@pytest.mark.parametrize("end, gaps", [("never", "bos"), ("zeros", "absent")])
@pytest.mark.parametrize("context_frames", [512, 6])
def test_a_model_without_eos_draws_what_scoring_scores_up_to_every_edge(make_model, prompt, end, gaps, context_frames):
    model = make_model((0, 1, 2), end=end, gaps=gaps, context_frames=context_frames)
    state = run(model, prompt, 9, [3, 4])
    for window in windows(14, context_frames):
        with torch.no_grad():
            nll = model(state.codes[:, :, window.start : window.stop]).nll[:, :, window.first - window.start :]
        torch.testing.assert_close(state.nll[:, :, window.first : window.stop], nll, rtol=0, atol=1e-9)


def test_frequencies_of_drawn_codes_are_the_scored_probabilities_of_a_model_without_eos(make_model):
    """Chi-square over all sequences of 2 frames, 2 codebooks of 3 codes, the second a frame behind."""
    model = make_model((0, 1), codebook_size=3, end="never")
    rows = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)
    with torch.no_grad():
        expected = model(rows).nll.sum(dim=(1, 2)).neg().exp()
    draws = 20_000
    drawn = torch.cat([run(model, None, 2, range(first, first + 2000)).codes for first in range(0, draws, 2000)])
    index = (drawn.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(dim=1)
    counts = index.bincount(minlength=81)
    statistic = ((counts - draws * expected) ** 2 / (draws * expected)).sum()
    assert expected.sum() == pytest.approx(1, abs=1e-9) and draws * expected.min() > 1
    assert statistic < 150  # 80 degrees of freedom: p < 1e-5


def test_generating_and_scoring_leave_train_mode_out_and_on(make_model, prompt):
    model = make_model((0, 1, 2))
    for block in model.backbone.blocks:
        block.dropout = 0.5
    expected = run(model, prompt, 6, [3])
    found = run(model.train(), prompt, 6, [3])
    assert model.training and torch.equal(found.codes, expected.codes)


def test_a_frame_of_zeros_ends_a_row_of_a_model_that_says_so(make_model):
    model = make_model((0, 0, 0), end="zeros")
    with torch.no_grad():
        model.head_0.weight.mul_(0.3)
        model.depth_decoder.heads.mul_(0.3)  # every code is about as likely: zeros come soon
    states = [run(model, None, 40, range(40), replace(FREE, stop_at_end=stop)) for stop in (True, False)]
    assert (states[1].end == 40).all()
    ended = (states[0].end < 40).nonzero().flatten().tolist()
    assert ended
    for row in ended:
        end = int(states[0].end[row])
        assert (states[0].codes[row, :, end] == 0).all() and (states[0].codes[row, :, end + 1 :] == ABSENT).all()


# --- with text ---


@pytest.fixture(scope="module", params=["depth", "delay", "flatten"])
def speaker(make_model, request):
    """A model with a text stream of 11 tokens."""
    delays = (0, 1, 2) if request.param == "delay" else (0, 0, 0)
    return make_model(delays, pattern=request.param, text=TextConfig(11))


def test_speech_from_text_is_drawn_after_columns_of_text(speaker):
    words = torch.tensor([4, 9, 2])
    state = list(generate(speaker, Request(5, text=words), [0, 1], FREE))[-1]
    assert state.num_prompt_frames == 3 and state.codes.shape == (2, 3, 8)
    assert (state.codes[:, :, :3] == ABSENT).all() and state.codes[:, :, 3:].min() >= 0
    assert torch.equal(state.text[:, :3], words.expand(2, 3)) and (state.text[:, 3:] == ABSENT).all()
    check_scores(speaker, state)
    other = list(generate(speaker, Request(5, text=torch.tensor([4, 8, 2])), [0, 1], FREE))[-1]
    assert not torch.equal(other.nll[:, 0, 3], state.nll[:, 0, 3])  # what is said depends on the text


def test_text_is_drawn_after_columns_of_speech_until_its_end(speaker, prompt):
    request = Request(30, prompt, draw_codes=False, draw_text=True, text_end=2)
    state = list(generate(speaker, request, range(12), replace(FREE, text_temperature=1.0)))[-1]
    assert (state.codes[:, :, 5:] == ABSENT).all() and (state.text[:, :5] == ABSENT).all()
    ended = (state.end < 35).nonzero().flatten().tolist()
    assert len(ended) >= 3
    for row in ended:
        end = int(state.end[row])
        assert state.text[row, end - 1] == 2 and 2 not in state.text[row, 5 : end - 1]
        assert (state.text[row, end:] == ABSENT).all()
    check_scores(speaker, state)


def test_speech_with_its_own_text_draws_both_in_every_column(speaker):
    state = list(generate(speaker, Request(6, draw_text=True), [0, 1], replace(FREE, text_temperature=1.0)))[-1]
    assert state.codes.min() >= 0 and state.text.min() >= 0
    check_scores(speaker, state)


def test_a_known_text_is_kept_while_speech_is_drawn_beside_it(speaker, prompt):
    words = torch.tensor([1, 5, 5, 0, 7, 3])
    state = list(generate(speaker, Request(6, prompt, torch.full((5,), ABSENT), new_text=words), [0], FREE))[-1]
    assert torch.equal(state.text[0, 5:], words) and state.codes.min() >= 0
    check_scores(speaker, state)


@torch.no_grad()
def check_scores(model, state: State) -> None:
    """What was recorded while drawing is what the model gives the finished grid."""
    output = model(state.codes, text=state.text)
    torch.testing.assert_close(state.nll, output.nll, rtol=0, atol=1e-9)
    torch.testing.assert_close(state.text_nll, output.text_nll, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "request_, message",
    [
        (Request(3, draw_text=True), "predicts no text"),
        (Request(3, text=torch.tensor([1])), "no text stream"),
        (Request(3, new_text=torch.tensor([1, 2])), "2 tokens for 3 columns"),
        (Request(3, user=torch.zeros(3, 3, dtype=torch.long)), "hears no other speaker"),
    ],
)
def test_what_a_model_cannot_be_given_is_refused(make_model, request_, message):
    with pytest.raises(ValueError, match=message):
        list(generate(make_model(), request_, [0]))


def test_a_text_that_does_not_fit_is_refused(make_model, prompt):
    model = make_model(text=TextConfig(11))
    for request, message in (
        (Request(3, prompt, torch.tensor([1, 2])), "2 columns, the given codes 5"),
        (Request(3, text=torch.tensor([11])), "text span -1..11"),
    ):
        with pytest.raises(ValueError, match=message):
            list(generate(model, request, [0]))


# --- with a codec ---

RATE, HOP = 8000, 80


@pytest.fixture(scope="module")
def codec(make_codec):
    return make_codec()


@pytest.fixture(scope="module")
def generator(make_model, codec) -> SpeechGenerator:
    return SpeechGenerator(make_model((0, 1, 1), codec=codec, dtype=torch.float32), codec, "tiny-model")


def tone(duration_s: float = 0.5, rate: int = RATE) -> np.ndarray:
    time = np.arange(round(duration_s * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time)).astype(np.float32)


@pytest.mark.parametrize("duration_s, frames", [(0.5, 50), (0.123, 12), (0.0001, 1)])
def test_audio_is_as_long_as_was_asked_for(generator, duration_s, frames):
    made = generator.generate(None, duration_s)
    assert made.audio.dtype == np.float32 and made.audio.shape == (frames * HOP,)
    assert made.codes.shape == made.nll.shape == (3, frames) and made.surprise_bits.shape == (frames,)
    assert made.finish_reason == "length" and made.sample_rate == RATE
    assert made.prompt_audio.shape == (0,) and made.num_prompt_frames == 0
    assert np.isfinite(made.audio).all() and (made.nll > 0).all()


def test_a_path_and_its_samples_are_the_same_prompt(generator, tmp_path):
    save_audio(tmp_path / "p.wav", tone(), RATE)
    from_path = generator.generate(tmp_path / "p.wav", 0.1, seed=3)
    from_text = generator.generate(str(tmp_path / "p.wav"), 0.1, seed=3)
    from_array = generator.generate((load_audio(tmp_path / "p.wav", RATE), RATE), 0.1, seed=3)
    for other in (from_text, from_array):
        np.testing.assert_array_equal(from_path.codes, other.codes)
        np.testing.assert_array_equal(from_path.audio, other.audio)
    assert from_path.num_prompt_frames == 50 and len(from_path.prompt_audio) == 50 * HOP
    expected = generator.codec.encode(torch.from_numpy(load_audio(tmp_path / "p.wav", RATE))[None, None])[0]
    np.testing.assert_array_equal(from_path.codes[:, :50], expected.numpy())


def test_samples_at_another_rate_are_resampled(generator):
    made = generator.generate((tone(0.5, 16_000), 16_000), 0.1)
    assert abs(made.num_prompt_frames - 50) <= 1
    same = generator.generate((tone(), RATE), 0.1)
    assert (made.codes[:, :45] == same.codes[:, :45]).mean() > 0.5  # nearly the same samples


def test_a_last_frame_that_is_not_full_is_left_out_of_the_prompt(generator):
    exact = generator.generate((tone(0.5), RATE), 0.1)
    longer = generator.generate((np.concatenate([tone(0.5), tone(0.0096)]), RATE), 0.1)
    np.testing.assert_array_equal(exact.codes, longer.codes)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(generator):
    one, again, other = (generator.generate((tone(), RATE), 0.2, seed=seed) for seed in (1, 1, 2))
    assert one.audio.tobytes() == again.audio.tobytes() and np.array_equal(one.nll, again.nll)
    assert not np.array_equal(one.codes, other.codes)
    many = generator.generate_many((tone(), RATE), 0.2, seeds=[1, 2])
    np.testing.assert_array_equal(many[0].codes, one.codes)
    np.testing.assert_array_equal(many[1].codes, other.codes)


def test_the_continuation_joins_the_prompt_without_a_seam(generator):
    made = generator.generate((tone(), RATE), 0.2)
    whole = generator.codec.decode(torch.from_numpy(made.codes)[None])[0, 0].numpy()
    np.testing.assert_array_equal(np.concatenate([made.prompt_audio, made.audio]), whole)


def test_save_writes_the_continuation_or_both(generator, tmp_path):
    made = generator.generate((tone(), RATE), 0.2)
    made.save(tmp_path / "a.wav")
    made.save(tmp_path / "b.wav", with_prompt=True)
    assert len(load_audio(tmp_path / "a.wav", RATE, check_speech=False)) == 20 * HOP
    assert len(load_audio(tmp_path / "b.wav", RATE, check_speech=False)) == 70 * HOP


def test_another_codec_is_refused_by_name_with_both_fingerprints(make_codec, generator):
    other = make_codec(seed=1)
    wanted, given = generator.codec.fingerprint[:12], other.fingerprint[:12]
    assert wanted != given
    with pytest.raises(ValueError, match=rf"my-model.*'tiny' \({wanted}\).*'tiny' \({given}\)"):
        SpeechGenerator(generator.model, other, "my-model")


@pytest.mark.parametrize("duration_s", [0, -1, float("nan"), float("inf"), 1e9])
def test_a_duration_without_a_meaning_is_refused(generator, duration_s):
    with pytest.raises(ValueError, match=r"duration must be more than 0 s and less than a day, not"):
        generator.generate(None, duration_s)


@pytest.mark.parametrize("rate", [RATE, 16_000])
@pytest.mark.parametrize(
    "samples, reason",
    [
        (np.zeros(9000, np.float32), "silent"),
        (np.full(9000, np.nan, np.float32), "NaN"),
        (tone()[:100], "too short"),
        (np.zeros(0, np.float32), "too short"),
        (1000 * tone(2.0), "float audio must lie in"),
    ],
)
def test_an_unusable_prompt_is_refused_with_the_reason(generator, samples, reason, rate):
    with pytest.raises(AudioError, match=f"the prompt: .*{reason}"):
        generator.generate((samples, rate), 0.1)


def test_a_prompt_file_that_is_missing_is_named(generator, tmp_path):
    with pytest.raises(AudioError, match="none.wav: no such file"):
        generator.generate(tmp_path / "none.wav", 0.1)
