"""train/borrowed.py: the caller's model comes back from training as it went in, in eval mode and with new weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from codeclm.data.token_store import TokenStore
from codeclm.inference.compress.codes import compress_codes
from codeclm.inference.config import SamplingConfig
from codeclm.inference.engine import generate
from codeclm.inference.evaluate.score import evaluate, score_store
from codeclm.inference.grid import Request
from codeclm.inference.verify.training import is_idle
from codeclm.model.device import has_fast_bf16
from codeclm.model.lm import SpeechLM
from codeclm.model.transformer import Block
from codeclm.train.loop import Trainer, train
from codeclm.train.new_model import new_model

from .options import DEPTHS, OPTIONS, example
from .training import SHORT

pytestmark = pytest.mark.usefixtures("one_thread")
BRIEF = replace(SHORT, steps=2, evaluate_every=1, bf16=True, dropout=0.1)


def codes_of(model: SpeechLM) -> torch.Tensor:
    *_, state = generate(model, Request(12), [0, 1], SamplingConfig())
    return state.codes


def assert_as_new(model: SpeechLM, store: TokenStore) -> None:
    """Whatever is done with `model` gives what a new model with its weights gives."""
    fresh = SpeechLM(model.config)
    fresh.load_state_dict(model.state_dict())
    fresh.eval()
    assert not model.training
    assert vars(model).keys() == vars(fresh).keys()
    scores = [score_store(one, store, progress=False) for one in (model, fresh, model)]
    assert np.array_equal(scores[0].nll, scores[1].nll) and np.array_equal(scores[0].nll, scores[2].nll)
    reports = [evaluate(one, store, "weights").model.bits_per_second for one in (model, fresh)]
    assert reports[0] == reports[1]
    assert torch.equal(codes_of(model), codes_of(fresh))
    rows = [torch.from_numpy(store.codes(i).astype(np.int64).T) for i in (0, 1)]
    # torch's own `double`, of which transformers makes a method with a warning
    packed = [compress_codes(nn.Module.double(one), rows) for one in (model, fresh)]
    assert packed[0] == packed[1]
    torch.testing.assert_close(model(rows[0][None]).nll, fresh(rows[0][None]).nll, rtol=0, atol=0)


def untouched(model: SpeechLM) -> dict:
    """What training changes about the object for a while."""
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    return {
        "blocks": [(block.dropout, block._compiled_call_impl) for block in blocks],
        "learning": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "attributes": set(vars(model)),
        "device": model.device,
    }


@pytest.fixture(params=["as this machine has it", "on any machine"])
def bfloat16(request, monkeypatch) -> None:
    """Training computes in bfloat16, so that whatever wraps the model for it is there."""
    if request.param == "on any machine":
        monkeypatch.setattr("codeclm.train.trainer.has_fast_bf16", lambda device: True)
    elif not has_fast_bf16(torch.device("cpu")):
        pytest.skip("bfloat16 is slow here, so training does not use it")


@pytest.mark.usefixtures("bfloat16")
def test_a_model_that_was_trained_gives_what_a_new_one_with_its_weights_gives(store, codec, tmp_path):
    model = new_model(store, BRIEF)
    before = untouched(model)
    trainer = Trainer(model, codec, store, tmp_path / "look", BRIEF)
    assert trainer.bf16 and before != untouched(model)
    trainer.close()
    train(model, codec, store, tmp_path / "run", BRIEF)
    assert untouched(model) == before
    assert_as_new(model, store)


def test_a_model_whose_training_failed_is_given_back(store, codec, tmp_path, monkeypatch):
    class Failed(Exception):
        pass

    def fail(self: Trainer) -> dict[str, float]:
        raise Failed

    model = new_model(store, BRIEF)
    before = untouched(model)
    monkeypatch.setattr(Trainer, "train_step", fail)
    with pytest.raises(Failed):
        train(model, codec, store, tmp_path / "run", BRIEF)
    assert untouched(model) == before
    assert_as_new(model, store)


@pytest.mark.slow
def test_what_was_compiled_for_training_is_not_left_compiled(store, codec, tmp_path, monkeypatch):
    """With dynamo's own backend: what inductor makes of it is slow to make, and no matter here."""
    compiled = []

    def compile_block(self: Block, dynamic: bool) -> None:
        compiled.append(self)
        nn.Module.compile(self, backend="eager", dynamic=dynamic)

    monkeypatch.setattr(Block, "compile", compile_block)
    model = new_model(store, BRIEF)
    before = untouched(model)
    train(model, codec, store, tmp_path / "run", replace(BRIEF, bf16=False, compile=True))
    assert len(compiled) == 2 and untouched(model) == before
    assert_as_new(model, store)


def test_parameters_that_were_frozen_stay_frozen_and_the_others_learn_again(store, codec, tmp_path):
    model = new_model(store, BRIEF)
    model.head_0.weight.requires_grad_(False)
    held, moved = model.head_0.weight.clone(), model.depth_decoder.heads.detach().clone()
    train(model, codec, store, tmp_path / "run", replace(BRIEF, bf16=False))
    assert not model.head_0.weight.requires_grad and torch.equal(model.head_0.weight, held)
    assert model.depth_decoder.heads.requires_grad and not torch.equal(model.depth_decoder.heads, moved)


# --- what cannot learn ---


def test_what_no_loss_reaches_is_what_the_certificate_calls_idle(make_model):
    from codeclm.train.borrowed import unreached

    model = make_model(delays=(0,))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(parameter)] for parameter in unreached(model)}
    idle = {name for name in names.values() if is_idle(model, name, None)}
    assert idle and idle <= found
    assert found - idle <= {"depth_decoder.embedding.weight", "depth_decoder.heads"}  # one row, and none


@pytest.mark.parametrize("name", OPTIONS)
def test_with_several_codebooks_every_parameter_is_reached(make_model, name):
    from codeclm.train.borrowed import unreached

    assert unreached(make_model(**OPTIONS[name])) == []


@pytest.mark.parametrize("name", [name for name, depth in DEPTHS.items() if depth.first_codebook != "depth"])
def test_rows_that_leave_the_depth_decoder_nothing_reach_it_with_zero(make_model, name):
    """A single given frame, after which only EOS is scored: another rank's rows have more, and this one must join."""
    model = make_model(bos=False, depth=DEPTHS[name])
    loss = model(**example(model, 2, 1), ends=torch.tensor([True, True])).loss
    parameters = dict(model.depth_decoder.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for part, gradient in zip(parameters, gradients, strict=True):
        assert gradient is not None and not gradient.any(), part
