"""inference/sampling.py: codes are drawn from the distribution that was asked for, row by row."""

import pytest
import torch

from codeclm.inference import SamplingConfig
from codeclm.inference.sampling import exponential_noise, sample


def noise(rows: int, classes: int, seed: int = 0) -> torch.Tensor:
    return exponential_noise([torch.Generator().manual_seed(seed + row) for row in range(rows)], classes)


def test_temperature_zero_and_top_k_one_take_the_likeliest_code():
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    best = logits.argmax(dim=-1)
    assert torch.equal(sample(logits, 0.0, 0, noise(50, 9)), best)
    assert torch.equal(sample(logits, 1.0, 1, noise(50, 9)), best)
    assert not torch.equal(sample(logits, 1.0, 0, noise(50, 9)), best)


def test_only_the_top_k_codes_are_drawn_and_all_of_them():
    logits = torch.randn(9, generator=torch.Generator().manual_seed(0))
    for top_k in (2, 5, 9, 20):
        drawn = sample(logits.repeat(2000, 1), 3.0, top_k, noise(2000, 9))
        assert set(drawn.tolist()) == set(logits.topk(min(top_k, 9)).indices.tolist())


@pytest.mark.parametrize("temperature, top_k", [(1.0, 0), (0.5, 0), (2.0, 4)])
def test_codes_are_drawn_as_often_as_they_are_likely(temperature, top_k):
    logits = torch.tensor([1.0, 0.2, -0.5, 0.9, -1.2, 0.0])
    scaled = logits / temperature
    if top_k:
        scaled[scaled < scaled.topk(top_k).values[-1]] = float("-inf")
    draws = 20_000
    generator = torch.Generator().manual_seed(5)
    rows = torch.empty(draws, 6).exponential_(generator=generator)
    counts = sample(logits.repeat(draws, 1), temperature, top_k, rows).bincount(minlength=6)
    expected = draws * scaled.softmax(dim=0)
    assert (counts[expected == 0] == 0).all()
    chi_square = ((counts - expected) ** 2 / expected)[expected > 0].sum()
    assert chi_square < 20.5  # 0.1 % of fair draws with 5 degrees of freedom lie above


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_an_error_and_not_a_code(temperature):
    logits = torch.zeros(2, 4)
    logits[1, 2] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN logits"):
        sample(logits, temperature, 0, noise(2, 4))


def test_a_rows_draw_depends_on_its_own_logits_and_seed_alone():
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    together = sample(logits, 1.0, 5, noise(6, 9))
    for row in range(6):
        assert sample(logits[row : row + 1], 1.0, 5, noise(1, 9, seed=row))[0] == together[row]


def test_extreme_logits_and_temperatures_draw_a_possible_code():
    logits = torch.tensor([[1e30, 0.0, float("-inf")], [-1e30, 0.0, float("-inf")]])
    for temperature in (1e-6, 1e6):
        assert (sample(logits, temperature, 0, noise(2, 3)) < 2).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"depth_temperature": -1.0},
        {"top_k": -1},
    ],
)
def test_settings_without_a_meaning_are_refused_with_their_value(settings):
    (value,) = settings.values()
    with pytest.raises(ValueError, match=str(value)):
        SamplingConfig(**settings)
