"""inference/sampling.py: codes are drawn from the distribution that was asked for, row by row."""

import pytest
import torch

from codeclm.inference import SamplingConfig
from codeclm.inference.noise import Noise
from codeclm.inference.sampling import batch_sampling, draw_again, sample

LIKE = torch.zeros((), dtype=torch.float64)


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
        {"text_temperature": -1.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"min_p": 1.0},
        {"repetition_share": 1.5},
        {"repetition_frames": 0},
        {"guidance": -1.0},
        {"guidance": float("nan")},
    ],
)
def test_settings_without_a_meaning_are_refused_with_their_value(settings):
    (value,) = settings.values()
    with pytest.raises(ValueError, match=str(value)):
        SamplingConfig(**settings)


def test_a_codebook_with_a_setting_that_means_nothing_is_refused_with_its_value():
    for settings, value in (({"temperature": (1.0, -2.0)}, "-2.0"), ({"top_k": (5, -3)}, "-3"), ({"top_p": ()}, "no")):
        with pytest.raises(ValueError, match=value):
            SamplingConfig(**settings)


def test_the_last_of_several_numbers_holds_for_the_codebooks_after_it():
    settings = SamplingConfig(temperature=(0.9, 0.5), top_k=7, top_p=(1.0, 0.8, 0.6))
    first, second, third, fourth = batch_sampling(settings, 2, 4, LIKE).codebooks
    assert first == (0.9, 7, 1.0, 0.0) and second == (0.5, 7, 0.8, 0.0) and third == fourth == (0.5, 7, 0.6, 0.0)
    with pytest.raises(ValueError, match="top_p has 3 numbers; this model has 2 codebooks"):
        batch_sampling(settings, 2, 2, LIKE)


MIXED = [
    SamplingConfig(0.0),
    SamplingConfig(1.0, top_k=0),
    SamplingConfig(2.0, top_k=3),
    SamplingConfig(1.5, top_k=0, top_p=0.5),
    SamplingConfig(1.5, top_k=0, min_p=0.4),
    SamplingConfig(0.7, top_k=4, top_p=0.9, min_p=0.1),
]


def test_a_row_with_settings_of_its_own_draws_as_it_does_alone():
    logits = torch.randn(300, 9, generator=torch.Generator().manual_seed(1)).double()
    rows = [MIXED[row % len(MIXED)] for row in range(300)]
    together = sample(logits, noise(300, 9), *batch_sampling(rows, 300, 1, LIKE).codebooks[0])
    for row, settings in enumerate(rows):
        (limits,) = batch_sampling(settings, 1, 1, LIKE).codebooks
        assert sample(logits[row : row + 1], noise(1, 9, seed=row), *limits)[0] == together[row], settings
    for count in (2, 4):
        with pytest.raises(ValueError, match=f"{count} sampling settings for 3 rows"):
            batch_sampling(rows[:count], 3, 1, LIKE)


def test_rows_that_agree_are_sampled_with_plain_numbers():
    found = batch_sampling([SamplingConfig(1.0, top_p=0.5), SamplingConfig(0.5, top_p=0.5)], 2, 1, LIKE)
    temperature, *others = found.codebooks[0]
    assert isinstance(temperature, torch.Tensor) and others == [100, 0.5, 0.0] and found.endless is None


def test_a_code_that_fills_the_last_frames_is_drawn_again_from_all_codes():
    logits = torch.tensor([9.0, 0.0, 0.0]).repeat(4000, 1)
    drawn = torch.zeros(4000, dtype=torch.long)
    recent = torch.tensor([[0, 1, 0, 2]]).expand(4000, 4)
    flat = torch.zeros_like(logits)
    assert torch.equal(draw_again(drawn, recent, 2, flat, noise(4000, 3)), drawn)  # twice is not more than twice
    again = draw_again(drawn, recent, 1, flat, noise(4000, 3)).bincount(minlength=3)
    assert (again - 4000 / 3).abs().max() < 150  # as the logits say, whatever the limits of the first draw were
    counts = torch.where(torch.arange(4000) % 2 == 0, 1, 2)[:, None]
    mixed = draw_again(drawn, recent, counts, flat, noise(4000, 3))
    assert (mixed[1::2] == 0).all() and (mixed[::2] != 0).sum() > 1000
