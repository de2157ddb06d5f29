"""inference/sampling.py: codes are drawn from the distribution that was asked for, row by row."""

import pytest
import torch

from codeclm.inference import SamplingConfig
from codeclm.inference.noise import Noise
from codeclm.inference.sampling import sample


def noise(rows: int, classes: int, seed: int = 0) -> torch.Tensor:
    (found,) = Noise(range(seed, seed + rows), [classes], torch.device("cpu")).at(0)
    return found


def test_temperature_zero_and_top_k_one_take_the_likeliest_code():
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    best = logits.argmax(dim=-1)
    assert torch.equal(sample(logits, noise(50, 9), 0.0), best)
    for limit in (dict(top_k=1), dict(top_p=1e-9), dict(min_p=0.9999)):
        assert torch.equal(sample(logits, noise(50, 9), 1.0, **limit), best)
    assert not torch.equal(sample(logits, noise(50, 9), 1.0), best)


def test_only_the_codes_that_a_limit_leaves_are_drawn_and_all_of_them():
    logits = torch.randn(9, generator=torch.Generator().manual_seed(0))
    p = (logits / 3.0).softmax(dim=0)
    order = p.argsort(descending=True)
    for top_k in (2, 5, 9, 20):
        drawn = sample(logits.repeat(2000, 1), noise(2000, 9), 3.0, top_k)
        assert set(drawn.tolist()) == set(order[:top_k].tolist())
    for top_p in (0.2, 0.6, 0.99):
        count = int((p[order].cumsum(0) < top_p).sum()) + 1  # the fewest that have this probability
        drawn = sample(logits.repeat(4000, 1), noise(4000, 9), 3.0, top_p=top_p)
        assert set(drawn.tolist()) == set(order[:count].tolist())
    for min_p in (0.3, 0.6):
        drawn = sample(logits.repeat(2000, 1), noise(2000, 9), 3.0, min_p=min_p)
        assert set(drawn.tolist()) == set((p >= min_p * p.max()).nonzero().flatten().tolist())


@pytest.mark.parametrize("temperature, top_k", [(1.0, 0), (0.5, 0), (2.0, 4)])
def test_codes_are_drawn_as_often_as_they_are_likely(temperature, top_k):
    logits = torch.tensor([1.0, 0.2, -0.5, 0.9, -1.2, 0.0])
    scaled = logits / temperature
    if top_k:
        scaled[scaled < scaled.topk(top_k).values[-1]] = float("-inf")
    draws = 20_000
    counts = sample(logits.repeat(draws, 1), noise(draws, 6), temperature, top_k).bincount(minlength=6)
    expected = draws * scaled.softmax(dim=0)
    assert (counts[expected == 0] == 0).all()
    chi_square = ((counts - expected) ** 2 / expected)[expected > 0].sum()
    assert chi_square < 20.5  # 0.1 % of fair draws with 5 degrees of freedom lie above


def test_a_rows_draw_depends_on_its_own_logits_and_seed_alone():
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    together = sample(logits, noise(6, 9), 1.0, 5)
    for row in range(6):
        assert sample(logits[row : row + 1], noise(1, 9, seed=row), 1.0, 5)[0] == together[row]


def test_extreme_logits_and_temperatures_draw_a_possible_code():
    logits = torch.tensor([[1e30, 0.0, float("-inf")], [-1e30, 0.0, float("-inf")]])
    for temperature in (1e-6, 1e6):
        assert (sample(logits, noise(2, 3), temperature) < 2).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"depth_temperature": -1.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"min_p": 1.0},
    ],
)
def test_settings_without_a_meaning_are_refused_with_their_value(settings):
    (value,) = settings.values()
    with pytest.raises(ValueError, match=str(value)):
        SamplingConfig(**settings)
