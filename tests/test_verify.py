"""inference/verify: every check holds for every option of the model, and a model that is broken fails it by name."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import codeclm.inference.engine as engine
import codeclm.inference.evaluate.score as score
import codeclm.model.attention as attention
import codeclm.model.depth as depth
import codeclm.model.layout as steps
import codeclm.model.lm as lm
import codeclm.model.transformer as transformer
from codeclm.inference import load
from codeclm.inference.demo import PROMPT
from codeclm.inference.loading import save_model
from codeclm.inference.verify.checks import CHECKS, DTYPES, verify
from codeclm.inference.verify.distribution import Token, rank
from codeclm.inference.verify.findings import compare
from codeclm.inference.verify.options import OPTIONS, TinyModel, is_legal, pairs_of, pairwise, tiny_models
from codeclm.inference.verify.report import failures, table, verdict
from codeclm.inference.verify.sequences import fullest_rows
from codeclm.inference.windows import Window
from codeclm.model import SpeechLM, SpeechLMConfig
from codeclm.model.chunked_backward import _ChunkedSum
from codeclm.model.delay_pattern import ABSENT
from codeclm.model.depth import DepthDecoder
from codeclm.model.flatten import TEXT
from codeclm.model.losses import Weights
from codeclm.model.shapes import DepthConfig, TextConfig
from codeclm.model.transformer import KVCache
from codeclm.model.walk import FrameFeed, Walk
from codeclm.train.cli import main

Break = Callable[[pytest.MonkeyPatch], None]
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


def break_arrange(change: Callable[..., steps.Steps]) -> Break:
    """change(steps, config, codes) -> other steps, in the forward pass alone."""

    def breaks(patch: pytest.MonkeyPatch) -> None:
        real = lm.arrange
        patch.setattr(lm, "arrange", lambda config, codes, *rest: change(real(config, codes, *rest), config, codes))

    return breaks


def shift_targets(laid: steps.Steps, config: SpeechLMConfig, codes: Tensor) -> steps.Steps:
    return replace(laid, targets=torch.nn.functional.pad(laid.targets[:, :, 1:], (0, 1), value=ABSENT))


def drop_tail(laid: steps.Steps, config: SpeechLMConfig, codes: Tensor) -> steps.Steps:
    targets = laid.targets.clone()
    targets[:, 1:, codes.shape[2] :] = ABSENT
    return replace(laid, targets=targets)


def leak_frame(laid: steps.Steps, config: SpeechLMConfig, codes: Tensor) -> steps.Steps:
    return replace(laid, inputs=laid.targets.masked_fill(laid.targets == config.codebook_size, ABSENT))


def forget_end(laid: steps.Steps, config: SpeechLMConfig, codes: Tensor) -> steps.Steps:
    return replace(laid, targets=laid.targets.masked_fill(laid.targets == config.codebook_size, ABSENT))


def delay_hidden_states(patch: pytest.MonkeyPatch) -> None:
    real = SpeechLM.contexts

    def late(self: SpeechLM, laid: steps.Steps) -> lm.Contexts:
        x = torch.nn.functional.pad(real(self, laid).first, (0, 0, 1, -1))
        return lm.Contexts(x, x, x[:, :, None])

    patch.setattr(SpeechLM, "contexts", late)


def leak_in_step(patch: pytest.MonkeyPatch) -> None:
    """Each position of the depth decoder is given the code that it predicts."""
    real = DepthDecoder.codes_in
    patch.setattr(DepthDecoder, "codes_in", lambda self, codes: real(self, codes.roll(-1, dims=1)))


def see_the_future(patch: pytest.MonkeyPatch) -> None:
    def mask(implementation: str, seen: Any, like: Tensor) -> Tensor:
        return torch.ones(1, 1, seen.num_queries, seen.num_positions, dtype=torch.bool)

    patch.setattr(attention, "prepare_mask", mask)


def ignore_documents(patch: pytest.MonkeyPatch) -> None:
    real = attention.prepare_mask
    patch.setattr(attention, "prepare_mask", lambda how, seen, like: real(how, replace(seen, documents=None), like))


def write_cache_too_early(patch: pytest.MonkeyPatch) -> None:
    real = KVCache.append

    def append(self: KVCache, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        length, end = self.length, self.length + key.shape[2]
        self.length = max(length - 1, 0)
        real(self, layer, key, value)
        self.length = length
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    patch.setattr(KVCache, "append", append)


def turn_cached_positions_too_little(patch: pytest.MonkeyPatch) -> None:
    real = transformer.rotary_tables
    patch.setattr(
        transformer, "rotary_tables", lambda places, *rest: real(places - int(len(places) < 3 < places[-1]), *rest)
    )


def score_padding(patch: pytest.MonkeyPatch) -> None:
    real = lm.cross_entropy
    for module in (lm, depth):
        patch.setattr(module, "cross_entropy", lambda logits, targets, z=0.0: real(logits, targets.clamp_min(0), z))


def end_after_the_padding(patch: pytest.MonkeyPatch) -> None:
    def last_frames(codes: Tensor) -> Tensor:
        last = torch.zeros_like(codes[:, 0], dtype=torch.bool)
        last[:, -1] = True
        return last

    patch.setattr(steps, "last_frames", last_frames)


def leave_end_out_of_the_softmax(patch: pytest.MonkeyPatch) -> None:
    def without_end(logits: Tensor, targets: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
        nll, penalty = real(logits[..., :3], torch.where(targets == 3, ABSENT, targets), z_loss)
        return torch.where(targets == 3, real(logits, targets)[0], nll), penalty

    real = lm.cross_entropy
    patch.setattr(lm, "cross_entropy", without_end)


def keep_depth_cache(patch: pytest.MonkeyPatch) -> None:
    real = Walk._depth_logits

    def logits(self: Walk, context: Tensor, slot: int) -> Tensor:
        if self._depth_cache is None:
            self._depth_cache = getattr(self, "kept", None)
            self._condition = self.model.depth_decoder.condition(context)
        found = real(self, context, slot)
        self.kept = self._depth_cache  # type: ignore[attr-defined]
        return found

    patch.setattr(Walk, "_depth_logits", logits)


def scale_single_steps(patch: pytest.MonkeyPatch) -> None:
    real = SpeechLM.embed_frames

    def embed(self: SpeechLM, codes: Tensor, text: Tensor | None = None) -> Tensor:
        return real(self, codes, text) * (4.0 if codes.shape[2] == 1 else 1.0)

    patch.setattr(SpeechLM, "embed_frames", embed)


def ignore_user_when_stepping(patch: pytest.MonkeyPatch) -> None:
    real = Walk.step
    patch.setattr(Walk, "step", lambda self, choose, known=None, user=None: real(self, choose, known))


def ignore_gaps_when_stepping(patch: pytest.MonkeyPatch) -> None:
    real = FrameFeed.finish

    def finish(self: FrameFeed, values: dict[int, Tensor], user: Tensor | None) -> None:
        real(self, values, user)
        self.codes = torch.stack([values[k] for k in range(self.model.num_codebooks)], dim=1)

    patch.setattr(FrameFeed, "finish", finish)


def detach_depth_loss(patch: pytest.MonkeyPatch) -> None:
    real = lm.depth_loss

    def detached(*rest: Any) -> tuple[Tensor, Tensor | None]:
        nats, nll = real(*rest)
        return nats.detach(), nll

    patch.setattr(lm, "depth_loss", detached)


def detach_text(patch: pytest.MonkeyPatch) -> None:
    real = SpeechLM.text_logits
    patch.setattr(SpeechLM, "text_logits", lambda self, context: real(self, context).detach())


def lose_gradient_of_chunks(patch: pytest.MonkeyPatch) -> None:
    real = _ChunkedSum.backward

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        first, second, context, *parameters = real(ctx, *grads)
        return first, second, torch.zeros_like(context), *parameters  # type: ignore[arg-type]

    patch.setattr(_ChunkedSum, "backward", staticmethod(backward))


def weigh_the_next_codebook(patch: pytest.MonkeyPatch) -> None:
    real = Weights.of
    patch.setattr(Weights, "of", lambda self, *rest: real(self, *rest).roll(1))


def generate_with_another_context(patch: pytest.MonkeyPatch) -> None:
    real = engine.windows
    patch.setattr(engine, "windows", lambda num_frames, context: real(num_frames, context + 2))


def forget_the_first_frame(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lm, "given_first", lambda place, lags, present: torch.zeros_like(present))


def end_in_the_full_window(patch: pytest.MonkeyPatch) -> None:
    """Scoring takes EOS in the window of the last frame, though generation draws it in the next one."""
    real = score.windows

    def windows(num_frames: int, context_frames: int, last: int | None = None) -> list[Window]:
        found = real(num_frames, context_frames)
        return [replace(window, ends=last is not None and window.first <= last < window.stop) for window in found]

    patch.setattr(score, "windows", windows)


def draw_beyond_the_edge(patch: pytest.MonkeyPatch) -> None:
    """Codebook 0 goes on beyond the last frame, so that lagging codebooks see what scoring does not."""
    real = engine.Step.known

    def known(self: engine.Step) -> dict[int, Tensor]:
        beyond = self.column - self.model.config.delays[0] >= self.window.stop
        return real(self) | ({0: torch.zeros_like(self.state.end)} if beyond else {})

    patch.setattr(engine.Step, "known", known)


PLAIN: dict[str, Any] = {}
DELAYED: dict[str, Any] = {"delays": (0, 1, 2)}
WITH_TEXT: dict[str, Any] = {"text": TextConfig(5, tied=True)}
FLAT: dict[str, Any] = {"pattern": "flatten"}
COMPUTED = {"steps", "chunks", "windows"}  # one step at a time

# name: how it is broken, in which model, the checks that must fail, and those that must not
BROKEN: dict[str, tuple[Break, dict[str, Any], set[str], set[str]]] = {
    "targets shifted by one": (
        break_arrange(shift_targets), DELAYED, {"every code", "steps", "causality"}, {"padding"},
    ),
    "hidden states off by one": (
        delay_hidden_states, PLAIN, {"steps", "causality"}, {"every code", "padding"},
    ),
    "tail of the delays dropped": (
        break_arrange(drop_tail), DELAYED, {"every code", "steps"}, {"causality", "gradients"},
    ),
    "current frame leaks": (
        break_arrange(leak_frame), PLAIN, {"causality", "distribution"}, {"padding", "every code", "slope"},
    ),
    "current frame leaks, heads": (
        break_arrange(leak_frame), {"pattern": "delay"}, {"causality", "distribution"}, {"padding", "every code"},
    ),
    "code leaks in the depth decoder": (
        leak_in_step, PLAIN, {"distribution", "causality", "steps"}, {"padding", "packing"},
    ),
    "attention sees the future": (see_the_future, FLAT, {"causality"} | COMPUTED, {"every code", "slope"}),
    "document mask ignored": (
        ignore_documents, PLAIN, {"packing"}, COMPUTED | {"causality", "padding", "every code"},
    ),
    "document mask ignored, flat": (ignore_documents, FLAT, {"packing"}, COMPUTED | {"causality", "padding"}),
    "padding scored": (score_padding, DELAYED, {"padding", "every code"}, {"causality"}),
    "EOS after the padding": (end_after_the_padding, PLAIN, {"padding", "steps"}, {"causality", "every code"}),
    "EOS unscored": (
        break_arrange(forget_end), PLAIN, {"every code", "steps", "distribution"}, {"causality", "padding"},
    ),
    "EOS left out of the softmax": (
        leave_end_out_of_the_softmax, PLAIN, {"distribution", "every code"}, {"causality", "padding", "packing"},
    ),
    "cache off by one": (
        write_cache_too_early, PLAIN, COMPUTED, {"causality", "distribution", "padding", "packing", "every code"},
    ),
    "cached positions off by one": (
        turn_cached_positions_too_little, PLAIN, COMPUTED, {"causality", "padding", "packing", "every code"},
    ),
    "depth cache not reset": (keep_depth_cache, PLAIN, {"steps", "windows"}, {"causality", "every code", "padding"}),
    "embeddings scaled when stepping": (
        scale_single_steps, PLAIN, {"steps", "windows"}, {"causality", "every code", "padding", "packing"},
    ),
    "user not heard when stepping": (
        ignore_user_when_stepping, DELAYED | {"user_codebooks": 2}, {"steps", "windows"}, {"causality", "every code"},
    ),
    "gaps not filled when stepping": (
        ignore_gaps_when_stepping, DELAYED | {"gaps": "bos"}, {"steps", "windows"}, {"causality", "every code"},
    ),
    "depth loss does not back-propagate": (
        detach_depth_loss, PLAIN, {"gradients", "slope"}, {"loss", "steps", "every code"},
    ),
    "text loss does not back-propagate": (detach_text, WITH_TEXT, {"slope"}, {"loss", "gradients", "steps"}),
    "chunks lose their gradient": (lose_gradient_of_chunks, PLAIN, {"gradients", "slope"}, {"loss", "every code"}),
    "weight on the wrong codebook": (weigh_the_next_codebook, PLAIN, {"loss"}, {"every code", "steps", "gradients"}),
    "first frame free": (
        forget_the_first_frame, {"bos": False}, {"every code", "distribution"}, {"causality", "padding", "packing"},
    ),
    "EOS scored where it is not drawn": (end_in_the_full_window, PLAIN, {"windows"}, {"steps", "distribution"}),
    "drawn beyond the edge": (
        draw_beyond_the_edge, DELAYED | {"end": "never"}, {"windows"}, {"steps", "distribution"},
    ),
    "generation looks back further": (
        generate_with_another_context, DELAYED, {"windows"}, {"steps", "chunks", "causality"},
    ),
}  # fmt: skip


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


# --- the command ---


@pytest.fixture
def folder(make_model, make_codec, tmp_path):
    codec = make_codec()
    save_model(make_model((0, 1, 1), codec=codec, dtype=torch.float32), codec, tmp_path / "model")
    return tmp_path / "model"


def test_the_command_prints_a_table_and_writes_json(folder, tmp_path, capsys):
    main(["verify", str(folder), "--json", str(tmp_path / "out.json")])
    lines = capsys.readouterr().out.splitlines()
    assert "3 codebooks of 8 codes; its files are what was written (checksums.json)" in lines[0]
    assert lines[-1] == "all 11 checks passed"
    for check in CHECKS:
        (line,) = [line for line in lines if line.startswith(f"{check.name} ")]
        assert line.endswith("  ok") and check.claim in line
    assert all(len(line) <= 100 for line in lines[1:])
    (stored,) = json.loads((tmp_path / "out.json").read_text()).values()
    assert len(stored) == 2 * len(CHECKS) + 1
    assert all(row["difference"] <= row["bound"] for row in stored)


def test_the_command_ends_with_status_1_and_the_names_of_what_failed(folder, monkeypatch, capsys, tmp_path):
    break_arrange(leak_frame)(monkeypatch)
    monkeypatch.setattr("codeclm.inference.verify.options.tiny_models", lambda: TINY[-1:])
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(folder), "--every-option", "--json", str(tmp_path / "out.json")])
    assert stopped.value.code == 1
    out = capsys.readouterr().out
    last = out.splitlines()[-1]
    assert last.startswith("FAILED: ") and "on 2 of 2 models: causality, distribution" in last
    assert "the current frame leaks into its own prediction" in out and "see first: causality" in out
    assert len(json.loads((tmp_path / "out.json").read_text())) == 2


def test_the_verdict_counts_checks_and_models():
    results = verify(TinyModel("a", TINY[0].config).make(), names=["loss", "padding"], dtypes=DTYPES[:1])
    broken = [replace(result, outcome="failed") if result.check == "loss" else result for result in results]
    assert verdict({"a": results}) == "all 2 checks passed"
    assert verdict({"a": results, "b": results}) == "all 2 checks passed on 2 models"
    assert verdict({"a": broken}) == "FAILED: 1 of 2 checks: loss"
    assert verdict({"a": results, "b": broken}) == "FAILED: 1 of 2 checks on 1 of 2 models: loss"
