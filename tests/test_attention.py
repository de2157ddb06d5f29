"""model/attention.py: every implementation computes the same, and one that cannot is refused in a clear line."""

import math
import shutil
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_path

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from codeclm.model import SpeechLM, attention, transformer
from codeclm.model.attention import (
    AttentionChoice,
    EachDocument,
    OnGPU,
    Visibility,
    eager_attention,
    is_faster_written_out,
    prepare,
    prepare_mask,
)
from codeclm.model.flex import flex_mask
from codeclm.model.shapes import TransformerConfig
from codeclm.model.transformer import KVCache, Transformer

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [4, 4, 4, 4, 4, 4, 7, 7, 7]])
CASES = {
    "plain": dict(),
    "window": dict(window=3),
    "documents": dict(documents=DOCUMENTS),
    "window and documents": dict(window=2, documents=DOCUMENTS),
    "chunks": dict(chunks=[3, 1, 5]),
    "window and chunks": dict(window=3, chunks=[4, 1, 1, 3]),
}


def make(implementation: str, window: int = 0, dtype: torch.dtype = torch.float32) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(dim=16, num_layers=2, num_heads=4, num_kv_heads=2, ff_dim=24, sliding_window=window)
    model = Transformer(config, AttentionChoice(implementation)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype)


def run(
    implementation: str,
    window: int = 0,
    documents: Tensor | None = None,
    chunks: list[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Tensor:
    """What two layers make of 2 rows of 9 positions."""
    model = make(implementation, window, dtype).to(device)
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    if chunks is None:
        return model(x, documents=None if documents is None else documents.to(device))
    cache = KVCache(model.config, 2, 9, x)
    return torch.cat([model(part, cache) for part in x.split(chunks, dim=1)], dim=1)


@pytest.mark.parametrize("few", [0, 64])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_what_a_gpu_takes_in_place_of_sdpa_gives_the_same(case, few, monkeypatch):
    expected = run("eager", **CASES[case], dtype=torch.float64)
    monkeypatch.setattr(attention, "FEW_POSITIONS", few)
    monkeypatch.setattr(transformer, "prepare", lambda _, seen, x, size: OnGPU(seen, x, size))
    torch.testing.assert_close(run("sdpa", **CASES[case], dtype=torch.float64), expected)


@pytest.mark.slow
def test_what_a_gpu_takes_is_compiled_in_one_piece_for_any_length():
    block = make("sdpa").blocks[0]
    block.compile(dynamic=True, fullgraph=True, backend="eager")
    for num_positions in (5, 7):
        x = torch.randn(2, num_positions, 16, requires_grad=True)
        attend = OnGPU(Visibility(num_positions, num_positions), x, 4)
        found = block(x, None, attend, None, ())
        found.sum().backward()
        torch.testing.assert_close(found, block.forward(x, None, attend, None, ()))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_eager_and_sdpa_give_the_same(case):
    torch.testing.assert_close(
        run("sdpa", **CASES[case], dtype=torch.float64),
        run("eager", **CASES[case], dtype=torch.float64),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_flex_attention_uncompiled_gives_the_same(case):
    """As torch computes it without a compiler; the whole path but for the generated kernel."""
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(run("flex_attention", **CASES[case]), run("eager", **CASES[case]), rtol=0, atol=1e-5)


COMPILER = any(map(shutil.which, ("c++", "g++", "clang++"))) and Path(get_path("include"), "Python.h").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler and Python's headers")
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch compiles it for AVX2 only")
@torch.no_grad()
def test_flex_attention_compiled_gives_the_same():
    """Once, for it takes long to compile: the mask with everything in it."""
    hard = CASES["window and documents"]
    with torch._inductor.config.patch({"cpp.vec_isa_ok": True}):  # else a program is compiled only to see if one can be
        torch.testing.assert_close(run("flex_attention", **hard), run("eager", **hard), rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", ["plain", "window", "chunks", "window and chunks"])
@torch.no_grad()
def test_flash_attention_gives_the_same(case):
    pytest.importorskip("flash_attn")
    flash, sdpa = (
        run(name, **CASES[case], dtype=torch.bfloat16, device="cuda") for name in ("flash_attention_2", "sdpa")
    )
    torch.testing.assert_close(flash, sdpa, rtol=0, atol=0.1)


@pytest.mark.parametrize("window", [0, 2])
def test_documents_one_by_one_give_what_a_mask_over_all_gives_and_its_gradient(window):
    """The first is for a CPU, the second for a GPU."""
    torch.manual_seed(0)
    attention = make("sdpa", window).blocks[0].attention
    seen = Visibility(9, 9, window, DOCUMENTS)
    query, key, value = (torch.randn(2, heads, 9, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    one_by_one = prepare("sdpa", seen, query, 4)
    assert isinstance(one_by_one, EachDocument)
    alone, _ = one_by_one(attention, query, key, value)
    masked, _ = eager_attention(attention, query, key, value, seen.mask(query.device), 0.5)
    torch.testing.assert_close(alone, masked, rtol=0, atol=1e-12)
    weights = torch.randn_like(alone)
    gradients = [torch.autograd.grad((x * weights).sum(), (query, key, value)) for x in (alone, masked)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("documents", [None, DOCUMENTS])
def test_what_is_faster_in_training_on_a_cpu_gives_the_same(window, documents, monkeypatch):
    torch.manual_seed(0)
    attention = make("sdpa", window).blocks[0].attention
    inputs = [torch.randn(2, heads, 9, 4, dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2, 2)]
    weights, outputs, gradients = torch.randn(2, 9, 4, 4, dtype=torch.bfloat16), [], []
    for most in (0, 9):
        monkeypatch.setattr("codeclm.model.attention.WRITTEN_OUT", most)
        seen = Visibility(9, 9, window, documents)
        assert is_faster_written_out(seen, inputs[0]) == (most == 9)
        outputs.append(prepare("sdpa", seen, inputs[0], 4)(attention, *inputs)[0])
        gradients.append(torch.autograd.grad((outputs[-1] * weights).sum(), inputs))
    torch.testing.assert_close(*outputs, rtol=0.02, atol=0.02)
    torch.testing.assert_close(*gradients, rtol=0.05, atol=0.05)


@torch.no_grad()
def test_attention_is_softmax_over_what_is_seen():
    """The definition, one head and one query at a time."""
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 9, 6), torch.randn(2, 2, 9, 6), torch.randn(2, 2, 9, 6)
    seen = Visibility(9, 9, window=4, documents=DOCUMENTS)
    out, _ = eager_attention(torch.nn.Module(), query, key, value, seen.mask(query.device), 6**-0.5)
    for b, head, position in [(0, 0, 0), (0, 1, 5), (1, 2, 8), (1, 3, 5)]:
        places = [p for p in range(max(0, position - 3), position + 1) if DOCUMENTS[b, p] == DOCUMENTS[b, position]]
        weight = [math.exp(float(query[b, head, position] @ key[b, head // 2, p]) / 6**0.5) for p in places]
        mixed = sum(w * value[b, head // 2, p] for w, p in zip(weight, places, strict=True)) / sum(weight)
        torch.testing.assert_close(out[b, position, head], mixed, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "seen",
    [
        Visibility(9, 9),
        Visibility(9, 9, window=3),
        Visibility(4, 9),
        Visibility(4, 9, window=5),
        Visibility(9, 9, documents=DOCUMENTS),
        Visibility(9, 9, window=2, documents=DOCUMENTS),
    ],
)
def test_the_masks_of_all_implementations_say_the_same(seen):
    device = torch.device("cpu")
    queries, positions = seen.num_queries, seen.num_positions
    flex = create_mask(
        flex_mask(2, queries, positions, seen.window, seen.documents, device).mask_mod, 2, 1, queries, positions, "cpu"
    )
    mask = seen.mask(device).expand(2, 1, queries, positions)
    assert torch.equal(flex, mask)
    expected = torch.zeros_like(mask)
    for b in range(2):
        for q in range(queries):
            for p in range(positions):
                now = q + positions - queries
                near = p <= now and (not seen.window or now - p < seen.window)
                expected[b, 0, q, p] = near and (
                    seen.documents is None or bool(seen.documents[b, p] == seen.documents[b, now])
                )
    assert torch.equal(mask, expected)
    causal = mask.all() if queries == 1 else torch.equal(mask[0, 0], torch.ones(queries, positions).tril().bool())
    assert not seen.is_plain or causal


def test_flash_attention_refuses_packed_documents():
    with pytest.raises(ValueError, match="'flash_attention_2' cannot keep packed documents apart; use sdpa"):
        prepare_mask("flash_attention_2", Visibility(9, 9, documents=DOCUMENTS), torch.zeros(1))


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The implementations that the attentions ask transformers for, in order."""
    names, interface = [], attention.ALL_ATTENTION_FUNCTIONS
    original = interface.get_interface

    def note(name: str, default: object) -> object:
        names.append(name)
        return original(name, default)

    monkeypatch.setattr(interface, "get_interface", note)
    return names


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@torch.no_grad()
def test_the_choice_of_implementation_reaches_every_block(make_model, tmp_path, asked):
    model, codes = make_model(dtype=torch.float32), torch.arange(12).view(1, 3, 4) % 7
    model.save_pretrained(tmp_path)
    expected = model(codes).nll
    for name in ("eager", "sdpa", "flex_attention"):
        loaded = SpeechLM.from_pretrained(tmp_path, attn_implementation=name)
        changed = SpeechLM.from_pretrained(tmp_path)
        changed.set_attn_implementation(name)
        for one in (loaded, changed):
            short = "eager" if name == "eager" else "sdpa"  # flex's blocks of 128 are too many for K positions
            assert {block.attention.config._attn_implementation for block in one.backbone.blocks} == {name}
            blocks = one.depth_decoder.transformer.blocks
            assert {block.attention.config._attn_implementation for block in blocks} == {short}
            asked.clear()
            with torch.compiler.set_stance("force_eager"):
                torch.testing.assert_close(one(codes).nll, expected, rtol=0, atol=1e-5)
            assert asked == [name, short]  # the backbone and the depth decoder


@pytest.mark.parametrize("name", ["flash_attention_2", "nonsense"])
def test_an_implementation_that_is_missing_or_unknown_is_refused_by_name(make_model, tmp_path, name):
    if name == "flash_attention_2" and find_spec("flash_attn"):
        pytest.skip("flash_attn is installed")
    model = make_model()
    model.save_pretrained(tmp_path)
    words = "FlashAttention2.* installed" if name == "flash_attention_2" else "nonsense.*sdpa.*flex_attention"
    with pytest.raises((ImportError, ValueError), match=words):
        SpeechLM.from_pretrained(tmp_path, attn_implementation=name)
    with pytest.raises((ImportError, ValueError), match=words):
        model.set_attn_implementation(name)
