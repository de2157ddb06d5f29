"""model/losses.py and the loss of model/lm.py: the weighted sum that it says, of numbers that no weight touches."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from codeclm.model import SpeechLM
from codeclm.model.delay_pattern import ABSENT
from codeclm.model.layout import Steps, arrange, num_scored, scored_part
from codeclm.model.losses import Weights, cross_entropy
from codeclm.model.shapes import TextConfig
from codeclm.model.text_tokens import EOS, PAD, SAY, WRITE

from .options import OPTIONS, WORDS, example

MIXED = ["default", "first", "sets", "delay", "parallel", "flatten", "text", "text seen", "text flat", "text given"]


def test_cross_entropy_in_nats_and_z_loss_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [1.0, 1.0], [2.0, 5.0]], dtype=torch.float64)
    targets = torch.tensor([1, 0, ABSENT])
    nll, penalty = cross_entropy(logits, targets, z_loss=0.1)
    expected = torch.tensor([math.log(4 / 3), math.log(2), 0.0], dtype=torch.float64)
    torch.testing.assert_close(nll, expected, rtol=0, atol=1e-12)
    assert float(penalty.sum()) == pytest.approx(0.1 * (math.log(4) ** 2 + (1 + math.log(2)) ** 2), abs=1e-12)
    assert not cross_entropy(logits, targets)[1].any()


def test_cross_entropy_of_half_precision_logits_is_taken_in_float32():
    logits = torch.tensor([[100.0, 90.0, 80.0]], dtype=torch.bfloat16)
    nll, _ = cross_entropy(logits, torch.tensor([1]))
    assert nll.dtype == torch.float32 and float(nll) == pytest.approx(10 + math.log1p(math.exp(-10)), abs=1e-5)


def scored(model: SpeechLM, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Squared log-normalisers of the codes [B, K, T], and of the text [B, T], 0 where nothing is scored."""
    output = model(**inputs, return_logits=True)
    codes = output.logits.logsumexp(dim=-1).square() * (inputs["codes"] != ABSENT)
    if output.text_logits is None:
        return codes, None
    return codes, output.text_logits.logsumexp(dim=-1).square() * (inputs["text"] != ABSENT)


@pytest.mark.parametrize("option", MIXED)
@torch.no_grad()
def test_the_loss_is_the_weighted_sum_by_hand_and_the_nll_is_untouched(make_model, option):
    """Each code has its codebook's weight, EOS that of codebook 0, text its own; z-loss is of all that is scored."""
    model = make_model(**OPTIONS[option])
    inputs, ends = example(model), torch.tensor([True, False, True])
    inputs["codes"][1, :, 4:] = ABSENT
    if "text" in inputs:
        inputs["text"][2, 1:3] = ABSENT
    codebooks = [3.0, 0.5, 0.0]
    plain = model(**inputs, ends=ends)
    weighted = model(**inputs, ends=ends, weights=Weights(codebooks, text=0.25))
    assert torch.equal(plain.nll, weighted.nll) and torch.equal(plain.eos_nll, weighted.eos_nll)
    of = torch.tensor(codebooks, dtype=torch.float64)
    total = (plain.nll.sum(dim=(0, 2)) * of).sum() + 3 * plain.eos_nll.sum()
    count = (inputs["codes"] != ABSENT).sum() + 2
    if model.predicts_text:
        assert torch.equal(plain.text_nll, weighted.text_nll)
        total = total + 0.25 * plain.text_nll.sum()
        count = count + (inputs["text"] != ABSENT).sum()
    torch.testing.assert_close(weighted.loss, total / count, rtol=0, atol=1e-12)

    # z-loss without EOS, whose logits are not among those of the frames
    code_terms, text_terms = scored(model, inputs)
    without = model(**inputs, weights=Weights(codebooks, text=0.25))
    penalised = model(**inputs, weights=Weights(codebooks, text=0.25, z_loss=0.01))
    terms = code_terms.sum() + (0 if text_terms is None else text_terms.sum())
    torch.testing.assert_close(penalised.loss - without.loss, 0.01 * terms / (count - 2), rtol=0, atol=1e-12)
    assert torch.equal(penalised.nll, without.nll)


@pytest.mark.parametrize("option", [*MIXED, "user", "no bos", "moshi"])
@torch.no_grad()
def test_given_columns_are_heard_and_cost_nothing(make_model, option):
    """All else costs what it does without them being given: an end after a given column, too."""
    model = make_model(**OPTIONS[option])
    inputs, ends = example(model), torch.zeros(3, 6, dtype=torch.bool)
    if "text" in inputs:
        inputs["text"][:, 2:4] = ABSENT
    ends[0, 5], ends[1, 3] = True, True
    given = torch.zeros(3, 6, dtype=torch.bool)
    given[0, :2], given[1, 3:5] = True, True
    plain, found = model(**inputs, ends=ends), model(**inputs, ends=ends, given=given)
    expected = plain.nll.masked_fill(given[:, None], 0.0)
    torch.testing.assert_close(found.nll, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.eos_nll, plain.eos_nll, rtol=0, atol=1e-9)
    expected_text = [plain.text_nll.masked_fill(given, 0.0)] if model.predicts_text else []
    for value in expected_text:
        torch.testing.assert_close(found.text_nll, value, rtol=0, atol=1e-9)
    total = expected.sum() + plain.eos_nll.sum() + sum(value.sum() for value in expected_text)
    left = scored_part(inputs["codes"], inputs.get("text"), given)
    count = num_scored(model.config, left[0], ends, left[1])
    assert int(count) == sum(int((x != 0).sum()) for x in (expected, plain.eos_nll, *expected_text))
    torch.testing.assert_close(found.loss, total / count, rtol=0, atol=1e-9)


