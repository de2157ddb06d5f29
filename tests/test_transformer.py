"""model/transformer.py: a cached step is the full pass, and nothing sees the future (in float64)."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from codeclm.model.linear import GroupedLinear
from codeclm.model.rope import Rotation, rotary_tables, rotate
from codeclm.model.rope_scaling import RopeScaling, stretch
from codeclm.model.shapes import TransformerConfig
from codeclm.model.transformer import KVCache, RMSNorm, Transformer, fused_norm

CONFIG = TransformerConfig(dim=16, num_layers=2, num_heads=4, num_kv_heads=2, ff_dim=24)


def make(config: TransformerConfig = CONFIG, dtype: torch.dtype = torch.float64) -> Transformer:
    torch.manual_seed(0)
    return Transformer(config).to(dtype).eval()


@torch.no_grad()
def randomised(model: Transformer) -> Transformer:
    """With norms and biases that are not those of the start."""
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@settings(max_examples=30)
@given(chunks=st.lists(st.integers(1, 5), min_size=1, max_size=6), kv_heads=st.sampled_from([1, 2, 4]))
@torch.no_grad()
def test_cached_steps_in_any_chunking_equal_the_full_pass(chunks, kv_heads):
    config = TransformerConfig(dim=16, num_layers=2, num_heads=4, num_kv_heads=kv_heads, ff_dim=24)
    model = make(config)
    x = torch.randn(2, sum(chunks), 16, dtype=torch.float64)
    cache = KVCache(config, 2, sum(chunks) + 3, x)
    stepped = torch.cat([model(part, cache) for part in x.split(chunks, dim=1)], dim=1)
    assert cache.length == sum(chunks)
    torch.testing.assert_close(stepped, model(x), rtol=0, atol=1e-9)


@torch.no_grad()
def test_future_positions_do_not_change_the_past_by_a_bit():
    model, x = make(), torch.randn(2, 9, 16, dtype=torch.float64)
    for position in range(9):
        changed = x.clone()
        changed[:, position] += 1
        before, after = model(x), model(changed)
        assert torch.equal(before[:, :position], after[:, :position])
        assert not (before[:, position:] == after[:, position:]).all(dim=-1).any()  # and all later ones move


@pytest.mark.parametrize("head_dim", [0, 6])
@torch.no_grad()
def test_grouped_queries_equal_repeated_key_value_heads(head_dim):
    shape = dict(dim=16, num_layers=2, num_heads=4, ff_dim=24, head_dim=head_dim, qkv_bias=True)
    grouped = make(TransformerConfig(num_kv_heads=2, **shape))
    full = make(TransformerConfig(num_kv_heads=4, **shape))
    weights = randomised(grouped).state_dict()
    width = head_dim or 4
    assert weights["blocks.0.attention.query.weight"].shape == (4 * width, 16)
    assert weights["blocks.0.attention.key.weight"].shape == (2 * width, 16)
    biases = [name for name in weights if name.startswith("blocks.1") and name.endswith("bias")]
    assert biases == [f"blocks.1.attention.{part}.bias" for part in ("query", "key", "value")]
    for name, tensor in weights.items():
        if ".key." in name or ".value." in name:
            weights[name] = tensor.unflatten(0, (2, width)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    torch.testing.assert_close(grouped(x), full(x), rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_position_sees_exactly_as_many_before_it_as_the_sliding_window_says():
    model = make(replace(CONFIG, num_layers=1, sliding_window=3))
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    before = model(x)
    for position in range(9):
        changed = x.clone()
        changed[:, position] += 1
        moved = (model(changed) - before).abs().amax(dim=2)[0] > 1e-9
        assert moved.nonzero().flatten().tolist() == list(range(position, min(position + 3, 9)))


@torch.no_grad()
def test_query_and_key_norms_take_away_the_scale_of_queries_and_keys():
    model = randomised(
        make(TransformerConfig(dim=16, num_layers=1, num_heads=4, num_kv_heads=2, ff_dim=24, qk_norm=True))
    )
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    before = model(x)
    for name, parameter in model.named_parameters():
        if "query.weight" in name or "key.weight" in name:
            parameter.mul_(10)
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-4)
    for name, parameter in model.named_parameters():
        if "query_norm" in name:
            parameter.mul_(10)
    assert (model(x) - before).abs().max() > 1e-2


@torch.no_grad()
def test_llama3_scaling_of_rope_is_that_of_transformers():
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=512)
    config = TransformerConfig(dim=128, num_heads=2, num_kv_heads=1, rope_theta=5e5, rope_scaling=scaling)
    parameters = dict(
        rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=512,
    )  # fmt: skip
    theirs = LlamaConfig(hidden_size=128, num_attention_heads=2, rope_parameters=parameters)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, torch.device("cpu"))
    plain = 5e5 ** -(torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    assert len((expected / plain).round(decimals=5).unique()) > 2  # some kept, some stretched, some between
    torch.testing.assert_close(stretch(plain, scaling), expected.double(), rtol=1e-6, atol=0)
    positions = torch.tensor([0, 1, 700])
    cos, sin = rotary_tables(positions, config, torch.float64)
    angles = positions[:, None] * expected.double()
    torch.testing.assert_close(torch.stack([cos, sin]), torch.stack([angles.cos(), angles.sin()]), rtol=0, atol=1e-4)
    assert torch.equal(stretch(plain, RopeScaling()), plain)


@torch.no_grad()
def test_what_is_attended_to_depends_on_the_order_of_the_positions():
    model, x = make(), torch.randn(1, 6, 16, dtype=torch.float64)
    swapped = x[:, [1, 0, 2, 3, 4, 5]]
    assert (model(x)[:, -1] - model(swapped)[:, -1]).abs().max() > 1e-6


@torch.no_grad()
def test_a_full_cache_says_how_much_it_holds():
    model, x = make(), torch.randn(1, 3, 16, dtype=torch.float64)
    cache = KVCache(CONFIG, 1, 5, x)
    assert cache.capacity == 5
    model(x, cache)
    with pytest.raises(ValueError, match="the cache holds 5 positions; 6 were asked for"):
        model(x, cache)


def test_rms_norm_divides_by_the_root_mean_square():
    norm = RMSNorm(16, 1e-6).double()
    torch.nn.init.uniform_(norm.weight)
    x = torch.randn(3, 16, dtype=torch.float64)
    expected = x / x.square().mean(dim=-1, keepdim=True).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected, rtol=1e-5, atol=0)
    assert torch.isfinite(norm(torch.zeros(1, 16, dtype=torch.float64))).all()
    assert torch.isfinite(RMSNorm(16, 1e-6).bfloat16()(torch.full((1, 16), 1e30, dtype=torch.bfloat16))).all()


@torch.no_grad()
def test_bfloat16_autocast_stays_near_float32():
    model, x = make(dtype=torch.float32), torch.randn(2, 9, 16)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
    exact = model(x)
    assert half.dtype == torch.bfloat16
    assert 0 < (half.float() - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("sets", [(0, 1, 2, 3), (1, 2), (2,), (0, 1, 1, 1), (3, 0, 3, 1), (0, 0)])
def test_a_linear_with_sets_of_weights_is_a_loop_over_the_positions(sets):
    linear = GroupedLinear(5, 3, 4).double()
    torch.nn.init.normal_(linear.weight)
    x = torch.randn(6, len(sets), 5, dtype=torch.float64, requires_grad=True)
    out = linear(x, sets)
    looped = torch.stack([x[:, i] @ linear.weight[one].t() for i, one in enumerate(sets)], dim=1)
    torch.testing.assert_close(out, looped, rtol=0, atol=1e-12)
    inputs, weigh = [x, linear.weight], torch.randn_like(out)
    grads = torch.autograd.grad((out * weigh).sum(), inputs)
    expected = torch.autograd.grad((looped * weigh).sum(), inputs)
    for one, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_block_compiles_as_one_graph():
    model, x = make(dtype=torch.float32), torch.randn(2, 9, 16)
    expected = model(x)
    for i, block in enumerate(model.blocks):
        model.blocks[i] = torch.compile(block, backend="eager", fullgraph=True)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)


# --- the forms that a GPU computes ---


def test_rotation_in_place_is_the_rotation_and_has_its_gradient():
    tables = rotary_tables(torch.arange(5), CONFIG, torch.float64)
    x = torch.randn(2, 5, 4, 4, dtype=torch.float64).transpose(1, 2).requires_grad_()
    torch.testing.assert_close(Rotation.apply(x, *tables), rotate(x, *tables), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: Rotation.apply(x, *tables), x)


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_the_fused_norm_is_the_norm_in_the_same_type(dtype, bound):
    norm = RMSNorm(16, 1e-3)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 7, 16, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        fused = fused_norm(x, norm.weight, 1e-3)
        assert fused.dtype == norm(x).dtype == dtype
    torch.testing.assert_close(fused, norm(x), rtol=bound, atol=bound)
