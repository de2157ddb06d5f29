"""Weights in float32, float16, bfloat16 or 8 bits: products, a model's numbers with them, and what is refused."""

import numpy as np
import pytest
import torch

from codeclm import load
from codeclm.inference.bench.subjects import Subject
from codeclm.inference.config import EvaluateConfig
from codeclm.inference.engine import generate
from codeclm.inference.evaluate.score import precision_of
from codeclm.inference.frame_step import is_supported
from codeclm.inference.fused_weights import fused_weights
from codeclm.inference.grid import Request
from codeclm.inference.precision import is_fusable, product_kind, set_weights, transformers, weights_of
from codeclm.inference.products import BFloat16, Float16, Gate, Halves, Int8, Packed, PackedBFloat16, Product, make_gate
from codeclm.inference.resources import release_memory, resident_mb
from codeclm.model import SpeechLM
from codeclm.model.device import has_fast_bf16
from codeclm.model.shapes import DepthConfig, TransformerConfig

from .options import OPTIONS, backbone, example

KINDS = [Product, Packed, Float16, BFloat16, Int8]
if has_fast_bf16(torch.device("cpu")):
    KINDS.append(PackedBFloat16)
ERROR = {"float32": 1e-5, "float16": 0.003, "bfloat16": 0.03, "int8": 0.1}  # of a product of 48 numbers around 1
SHARES = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 0.01, "int8": 0.05}  # of the nats with random weights

needs_bf16 = pytest.mark.skipif(not has_fast_bf16(torch.device("cpu")), reason="no hardware for bfloat16")
PRECISIONS = ["float32", "float16", "int8", pytest.param("bfloat16", marks=needs_bf16)]


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


