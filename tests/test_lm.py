"""model/lm.py: what it takes and refuses, the price of what nothing comes before, and loading. Float64 throughout.

That its likelihood is one, the same however it is computed, and learns, is inference/verify's to show (test_verify.py).
"""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel

from codeclm.inference.bench.counts import Recorder
from codeclm.inference.loading import load_speech_lm
from codeclm.model import SpeechLM, depth, layout
from codeclm.model.delay_pattern import ABSENT
from codeclm.model.shapes import TextConfig
from codeclm.model.walk import Walk

from .options import OPTIONS, SIZE, WORDS, example


def random_codes(*shape: int, size: int = SIZE) -> Tensor:
    return torch.randint(0, size, shape, generator=torch.Generator().manual_seed(1))


def first_logits(walk: Walk) -> Tensor:
    """Codebook 0's, at the next step."""
    found = []

    def choose(slot: int, logits: Tensor) -> Tensor:
        found.append(logits)
        return absent

    absent = torch.full((walk.batch,), ABSENT)
    walk.step(choose, {slot: absent for slot in walk.slots if slot != 0})
    return found[0]


@torch.no_grad()
def test_absent_embeds_to_exactly_zero(make_model):
    model = make_model()
    nothing = torch.full((2, 3, 4), ABSENT)
    assert (model.embed_frames(nothing) == 0).all()
    decoder = model.depth_decoder
    assert (decoder.embed(nothing[:, :2, 0], decoder.embedding, 0) == 0).all()
    one = nothing.clone()
    one[:, 1] = 5
    expected = model.frame_embedding.weight[(SIZE + 1) + 5]
    torch.testing.assert_close(model.embed_frames(one), expected.expand(2, 4, -1), rtol=0, atol=0)
    model = make_model(text=TextConfig(WORDS))
    text = torch.tensor([[ABSENT, 3], [WORDS, ABSENT]])
    both = model.embed_frames(one[:, :, :2], text) - model.embed_frames(one[:, :, :2])
    expected = torch.stack([model.text_embedding.weight[3], model.text_embedding.weight[WORDS]])
    assert (both[[0, 1], [0, 1]] == 0).all()
    torch.testing.assert_close(both[[0, 1], [1, 0]], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("option", ["text", "text given", "text flat", "text seen"])
@torch.no_grad()
def test_a_text_token_comes_before_the_codes_of_its_column(make_model, option):
    model = make_model(**OPTIONS[option])
    inputs, column = example(model, batch=1), 2
    changed = inputs["text"].clone()
    changed[0, column] = (changed[0, column] + 1) % WORDS
    before, after = model(**inputs), model(**inputs | {"text": changed})
    moved = (before.nll - after.nll).abs()[0]
    assert (moved[:, :column] == 0).all() and (moved[:, column + 1 :] > 1e-9).all()
    if option in ("text flat", "text seen"):
        assert (moved[:, column] > 1e-9).all()
    else:
        assert (moved[:, column] == 0).all()  # the step of the token itself has no look at it
    if model.predicts_text:
        moved = (before.text_nll - after.text_nll).abs()[0]
        assert (moved[:column] == 0).all() and (moved[column:] > 1e-9).all()
        other = (inputs["codes"] + 1) % SIZE
        codes = torch.where(torch.arange(6) == column, other, inputs["codes"])
        moved = (before.text_nll - model(**inputs | {"codes": codes}).text_nll).abs()[0]
        assert (moved[: column + 1] == 0).all() and (moved[column + 1 :] > 1e-9).all()


@torch.no_grad()
def test_a_tied_text_head_is_the_table_of_the_text_tokens(make_model):
    model = make_model(text=TextConfig(WORDS, tied=True))
    assert not hasattr(model, "text_head")
    context = torch.randn(2, 16, dtype=torch.float64)
    expected = torch.stack([context @ model.text_embedding.weight[token] for token in range(WORDS)], dim=1)
    torch.testing.assert_close(model.text_logits(context), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_without_bos_the_first_frame_costs_what_raw_codes_do(make_model):
    model, codes = make_model(bos=False), random_codes(2, 3, 5)
    output = model(codes, return_logits=True)
    assert (output.nll[:, :, 1:] > 0).all()
    first = torch.full((2, 3), math.log(SIZE), dtype=torch.float64)
    torch.testing.assert_close(output.nll[:, :, 0], first, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.loss, output.nll.mean(), rtol=0, atol=1e-12)
    assert (output.logits[:, :, 0, :SIZE] == 0).all() and (output.logits[:, :, 0, SIZE:] == -math.inf).all()
    assert not output.logits.isnan().any()
    other = codes.clone()
    other[:, :, 0] = (codes[:, :, 0] + 1) % SIZE
    assert ((model(other).nll - output.nll)[:, :, 1:].abs() > 1e-9).all()


@pytest.mark.parametrize("end", ["zeros", "never"])
@torch.no_grad()
def test_only_a_model_that_ends_with_eos_has_a_class_for_it(make_model, end):
    model, codes = make_model(end=end), random_codes(2, 3, 5)
    assert model.head_0.weight.shape[0] == SIZE and make_model().head_0.weight.shape[0] == SIZE + 1
    output = model(codes, torch.ones(2, dtype=torch.bool))
    torch.testing.assert_close(output.loss, model(codes).loss, rtol=0, atol=1e-12)
    assert (output.eos_nll == 0).all()


@pytest.mark.parametrize("option", ["default", "delays", "moshi", "flatten", "text tied", "user", "llama"])
@torch.no_grad()
def test_a_saved_model_gives_the_same_numbers_through_every_loader(make_model, tmp_path, option):
    settings = OPTIONS.get(option, dict(delays=[0, 1, 1]))
    model = make_model(**settings, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    inputs = example(model) | {"ends": torch.ones(3, dtype=torch.bool)}
    expected, kept = torch.nn.Module.double(model)(**inputs), model.state_dict()
    for loader in (SpeechLM.from_pretrained, AutoModel.from_pretrained, load_speech_lm):
        loaded = loader(tmp_path)
        assert isinstance(loaded, SpeechLM) and not loaded.training
        assert loaded.config.to_dict()["delays"] == list(settings.get("delays", (0, 0, 0)))
        loaded = torch.nn.Module.double(loaded)
        output = loaded(**inputs)
        assert all(torch.equal(weight, kept[name]) for name, weight in loaded.state_dict().items())
        torch.testing.assert_close((output.nll, output.eos_nll), (expected.nll, expected.eos_nll), rtol=0, atol=1e-12)
        ours, theirs = first_logits(Walk(model, 1, 2)), first_logits(Walk(loaded, 1, 2))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_float64_weights_come_back_whole(make_model, tmp_path):
    model, codes = make_model(), random_codes(2, 3, 6)
    model.save_pretrained(tmp_path)
    loaded, kept = SpeechLM.from_pretrained(tmp_path), model.state_dict()
    for weights in (loaded.state_dict(), load_file(tmp_path / "model.safetensors")):
        assert weights.keys() == kept.keys()
        assert all(weights[name].dtype == torch.float64 and torch.equal(weights[name], kept[name]) for name in kept)
    # weights that lie elsewhere in memory may be multiplied in another order
    torch.testing.assert_close(loaded(codes).nll, model(codes).nll, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "codes, message",
    [
        (torch.full((1, 3, 2), SIZE), "codes span 7..7; this model has 0..6"),
        (torch.full((1, 3, 2), -2), "codes span -2..-2"),
        (torch.zeros(1, 2, 2, dtype=torch.long), "codes have 2 codebooks; this model has 3"),
        (torch.zeros(1, 3, 2), "must be integers"),
        (torch.zeros(3, 2, dtype=torch.long), "must be integers"),
        (torch.zeros(1, 3, 0, dtype=torch.long), "no frame"),
        (torch.zeros(0, 3, 2, dtype=torch.long), "no frame"),
    ],
)
def test_codes_that_are_not_this_models_are_refused(make_model, codes, message):
    with pytest.raises(ValueError, match=message):
        make_model()(codes)


@pytest.mark.parametrize("loader", [SpeechLM.from_pretrained, AutoModel.from_pretrained])
def test_a_mistyped_nested_setting_is_refused_with_the_nearest_name(make_model, tmp_path, loader):
    make_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["backbone"]["num_layer"] = config["backbone"].pop("num_layers")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"'backbone.num_layer'; did you mean 'backbone.num_layers'"):
        loader(tmp_path)


def test_input_dropout_changes_what_the_model_sees_but_not_what_it_is_scored_on(make_model):
    model, codes = make_model([0, 1, 1]), random_codes(2, 3, 6)
    torch.manual_seed(0)
    plain, dropped = model(codes), model(codes, input_dropout=0.5)
    assert (dropped.nll > 0).all() and not torch.allclose(plain.nll, dropped.nll)
    torch.manual_seed(0)
    assert torch.equal(model(codes, input_dropout=0.5).nll, dropped.nll)
    # with nothing to see but BOS, no code depends on another
    blind = model(codes, input_dropout=1.0).nll
    other = (codes + 1) % SIZE
    other[:, 1, 3] = codes[:, 1, 3]
    assert torch.allclose(model(other, input_dropout=1.0).nll[:, 1, 3], blind[:, 1, 3])


@pytest.mark.parametrize("pattern, delays", [("depth", [0, 0, 0]), ("delay", [0, 1, 2]), ("parallel", [0, 0, 0])])
def test_frame_dropout_leaves_the_backbone_nothing_but_text_and_the_depth_decoder_its_frame(
    make_model, pattern, delays
):
    model = make_model(delays, pattern=pattern, text=TextConfig(5, predicted=False))
    codes, text = random_codes(2, 3, 6), random_codes(2, 6, size=5)
    blind = model(codes, text=text, frame_dropout=1.0).nll
    earlier, words = codes.clone(), text.clone()
    earlier[:, :, 2], words[:, 2] = (codes[:, :, 2] + 1) % SIZE, (text[:, 2] + 1) % 5
    of_earlier = model(earlier, text=text, frame_dropout=1.0).nll
    assert torch.equal(of_earlier[:, :, 3:], blind[:, :, 3:])
    assert not torch.allclose(model(codes, text=words, frame_dropout=1.0).nll[:, :, 3:], blind[:, :, 3:])
    first = codes.clone()
    first[:, 0, 3] = (codes[:, 0, 3] + 1) % SIZE  # codebook 1 of its frame is told of it by the depth decoder alone
    same = torch.equal(model(first, text=text, frame_dropout=1.0).nll[:, 1, 3], blind[:, 1, 3])
    assert same == (pattern != "depth")
    half, plain = (model(codes, text=text, **given).nll for given in ({"frame_dropout": 0.5}, {}))
    assert not torch.allclose(half, plain) and not torch.allclose(half, blind)


def test_frame_dropout_is_refused_where_frames_are_not_heard_whole(make_model):
    with pytest.raises(ValueError, match="frame_dropout: the backbone of pattern flatten"):
        make_model(pattern="flatten")(random_codes(2, 3, 6), frame_dropout=0.5)


@pytest.mark.parametrize("documents, most", [(None, 1), (torch.tensor([[0, 0, 0, 1, 1, 1], [0] * 6, [0] * 6]), 4)])
def test_a_step_of_training_seldom_waits_for_the_device(make_model, documents, most):
    """For the number of steps that the depth decoder scores; in packed rows for their length, and the number of pieces,
    too, and on a CPU for the pieces' lengths."""
    model = make_model()
    inputs = example(model)
    ends = torch.ones_like(inputs["codes"][:, 0], dtype=torch.bool)
    with Recorder() as recorder:
        model(**inputs, ends=ends, documents=documents).loss.backward()
    assert 0 < recorder.totals[2] <= most


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("chunk", [0, 5])
def test_steps_and_rows_that_a_gpu_adds_to_have_few_sizes_count_nothing(make_model, monkeypatch, fraction, chunk):
    model = make_model(text=TextConfig(WORDS)).double()
    codes, documents = torch.randint(0, SIZE, (2, 3, 9)), torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0] * 9])
    text = torch.randint(0, WORDS, (2, 9))
    ends = torch.tensor([[0, 0, 1, 0, 0, 0, 1, 0, 1], [0] * 9]).bool()
    given = (documents == 1) & (torch.arange(9) < 5)

    def scored() -> list[Tensor]:
        options = {"depth_fraction": fraction, "depth_chunk": chunk, "row_keys": torch.tensor([3, 4])}
        output = model(codes, ends=ends, text=text, documents=documents, given=given, **options)
        nats = [x for x in (output.nll, output.eos_nll, output.text_nll) if x is not None]
        return [output.loss, *nats, *torch.autograd.grad(output.loss, list(model.parameters()))]

    plain = scored()
    sizes = []

    def rounded(size: int, step: int, device: torch.device) -> int:
        sizes.append(size)
        return -(-size // 11) * 11

    monkeypatch.setattr(layout, "few_sizes", rounded)
    monkeypatch.setattr(depth, "few_sizes", rounded)
    for found, expected in zip(scored(), plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert len(sizes) == 3 and all(size % 11 for size in sizes)