@torch.no_grad()
def test_of_a_text_to_be_said_only_the_time_of_each_token_is_learned(make_model):
    """By hand: said, a token costs what all but PAD have together; written, it costs itself. Rows and packed rows."""
    model = make_model(text=TextConfig(WORDS, layout="timed", lookahead=2))
    a, b = 5, 6
    text = torch.tensor([[SAY, a, PAD, b, EOS, ABSENT], [WRITE, PAD, a, b, PAD, EOS], [WRITE, a, EOS, SAY, b, PAD]])
    inputs = {**example(model), "text": text, "given": (text == SAY) | (text == WRITE)}
    inputs["documents"] = torch.tensor([[0] * 6, [0] * 6, [0, 0, 0, 1, 1, 1]])
    output = model(**inputs, return_logits=True)
    probabilities = output.text_logits.softmax(dim=-1)
    own = probabilities.gather(2, text.clamp_min(0)[..., None])[..., 0]
    is_unnamed = torch.zeros(3, 6, dtype=torch.bool)
    is_unnamed[0, [1, 3, 4]], is_unnamed[2, 4] = True, True
    costs = -torch.where(is_unnamed, 1 - probabilities[..., PAD], own).log()
    costs = costs.masked_fill(inputs["given"] | (text == ABSENT), 0.0)
    silent = Weights([0.0] * model.num_codebooks, text=0.5, time_only=True)
    trained = model(**inputs, weights=silent)
    counted = int((~inputs["given"] & (text != ABSENT)).sum())
    codes = int((inputs["codes"].masked_fill(inputs["given"][:, None], ABSENT) != ABSENT).sum())
    torch.testing.assert_close(trained.loss, 0.5 * costs.sum() / (counted + codes), rtol=0, atol=1e-12)
    torch.testing.assert_close(trained.nll, output.nll, rtol=0, atol=1e-12)
    assert trained.loss < model(**inputs, weights=replace(silent, time_only=False)).loss
    other = make_model(**OPTIONS["text"])  # in a layout where it means nothing
    plain = example(other)
    assert other(**plain, weights=Weights(time_only=True)).loss == other(**plain).loss


@torch.no_grad()
def test_z_loss_counts_eos_too(make_model):
    model = make_model()
    codes = example(model)["codes"]
    ends = torch.ones(3, dtype=torch.bool)
    small, large = (model(codes, ends, weights=Weights(z_loss=z)).loss for z in (0.0, 1.0))
    logits = model.all_logits(*contexts_of(model, codes, ends))[0][:, 0, 6]
    of_codes, _ = scored(model, {"codes": codes})
    expected = (of_codes.sum() + logits.logsumexp(dim=-1).square().sum()) / (codes.numel() + 3)
    torch.testing.assert_close(large - small, expected, rtol=0, atol=1e-12)


def contexts_of(model: SpeechLM, codes: Tensor, ends: Tensor) -> tuple[Tensor, Steps]:
    steps = arrange(model.config, codes, ends)
    return model.contexts(steps), steps


@pytest.mark.parametrize("option", ["default", "first", "parallel"])
def test_a_wrong_number_of_codebook_weights_is_refused(make_model, option):
    model = make_model(**OPTIONS[option])
    with pytest.raises(ValueError, match="2 codebook weights were given for 3 codebooks"):
        model(**example(model), weights=Weights([1.0, 1.0]))


@torch.no_grad()
def test_codes_of_speech_that_is_written_down_can_be_left_out(make_model):
    """By hand: they cost nothing then, while their text, their end and all other speech cost what they did."""
    model = make_model(text=TextConfig(WORDS, layout="timed", lookahead=2))
    a, b = 5, 6
    text = torch.tensor([[SAY, a, PAD, b, EOS, ABSENT], [WRITE, PAD, a, b, PAD, EOS], [WRITE, a, EOS, *[ABSENT] * 3]])
    inputs = {**example(model), "text": text, "given": (text == SAY) | (text == WRITE)}
    inputs["documents"] = torch.tensor([[0] * 6, [0] * 6, [0, 0, 0, 1, 1, 1]])
    ends = torch.zeros(3, 6, dtype=torch.bool)
    ends[1, 5] = ends[2, 2] = True
    output = model(**inputs, ends=ends)
    is_written = torch.zeros(3, 6, dtype=torch.bool)
    is_written[1, 1:], is_written[2, 1:3] = True, True
    left = output.nll.masked_fill(is_written[:, None], 0.0)
    total = left.sum() + 0.5 * output.text_nll.sum() + output.eos_nll.sum()
    kept = scored_part(inputs["codes"], text, inputs["given"])
    count = num_scored(model.config, kept[0], ends, kept[1])
    found = model(**inputs, ends=ends, weights=Weights(text=0.5, written_codes=False))
    torch.testing.assert_close(found.loss, total / count, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.nll, left, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.eos_nll, output.eos_nll, rtol=0, atol=1e-12)
    whole = model(**inputs, ends=ends, weights=Weights(text=0.5))
    torch.testing.assert_close(whole.nll, output.nll, rtol=0, atol=1e-12)
