"""inference/verify: every check holds for every option of the model, and a model that is broken fails it by name."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from codeclm.inference import load
from codeclm.inference.verify.checks import CHECKS, DTYPES, verify
from codeclm.inference.verify.distribution import Token, rank
from codeclm.inference.verify.findings import compare
from codeclm.inference.verify.options import OPTIONS, is_legal, pairs_of, pairwise, tiny_models
from codeclm.inference.verify.report import failures, table
from codeclm.inference.verify.sequences import fullest_rows
from codeclm.model import SpeechLM, SpeechLMConfig
from codeclm.model.flatten import TEXT
from codeclm.model.pretrained import PROMPT
from codeclm.model.shapes import DepthConfig

from .breakages import BROKEN

TINY = tiny_models()


# --- what is right ---


EVERY = [pytest.param(n, marks=[pytest.mark.slow] * (n % 4 > 0), id=tiny.name) for n, tiny in enumerate(TINY)]


@pytest.mark.parametrize("number", EVERY)
def test_all_checks_pass_for_every_option(number: int):
    tiny = TINY[number]
    dtypes = DTYPES if number % 4 == 0 else DTYPES[:1]  # `codeclm verify --every-option` does both for all
    results = verify(tiny.make(), dtypes=dtypes)
    assert failures(results) == [], table(results)
    skipped = {(result.check, result.dtype) for result in results if result.outcome == "skipped"}
    expected = {("slope", "float32")} if len(dtypes) == 2 else set()
    if not tiny.config.bos:
        expected |= {("packing", str(dtype).removeprefix("torch.")) for dtype in dtypes}
    assert {pair for pair in skipped if pair[0] != "shifts"} == expected
    assert len(results) == len(dtypes) * len(CHECKS) + 1


def test_every_two_options_that_go_together_meet_in_a_model():
    met = set().union(*map(pairs_of, pairwise()))
    for (a, many), (b, others) in itertools.combinations(OPTIONS.items(), 2):
        for pair in itertools.product(many, others):
            assert is_legal({a: pair[0], b: pair[1]}) == (frozenset({(a, pair[0]), (b, pair[1])}) in met)
    for pattern, text in itertools.product(("depth", "delay", "parallel", "flatten"), ("none", "predicted", "given")):
        assert {("pattern", pattern), ("text", text)} in met
    for delays, sets in itertools.product(OPTIONS["delays"], ("shared", "own", "schedule")):
        assert {("delays", delays), ("weight_sets", sets)} in met


def test_tiny_models_are_the_same_every_time():
    first, again = (TINY[1].make().state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert [tiny.name for tiny in tiny_models()] == [tiny.name for tiny in TINY]
    assert len({tiny.name for tiny in TINY}) == len(TINY)


def order(tiny: dict[str, Any], tokens: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Tokens by rank; those of one rank together."""
    config = SpeechLMConfig(2, 3, **tiny)
    ranks = {token: rank(config, Token(*token)) for token in tokens}
    return [[token for token in tokens if ranks[token] == place] for place in sorted(set(ranks.values()))]


def test_the_factorisation_of_each_pattern():
    codes = [(0, 0), (1, 0), (0, 1), (1, 1)]  # codebook, frame
    assert order({}, codes) == [[(0, 0)], [(1, 0)], [(0, 1)], [(1, 1)]]
    assert order({"pattern": "flatten"}, codes) == [[(0, 0)], [(1, 0)], [(0, 1)], [(1, 1)]]
    assert order({"delays": [0, 1]}, codes) == [[(0, 0)], [(0, 1)], [(1, 0)], [(1, 1)]]
    assert order({"pattern": "parallel"}, codes) == [[(0, 0), (1, 0)], [(0, 1), (1, 1)]]
    assert order({"pattern": "delay"}, codes) == [[(0, 0)], [(1, 0), (0, 1)], [(1, 1)]]
    others = [(TEXT, 0), (0, 0), (1, 0), (2, 0), (TEXT, 1)]  # (2, 0): of the user
    assert order({"user_codebooks": 1}, others) == [[token] for token in others]
    assert order({"user_codebooks": 1, "pattern": "parallel"}, others) == [others[:3], [others[3]], [others[4]]]