# --- products ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_that_of_its_precision_in_all_its_forms(kind):
    weight, x, total = draw(48, 32) / 48**0.5, draw(5, 48), draw(5, 32)
    product, exact = kind(weight), x @ weight
    found = product(x)
    torch.testing.assert_close(found, exact, rtol=0, atol=ERROR[kind.precision])
    out, added = torch.empty(5, 32), total.clone()
    product.into(x, out)
    product.add(x, added)
    torch.testing.assert_close(out, found, rtol=0, atol=1e-5)
    torch.testing.assert_close(added, total + found, rtol=0, atol=1e-5)
    torch.testing.assert_close(product(x[:, None])[:, 0], found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gate_is_that_of_its_precision_in_both_its_forms(kind):
    gate, up, x = draw(48, 16) / 48**0.5, draw(48, 17)[:, :16] / 48**0.5, draw(5, 48)
    exact = torch.nn.functional.silu(x @ gate) * (x @ up)
    found: Gate = make_gate(gate, up, kind)
    torch.testing.assert_close(found(x), exact, rtol=0, atol=3 * ERROR[kind.precision])
    stepped = found.step(x, Halves(torch.zeros(5, 32)))
    torch.testing.assert_close(stepped, found(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [Int8, Float16])
def test_a_row_times_reduced_weights_depends_on_no_other_row_however_large(kind):
    product, x = kind(draw(48, 32)), draw(3, 48)
    x[2] = 0
    beside, x[1] = product(x), 1000 * x[1]
    together, alone = product(x), torch.cat([product(row[None]) for row in x])
    assert torch.equal(together[[0, 2]], beside[[0, 2]])
    assert not together[2].any()
    # alone it may be summed in another order
    size = alone.abs().amax(dim=1, keepdim=True).clamp_min(1)
    torch.testing.assert_close(together / size, alone / size, rtol=0, atol=1e-6)


def test_float16_rounds_the_weight_and_nothing_else():
    weight, x = draw(300, 70), draw(9, 300)
    exact = x.double() @ weight.half().double()
    torch.testing.assert_close(Float16(weight)(x), exact.float(), rtol=0, atol=1e-4)
    assert (x @ weight - exact).abs().max() > 3e-3


# --- models ---


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_fused_blocks_in_a_models_own_precision_change_no_number(make_model, name):
    model, fused = (make_model(**OPTIONS[name]) for _ in range(2))
    set_weights(fused, "float32")
    assert (weights_of(fused) == "float32") == all(map(is_fusable, transformers(model)))
    given = example(model)
    torch.testing.assert_close(fused(**given).nll, model(**given).nll, rtol=0, atol=1e-9)
    if "user" not in given:
        codes = given["codes"][0]
        own, theirs = (last(one, Request(5, codes), walk) for one, walk in ((fused, True), (model, False)))
        assert torch.equal(own.codes, theirs.codes)
        torch.testing.assert_close(own.nll, theirs.nll, rtol=0, atol=1e-9)


def last(model: SpeechLM, request: Request, fused: bool = True, seeds: tuple[int, ...] = (1, 2)):
    *_, state = generate(model, request, seeds, fused=fused)
    return state


def larger() -> dict:
    wide = dict(num_layers=2, num_heads=4, num_kv_heads=4)
    return dict(
        delays=(0,) * 4, codebook_size=64, dtype=torch.float32, backbone=TransformerConfig(dim=64, ff_dim=128, **wide),
        depth=DepthConfig(dim=64, ff_dim=128, **wide),
    )  # fmt: skip


@pytest.mark.parametrize("weights", PRECISIONS)
@torch.no_grad()
def test_generation_records_the_nats_that_likelihood_gives_at_its_precision(make_model, weights):
    model, reduced = make_model(**larger()), make_model(**larger())
    set_weights(reduced, weights, rows=2)
    assert is_supported(reduced)
    codes = torch.randint(0, 64, (4, 30), generator=torch.Generator().manual_seed(0))
    state = last(reduced, Request(30, codes))
    scored = reduced(state.codes).nll
    bound = SHARES[weights]
    # in 8 bits a number near the middle of two may be rounded to either; it evens out
    torch.testing.assert_close(state.nll.mean(), scored.mean(), rtol=max(1e-5, bound / 10), atol=0)
    torch.testing.assert_close(scored.mean(), model(state.codes).nll.mean(), rtol=bound, atol=0)
    assert (scored != model(state.codes).nll).any() or weights == "float32"


@pytest.mark.parametrize("weights", ["int8", "float16"])
@torch.no_grad()
def test_a_row_with_reduced_weights_draws_the_same_codes_alone_in_a_batch_and_by_the_walk(make_model, weights):
    model = make_model(**larger())
    set_weights(model, weights)
    codes = torch.randint(0, 64, (4, 5), generator=torch.Generator().manual_seed(0))
    together = last(model, Request(8, codes), seeds=(1, 2, 3)).codes
    for row, seed in enumerate((1, 2, 3)):
        assert torch.equal(last(model, Request(8, codes), seeds=(seed,)).codes[0], together[row])
    assert torch.equal(last(model, Request(8, codes), fused=False, seeds=(1, 2, 3)).codes, together)


def test_a_model_with_fused_blocks_holds_each_matrix_once(make_model):
    model = make_model(**larger())
    parts = transformers(model)
    matrices = sum(p.numel() for part in parts for p in part.blocks.parameters() if p.ndim == 2)
    set_weights(model, "float32")
    assert not any(p.numel() for part in parts for p in part.blocks.parameters())
    blocks = [block for part in parts for block in part.blocks]
    held = sum(x.weight.numel() for block in blocks for x in (block.qkv, block.out, block.gate.both, block.down))
    assert held == matrices
    fused = fused_weights(model)
    assert fused.depth is not None
    assert all(a is b for a, b in zip([*fused.stack.layers, *fused.depth.stack.layers], blocks, strict=True))


@pytest.mark.slow
def test_a_model_with_fused_blocks_keeps_no_memory_of_those_it_had():
    if np.isnan(resident_mb()):
        pytest.skip("this system does not tell a process's memory")
    subject = Subject("tiny", True)
    subject.load("cpu", "float32")  # what is loaded on first use is not counted
    model = subject.load("cpu")
    release_memory()
    before = resident_mb()
    set_weights(model, "float32")
    assert resident_mb() - before < 2  # MB, of a model of 45


# --- what is refused ---


def test_bfloat16_without_hardware_is_refused_with_the_factor_that_was_measured(make_model, monkeypatch):
    monkeypatch.setattr("codeclm.inference.precision.has_fast_bf16", lambda device: False)
    told = r"products take \d+ times as long as in float32 here; choose float32, float16 or int8"
    with pytest.raises(ValueError, match=told):
        set_weights(make_model(**larger()), "bfloat16")


@pytest.mark.parametrize(
    "weights, options, message",
    [
        ("int4", {}, "weights 'int4' are unknown; choose one of float32, float16, bfloat16, int8"),
        ("int8", dict(backbone=backbone(qk_norm=True)), "not there for a model with qk_norm or weight_sets"),
    ],
)
def test_weights_that_are_not_there_are_refused_and_change_nothing(make_model, weights, options, message):
    model = make_model(dtype=torch.float32, **options)
    with pytest.raises(ValueError, match=message):
        set_weights(model, weights)
    assert weights_of(model) is None


@pytest.mark.parametrize("weights", ["int8", "float16"])
def test_weights_of_fbgemm_are_refused_on_a_gpu_and_where_torch_lacks_it(monkeypatch, weights):
    with pytest.raises(ValueError, match=f"weights '{weights}' cannot be used: cuda has no kernels for them here"):
        product_kind(weights, torch.device("cuda"), torch.float32, 1)
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["qnnpack"])
    with pytest.raises(ValueError, match=f"'{weights}' cannot be used: this torch has no fbgemm; choose float32 or"):
        product_kind(weights, torch.device("cpu"), torch.float32, 1)


def test_a_model_with_other_weights_says_so_and_is_not_saved(tmp_path):
    lm = load(device="cpu", weights="int8")
    assert precision_of(lm.model, EvaluateConfig()) == "int8 weights"
    with pytest.raises(ValueError, match="of no use beside weights 'int8'"):
        precision_of(lm.model, EvaluateConfig(bf16=True))
    with pytest.raises(ValueError, match="loaded with weights='int8' cannot be saved; load it without"):
        lm.save_pretrained(tmp_path / "model")
    assert lm.to("cpu") is lm and not (tmp_path / "model").exists()
