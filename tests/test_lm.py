"""model/lm.py: what DESIGN.md section 4 demands of the likelihood. Float64 throughout.

All patterns and options together are inference/verify.py's; here are the default pattern and the basics of each option.
"""

import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel

from codeclm.inference.loading import load_speech_lm
from codeclm.model import SpeechLM
from codeclm.model.delay_pattern import ABSENT, delay, undelay
from codeclm.model.flatten import TEXT
from codeclm.model.shapes import TextConfig
from codeclm.model.walk import Walk

from .options import OPTIONS, SIZE, WORDS, example

DELAYS = [[0, 0, 0], [0, 1, 1], [1, 1, 3], [1, 1, 1], [0], [1]]


def random_codes(*shape: int, size: int = SIZE) -> Tensor:
    return torch.randint(0, size, shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def step_by_step(
    model: SpeechLM, codes: Tensor, text: Tensor | None = None, user: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(nll [B, K, T], eos_nll [B], text_nll [B, T]) of whole rows, from cached steps."""
    batch, num_codebooks, num_frames = codes.shape
    delays, config = model.config.delays, model.config
    length = num_frames + max(*delays, delays[0] + 1)  # with room for EOS

    def lengthened(values: Tensor) -> Tensor:
        return F.pad(values, (0, length - values.shape[-1]), value=ABSENT)

    steps = lengthened(delay(codes, delays))
    texts = None if text is None else lengthened(text)
    users = None if user is None else lengthened(delay(user, delays[: user.shape[1]]))
    nll, text_nll = torch.zeros(steps.shape).double(), torch.zeros(batch, length).double()
    eos = torch.zeros(batch).double()
    walk, first = Walk(model, batch, length), 0 if config.bos else 1
    if first:
        walk.prefill(*(None if x is None else x[..., :1] for x in (steps, texts, users)))

    def choose(k: int, logits: Tensor) -> Tensor:
        s = walk.position
        if k == TEXT:
            if s < num_frames:
                text_nll[:, s] = F.cross_entropy(logits, texts[:, s], reduction="none")
            return texts[:, s]
        log_p = logits.log_softmax(dim=-1)
        if 0 <= s - delays[k] < num_frames:
            nll[:, k, s] = -log_p.gather(1, steps[:, k, s : s + 1])[:, 0]
        elif k == 0 and s == num_frames + delays[0] and config.end == "eos":
            eos.copy_(-log_p[:, model.eos])
        return steps[:, k, s]

    for s in range(first, length):
        known = {}
        if not model.predicts_text or texts is None:
            known[TEXT] = torch.full((batch,), ABSENT) if texts is None else texts[:, s]
        walk.step(choose, known, None if users is None else users[:, :, s])
    return undelay(nll[:, :, : num_frames + max(delays)], delays), eos, text_nll[:, :num_frames]


def first_logits(walk: Walk) -> Tensor:
    """Codebook 0's, at the next step."""
    found = []

    def choose(slot: int, logits: Tensor) -> Tensor:
        found.append(logits)
        return absent

    absent = torch.full((walk.batch,), ABSENT)
    walk.step(choose, {slot: absent for slot in walk.slots if slot != 0})
    return found[0]


@pytest.mark.parametrize("delays", DELAYS)
@torch.no_grad()
def test_step_by_step_equals_teacher_forcing(make_model, delays):
    model, codes = make_model(delays), random_codes(3, len(delays), 6)
    output = model(codes, ends=torch.ones(3, dtype=torch.bool))
    nll, eos_nll, _ = step_by_step(model, codes)
    assert (nll > 0).all() and (eos_nll > 0).all()
    torch.testing.assert_close(output.nll, nll, rtol=0, atol=1e-9)
    torch.testing.assert_close(output.eos_nll, eos_nll, rtol=0, atol=1e-9)
    expected_loss = (nll.sum() + eos_nll.sum()) / (codes.numel() + 3)
    torch.testing.assert_close(output.loss, expected_loss, rtol=0, atol=1e-9)


@pytest.mark.parametrize("option", OPTIONS)
@torch.no_grad()
def test_step_by_step_equals_teacher_forcing_with_each_option(make_model, option):
    model = make_model(**OPTIONS[option])
    inputs, config = example(model), model.config
    output = model(**inputs, ends=torch.ones(3, dtype=torch.bool), return_logits=True)
    nll, eos_nll, text_nll = step_by_step(model, **inputs)
    if not config.bos:
        nll[:, :, 0] = math.log(SIZE)
    assert (nll > 0).all() and (eos_nll > 0).all() == (config.end == "eos")
    torch.testing.assert_close(output.nll, nll, rtol=0, atol=1e-9)
    torch.testing.assert_close(output.eos_nll, eos_nll, rtol=0, atol=1e-9)
    chosen = output.logits.log_softmax(dim=-1).gather(3, inputs["codes"][..., None])[..., 0]
    torch.testing.assert_close(-chosen, nll, rtol=0, atol=1e-9)
    terms = [*nll.flatten(), *eos_nll[eos_nll > 0]]
    if model.predicts_text:
        assert (text_nll > 0).all()
        torch.testing.assert_close(output.text_nll, text_nll, rtol=0, atol=1e-9)
        expected = F.cross_entropy(output.text_logits.transpose(1, 2), inputs["text"], reduction="none")
        torch.testing.assert_close(expected, text_nll, rtol=0, atol=1e-9)
        terms += [*text_nll.flatten()]
    else:
        assert output.text_nll is None and output.text_logits is None
    torch.testing.assert_close(output.loss, torch.stack(terms).mean(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("delays", DELAYS)
@torch.no_grad()
def test_a_row_of_a_padded_batch_equals_the_row_alone(make_model, delays):
    model, lengths, ends = make_model(delays), [6, 1, 4], torch.tensor([False, True, True])
    codes = random_codes(3, len(delays), 6)
    for row, length in enumerate(lengths):
        codes[row, :, length:] = ABSENT
    batch = model(codes, ends)
    for row, length in enumerate(lengths):
        alone = model(codes[row : row + 1, :, :length], ends[row : row + 1])
        torch.testing.assert_close(batch.nll[row : row + 1, :, :length], alone.nll, rtol=0, atol=1e-9)
        torch.testing.assert_close(batch.eos_nll[row : row + 1], alone.eos_nll, rtol=0, atol=1e-9)
        assert (batch.nll[row, :, length:] == 0).all()
    assert batch.eos_nll[0] == 0 and (batch.eos_nll[1:] > 0).all()


PACKED = ["default", "first", "delay", "parallel", "text flat", "text seen", "user", "never", "llama"]


@pytest.mark.parametrize("option", PACKED)
@torch.no_grad()
def test_packed_documents_equal_each_document_alone(make_model, option):
    model, lengths = make_model(**OPTIONS[option]), [4, 1, 3]
    inputs = example(model, batch=1, num_frames=sum(lengths))
    documents = torch.repeat_interleave(torch.tensor([2, 5, 7]), torch.tensor(lengths))[None]
    ends = torch.zeros(1, sum(lengths), dtype=torch.bool)
    ends[0, torch.tensor(lengths).cumsum(0) - 1] = True
    packed = model(**inputs, ends=ends, documents=documents)
    parts = [{name: x[..., documents[0] == number] for name, x in inputs.items()} for number in (2, 5, 7)]
    alone = [model(**part, ends=torch.ones(1, dtype=torch.bool)) for part in parts]
    torch.testing.assert_close(packed.nll, torch.cat([one.nll for one in alone], dim=2), rtol=0, atol=1e-9)
    torch.testing.assert_close(packed.eos_nll, torch.stack([one.eos_nll for one in alone]).sum(dim=0))
    if model.predicts_text:
        text_nll = torch.cat([one.text_nll for one in alone], dim=1)
        torch.testing.assert_close(packed.text_nll, text_nll, rtol=0, atol=1e-9)
    one_document = model(**inputs)
    assert (packed.nll - one_document.nll)[:, :, lengths[0] :].abs().min() > 1e-9  # it does matter who is seen


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


CAUSAL = [("depth", delays) for delays in DELAYS]
CAUSAL += [("delay", [0, 1, 2]), ("delay", [1, 1, 3]), ("parallel", [0, 0, 0]), ("flatten", [0, 0, 0])]


@pytest.mark.parametrize("pattern, delays", CAUSAL)
@torch.no_grad()
def test_a_code_moves_nothing_before_it_in_the_factorisation_and_something_after_it(make_model, pattern, delays):
    model, num_codebooks, num_frames = make_model(delays, pattern=pattern), len(delays), 4
    codes, ends = random_codes(1, num_codebooks, num_frames), torch.ones(1, dtype=torch.bool)

    def place(k: int, t: int) -> tuple[int, int]:
        return t + delays[k], k if pattern in ("depth", "flatten") else 0

    cells = list(itertools.product(range(num_codebooks), range(num_frames)))
    base = model(codes, ends)
    for k, t in cells:
        changed = codes.clone()
        changed[0, k, t] = (codes[0, k, t] + 1) % SIZE
        output = model(changed, ends)
        assert output.nll[0, k, t] != base.nll[0, k, t]
        for cell in cells:
            moved = abs(output.nll[0][cell] - base.nll[0][cell])
            if place(*cell) <= place(k, t):
                assert moved == 0 or cell == (k, t), (cell, (k, t))
            elif place(*cell)[0] > place(k, t)[0]:
                assert moved > 1e-9, (cell, (k, t))  # everything in later steps sees it through the backbone
        if k + 1 < num_codebooks and 0 <= place(k, t)[0] - delays[k + 1] < num_frames:
            finer = k + 1, place(k, t)[0] - delays[k + 1]  # and so does the next codebook of the same step, or not
            sees = pattern in ("depth", "flatten")
            assert (abs(output.nll[0][finer] - base.nll[0][finer]) > 1e-9) == sees


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
def test_text_may_come_before_the_audio_or_after_it(make_model):
    """Columns of text alone, and of audio alone, score nothing of the other; absent text is as if there were none."""
    model = make_model(text=TextConfig(WORDS))
    inputs = example(model, batch=2)
    codes, text, ends = inputs["codes"], inputs["text"], torch.ones(2, dtype=torch.bool)
    codes[0, :, :3] = text[0, 3:] = ABSENT  # text, then audio
    codes[1, :, 3:] = text[1, :3] = ABSENT  # audio, then text
    output = model(codes, ends, text)
    assert torch.equal(output.nll > 0, codes >= 0) and torch.equal(output.text_nll > 0, text >= 0)
    assert (output.eos_nll > 0).all()
    mean = (output.nll.sum() + output.text_nll.sum() + output.eos_nll.sum()) / (2 * 3 * 3 + 6 + 2)
    torch.testing.assert_close(output.loss, mean, rtol=0, atol=1e-12)
    absent = model(codes, text=torch.full_like(text, ABSENT))
    torch.testing.assert_close(absent.nll, model(codes).nll, rtol=0, atol=1e-12)
    assert (absent.text_nll == 0).all()


@torch.no_grad()
def test_a_tied_text_head_is_the_table_of_the_text_tokens(make_model):
    model = make_model(text=TextConfig(WORDS, tied=True))
    assert not hasattr(model, "text_head")
    context = torch.randn(2, 16, dtype=torch.float64)
    expected = torch.stack([context @ model.text_embedding.weight[token] for token in range(WORDS)], dim=1)
    torch.testing.assert_close(model.text_logits(context), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_another_speaker_is_heard_from_the_next_step_on_and_never_scored(make_model):
    model = make_model(user_codebooks=2)
    inputs = example(model, batch=1)
    changed = inputs["user"].clone()
    changed[0, 1, 2] = (changed[0, 1, 2] + 1) % SIZE
    before, after = model(**inputs), model(**inputs | {"user": changed})
    moved = (before.nll - after.nll).abs()[0]
    assert (moved[:, :3] == 0).all() and (moved[:, 3:] > 1e-9).all()
    torch.testing.assert_close(before.loss, before.nll.mean(), rtol=0, atol=1e-12)


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


TOTALS = [("depth", delays) for delays in ([0, 0], [0, 1], [1, 1], [1, 2])]
TOTALS += [("delay", [0, 1]), ("parallel", [0, 0]), ("flatten", [0, 0])]


@pytest.mark.parametrize("pattern, delays", TOTALS)
@torch.no_grad()
def test_the_probabilities_of_all_sequences_sum_to_one(make_model, pattern, delays):
    """Every utterance of 0, 1 or 2 frames that has ended, and every one that goes on after 2 frames.

    No codebook runs ahead of codebook 0 here: its missing code would tell of the end before EOS does.
    """
    model, size = make_model(delays, codebook_size=3, pattern=pattern), 3
    walk = Walk(model, 1, 4)
    walk.prefill(torch.full((1, 2, delays[0]), ABSENT))
    total = float(first_logits(walk).softmax(dim=-1)[0, model.eos])  # ended without a frame
    assert 0 < total < 0.95
    for num_frames in (1, 2):
        codes = torch.tensor(list(itertools.product(range(size), repeat=2 * num_frames))).view(-1, 2, num_frames)
        output = model(codes, torch.ones(len(codes), dtype=torch.bool))
        reached = (-output.nll.sum(dim=(1, 2))).exp()
        ended = reached * (-output.eos_nll).exp()
        total += float(ended.sum())
    total += float((reached - ended).sum())  # goes on after two frames
    assert total == pytest.approx(1, abs=1e-12)


@torch.no_grad()
def test_every_code_of_the_finer_codebooks_has_a_normalised_distribution(make_model):
    model, codes = make_model([1, 1, 3]), random_codes(1, 3, 4)
    for k, t in itertools.product((1, 2), range(4)):
        variants = codes.repeat(SIZE, 1, 1)
        variants[:, k, t] = torch.arange(SIZE)
        assert float((-model(variants).nll[:, k, t]).exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("delays", DELAYS)
@torch.no_grad()
def test_zero_heads_give_uniform_codes(make_model, delays):
    model, codes = make_model(delays), random_codes(2, len(delays), 5)
    model.head_0.weight.zero_()
    model.depth_decoder.heads.zero_()
    output = model(codes, torch.ones(2, dtype=torch.bool))
    assert torch.allclose(output.nll[:, 0], torch.tensor(math.log(SIZE + 1), dtype=torch.float64), atol=1e-12)
    assert torch.allclose(output.nll[:, 1:], torch.tensor(math.log(SIZE), dtype=torch.float64), atol=1e-12)
    assert torch.allclose(output.eos_nll, torch.tensor(math.log(SIZE + 1), dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("option", [*OPTIONS, "delays"])
def test_every_parameter_receives_a_gradient(make_model, option):
    model = make_model(**OPTIONS.get(option, dict(delays=[0, 1, 1])))
    inputs = example(model, batch=4, num_frames=8)
    model(**inputs, ends=torch.ones(4, dtype=torch.bool)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


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