def test_a_model_is_left_as_it_was(make_model):
    model = make_model((0, 1, 1), dtype=torch.float32).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    verify(model)
    assert model.training and model.dtype == torch.float32 and model.config.context_frames == 512
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_nan_and_other_shapes_are_infinitely_far():
    nan = torch.tensor([0.0, float("nan")])
    assert compare(nan, nan, ["row"]).difference == float("inf")
    assert compare(torch.zeros(2), torch.zeros(2, 1), ["row"]).difference == float("inf")
    far = compare(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 3.0]]), ["row", "frame"])
    assert far.difference == 2 and far.where == "row 0, frame 1: 1 where 3 was expected"


# --- what is broken ---


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_caught_by_name(name: str, make_model, monkeypatch):
    breaks, options, fail, hold = BROKEN[name]
    decoder = DepthConfig(dim=8, num_layers=2, num_heads=2, num_kv_heads=2, ff_dim=16)
    model = make_model(codebook_size=3, depth=decoder, **options)
    assert failures(verify(model, names=fail, dtypes=DTYPES[:1])) == []
    breaks(monkeypatch)
    results = verify(model, names=fail | hold, dtypes=DTYPES[:1])
    assert set(failures(results)) == fail, table(results)
    assert all(result.detail and result.hint for result in results if result.failed)


@pytest.mark.parametrize("pattern", ["depth", "delay"])
def test_codes_and_ends_that_are_certain_pass_though_they_cost_nothing(make_model, pattern):
    model = make_model(codebook_size=3, pattern=pattern)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # so far apart that probabilities round to 1
        for weight in (model.head_0.weight, model.depth_decoder.heads if pattern == "depth" else model.heads):
            weight.copy_(300 * torch.randn(weight.shape, generator=generator))
    rows = fullest_rows(model)
    output = model(**rows.arguments())
    assert (output.nll[rows.scored_codes(model)] == 0).any()
    assert failures(verify(model, names=["every code", "steps"], dtypes=DTYPES[:1])) == []


def test_nan_weights_fail(make_model):
    model = make_model(codebook_size=3)
    with torch.no_grad():
        model.depth_decoder.heads[1, 0, 0] = float("nan")
    found = verify(model, names=["steps", "distribution", "windows"], dtypes=DTYPES[:1])
    assert failures(found) == ["distribution", "steps", "windows"]


# --- real speech ---


def test_a_model_that_was_trained_out_of_step_is_caught_on_real_speech(monkeypatch):
    generator = load()
    speech = generator.encode(PROMPT)
    (right,) = verify(generator.model, speech, names=["shifts"])
    assert right.outcome == "ok" and "bits a frame in place" in right.detail
    real = SpeechLM.forward

    def forward(self: SpeechLM, codes: Tensor, **rest: Any) -> Any:
        """As one that knows codebooks 1.. a frame late."""
        return real(self, torch.cat([codes[:, :1, :-1], codes[:, 1:, 1:]], dim=1), **rest)

    monkeypatch.setattr(SpeechLM, "forward", forward)
    (wrong,) = verify(generator.model, speech, names=["shifts"])
    assert wrong.failed and "+1 frames off" in wrong.detail and "off by one" in wrong.hint
    assert failures(verify(generator.model, speech, names=["every code"])) != []


def test_shifts_are_skipped_without_speech_or_training(make_model):
    model = make_model((0, 1, 1))
    (without,) = verify(model, names=["shifts"])
    assert without.outcome == "skipped" and "no speech" in without.detail
    speech = torch.randint(7, (3, 40), generator=torch.Generator().manual_seed(0))
    (untrained,) = verify(model, speech, names=["shifts"])
    assert untrained.outcome == "skipped" and "not trained" in untrained.detail
    (single,) = verify(make_model((0,)), speech[:1], names=["shifts"])
    assert single.outcome == "skipped" and "one codebook" in single.detail
