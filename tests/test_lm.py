"""model/lm.py: what DESIGN.md section 4 demands of the likelihood. Float64 throughout."""

import itertools
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel

from codeclm.inference.loading import load_speech_lm
from codeclm.model import SpeechLM, SpeechLMConfig
from codeclm.model.delay_pattern import ABSENT, delay, undelay
from codeclm.model.transformer import KVCache

DELAYS = [[0, 0, 0], [0, 1, 1], [1, 1, 3], [1, 1, 1], [0], [1]]
SIZE = 7


def random_codes(*shape: int, size: int = SIZE) -> Tensor:
    return torch.randint(0, size, shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def step_by_step(model: SpeechLM, codes: Tensor) -> tuple[Tensor, Tensor]:
    """(nll [B, K, T], eos_nll [B]) of whole rows, from cached steps of the backbone and of the depth decoder."""
    batch, num_codebooks, num_frames = codes.shape
    lag = model.config.delays[0]
    steps = delay(codes, model.config.delays)
    room = max(0, num_frames + lag + 1 - steps.shape[2])  # for EOS
    steps = torch.nn.functional.pad(steps, (0, room), value=ABSENT)
    cache = KVCache(model.config.backbone_config, batch, steps.shape[2], model.head_0.weight)
    nll, eos = torch.zeros(steps.shape, dtype=torch.float64), torch.zeros(batch, dtype=torch.float64)
    before = torch.full_like(steps[:, :, :1], model.bos)
    for s in range(steps.shape[2]):
        logits, context = model.start_step(before, cache)
        depth_cache = KVCache(model.config.depth_config, batch, num_codebooks, logits)
        for k in range(num_codebooks):
            if k:
                logits = model.depth_step(context, steps[:, k - 1, s], k, depth_cache)
            log_p = logits.log_softmax(dim=-1)
            if 0 <= s - model.config.delays[k] < num_frames:
                nll[:, k, s] = -log_p.gather(1, steps[:, k, s : s + 1])[:, 0]
            elif k == 0 and s == num_frames + lag:
                eos = -log_p[:, model.eos]
        before = steps[:, :, s : s + 1]
    nll = nll[:, :, : num_frames + max(model.config.delays)]
    return undelay(nll, model.config.delays), eos


@pytest.mark.parametrize("delays", DELAYS)
@torch.no_grad()
def test_step_by_step_equals_teacher_forcing(make_model, delays):
    model, codes = make_model(delays), random_codes(3, len(delays), 6)
    output = model(codes, ends=torch.ones(3, dtype=torch.bool))
    nll, eos_nll = step_by_step(model, codes)
    assert (nll > 0).all() and (eos_nll > 0).all()
    torch.testing.assert_close(output.nll, nll, rtol=0, atol=1e-9)
    torch.testing.assert_close(output.eos_nll, eos_nll, rtol=0, atol=1e-9)
    expected_loss = (nll.sum() + eos_nll.sum()) / (codes.numel() + 3)
    torch.testing.assert_close(output.loss, expected_loss, rtol=0, atol=1e-9)


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


def test_absent_embeds_to_exactly_zero(make_model):
    model = make_model()
    nothing = torch.full((2, 3, 4), ABSENT)
    assert (model.embed_frames(nothing) == 0).all()
    assert (model.embed_depth(nothing[:, :2, 0]) == 0).all()
    one = nothing.clone()
    one[:, 1] = 5
    expected = model.frame_embedding.weight[(SIZE + 1) + 5]
    torch.testing.assert_close(model.embed_frames(one), expected.expand(2, 4, -1), rtol=0, atol=0)


@pytest.mark.parametrize("delays", DELAYS)
@torch.no_grad()
def test_a_code_moves_nothing_before_it_in_the_factorisation_and_something_after_it(make_model, delays):
    model, num_codebooks, num_frames = make_model(delays), len(delays), 4
    codes, ends = random_codes(1, num_codebooks, num_frames), torch.ones(1, dtype=torch.bool)

    def place(k: int, t: int) -> tuple[int, int]:
        return t + delays[k], k

    cells = sorted(itertools.product(range(num_codebooks), range(num_frames)), key=lambda cell: place(*cell))
    base = model(codes, ends)
    for index, (k, t) in enumerate(cells):
        changed = codes.clone()
        changed[0, k, t] = (codes[0, k, t] + 1) % SIZE
        output = model(changed, ends)
        for earlier in cells[:index]:
            assert output.nll[0][earlier] == base.nll[0][earlier], (earlier, (k, t))
        assert output.nll[0, k, t] != base.nll[0, k, t]
        later = [cell for cell in cells[index + 1 :] if place(*cell)[0] > place(k, t)[0]]
        moved = [abs(output.nll[0][cell] - base.nll[0][cell]) > 1e-9 for cell in later]
        assert all(moved), (k, t)  # everything in later steps sees it through the backbone
        if k + 1 < num_codebooks and 0 <= place(k, t)[0] - delays[k + 1] < num_frames:
            finer = k + 1, place(k, t)[0] - delays[k + 1]  # and so does the next codebook of the same step
            assert abs(output.nll[0][finer] - base.nll[0][finer]) > 1e-9


@pytest.mark.parametrize("delays", [[0, 0], [0, 1], [1, 1], [1, 2]])
@torch.no_grad()
def test_the_probabilities_of_all_sequences_sum_to_one(make_model, delays):
    """Every utterance of 0, 1 or 2 frames that has ended, and every one that goes on after 2 frames.

    No codebook runs ahead of codebook 0 here: its missing code would tell of the end before EOS does.
    """
    model, size = make_model(delays, codebook_size=3), 3
    start = torch.full((1, 2, 1), model.bos)
    if delays[0]:
        start = torch.cat([start, torch.full((1, 2, delays[0]), ABSENT)], dim=2)
    cache = KVCache(model.config.backbone_config, 1, 4, model.head_0.weight)
    total = float(model.start_step(start, cache)[0].softmax(dim=-1)[0, model.eos])  # ended without a frame
    assert 0 < total < 0.9
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


def test_depth_fraction_is_unbiased_in_the_loss_and_in_every_gradient(make_model):
    """Exact: with half of 6 frames, the mean over all 20 subsets is the whole."""
    model, codes = make_model([0, 0, 0]), random_codes(2, 3, 3)
    codes[1, :, 2:] = ABSENT  # 5 frames are scored
    subsets = list(itertools.combinations(range(5), 2))

    def gradient(loss: Tensor) -> Tensor:
        model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole = model(codes).loss
    expected, losses, gradients = gradient(whole), [], []
    original = torch.randperm
    for subset in subsets:
        rest = [i for i in range(5) if i not in subset]
        torch.randperm = lambda n, device=None, order=(*subset, *rest): torch.tensor(order)
        try:
            loss = model(codes, depth_fraction=0.4).loss
        finally:
            torch.randperm = original
        gradients.append(gradient(loss))
        losses.append(loss.detach())
    assert torch.stack(losses).std() > 1e-3
    torch.testing.assert_close(torch.stack(losses).mean(), whole.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.stack(gradients).mean(dim=0), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_share_of_the_frames_is_drawn_anew_at_each_call_and_reports_no_nll(make_model):
    model, codes = make_model(), random_codes(2, 3, 10)
    torch.manual_seed(0)
    outputs = [model(codes, depth_fraction=0.25) for _ in range(400)]
    losses = torch.stack([output.loss for output in outputs])
    assert outputs[0].nll is None and outputs[0].eos_nll is None
    assert len(losses.unique()) > 300
    standard_error = float(losses.std()) / 20
    assert abs(float(losses.mean() - model(codes).loss)) < 4 * standard_error


@torch.no_grad()
def test_codebook_weights_change_the_loss_and_never_the_nll(make_model):
    model, codes, ends = make_model(), random_codes(2, 3, 5), torch.tensor([True, False])
    plain = model(codes, ends)
    weighted = model(codes, ends, codebook_weights=torch.tensor([3.0, 1.0, 0.0]))
    assert torch.equal(plain.nll, weighted.nll) and torch.equal(plain.eos_nll, weighted.eos_nll)
    sums = plain.nll.sum(dim=(0, 2))
    expected = (3 * (sums[0] + plain.eos_nll.sum()) + sums[1]) / (codes.numel() + 1)
    torch.testing.assert_close(weighted.loss, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("delays", DELAYS)
@torch.no_grad()
def test_zero_heads_give_uniform_codes(make_model, delays):
    model, codes = make_model(delays), random_codes(2, len(delays), 5)
    model.head_0.weight.zero_()
    model.depth_heads.zero_()
    output = model(codes, torch.ones(2, dtype=torch.bool))
    assert torch.allclose(output.nll[:, 0], torch.tensor(math.log(SIZE + 1), dtype=torch.float64), atol=1e-12)
    assert torch.allclose(output.nll[:, 1:], torch.tensor(math.log(SIZE), dtype=torch.float64), atol=1e-12)
    assert torch.allclose(output.eos_nll, torch.tensor(math.log(SIZE + 1), dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("delays", [[0, 0, 0], [0, 1, 1]])
def test_every_parameter_receives_a_gradient(make_model, delays):
    model = make_model(delays)
    model(random_codes(4, 3, 8), torch.ones(4, dtype=torch.bool)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("delays", [[0, 0, 0], [0, 1, 1]])
@torch.no_grad()
def test_a_saved_model_gives_the_same_numbers_through_every_loader(make_model, tmp_path, delays):
    model = make_model(delays, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    codes, ends = random_codes(2, 3, 6), torch.ones(2, dtype=torch.bool)
    expected = torch.nn.Module.double(model)(codes, ends)
    start = torch.full((1, 3, 1), model.bos)
    for loader in (SpeechLM.from_pretrained, AutoModel.from_pretrained, load_speech_lm):
        loaded = loader(tmp_path)
        assert isinstance(loaded, SpeechLM) and not loaded.training
        assert loaded.config.to_dict()["delays"] == delays
        loaded = torch.nn.Module.double(loaded)
        output = loaded(codes, ends)
        assert torch.equal(output.nll, expected.nll) and torch.equal(output.eos_nll, expected.eos_nll)
        caches = [KVCache(m.config.backbone_config, 1, 1, m.head_0.weight) for m in (model, loaded)]
        assert torch.equal(model.start_step(start, caches[0])[0], loaded.start_step(start, caches[1])[0])


def test_float64_weights_come_back_whole(make_model, tmp_path):
    model, codes = make_model(), random_codes(2, 3, 6)
    model.save_pretrained(tmp_path)
    assert torch.equal(SpeechLM.from_pretrained(tmp_path)(codes).nll, model(codes).nll)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())


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


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"delays": [0, 1]}, "delays"),
        ({"delays": [0, 1, -1]}, "delays"),
        ({"num_codebooks": 0, "delays": []}, "num_codebooks 0"),
        ({"codebook_size": 1}, "codebook_size 1"),
        ({"codec": {"fingerprnt": ""}}, "codec.fingerprint"),
    ],
)
def test_a_config_that_no_model_can_have_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SpeechLMConfig(**({"num_codebooks": 3} | settings))


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
