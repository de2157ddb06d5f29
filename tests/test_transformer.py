"""model/transformer.py: a cached step is the full pass, and nothing sees the future (in float64)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codeclm.model.config import TransformerConfig
from codeclm.model.transformer import KVCache, RMSNorm, Transformer

CONFIG = TransformerConfig(dim=16, num_layers=2, num_heads=4, num_kv_heads=2, ff_dim=24)


def make(config: TransformerConfig = CONFIG, dtype: torch.dtype = torch.float64) -> Transformer:
    torch.manual_seed(0)
    return Transformer(config).to(dtype).eval()


@settings(max_examples=30, deadline=None)
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


@torch.no_grad()
def test_grouped_queries_equal_repeated_key_value_heads():
    grouped = make()
    full = make(TransformerConfig(dim=16, num_layers=2, num_heads=4, num_kv_heads=4, ff_dim=24))
    weights = grouped.state_dict()
    for name, tensor in weights.items():
        if ".key." in name or ".value." in name:
            weights[name] = tensor.view(2, 4, 16).repeat_interleave(2, dim=0).reshape(16, 16)
    full.load_state_dict(weights)
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    torch.testing.assert_close(grouped(x), full(x), rtol=0, atol=1e-12)


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


@pytest.mark.parametrize("change", [{"dim": 18}, {"dim": 12}, {"num_kv_heads": 3}])
def test_shapes_that_do_not_divide_are_refused(change):
    with pytest.raises(ValueError, match="must be"):
        TransformerConfig(**({"dim": 16, "num_heads": 4, "num_kv_heads": 2} | change))
