"""inference/noise.py: Gumbel noise that a row, a column and a slot have to themselves."""

import math

import pytest
import torch

from codeclm.inference.noise import COLUMNS, Noise

CPU = torch.device("cpu")


def column(seeds, sizes, at: int, stream: int = 0) -> torch.Tensor:
    """[B, all classes]."""
    return torch.cat(list(Noise(seeds, sizes, CPU, stream).at(at)), dim=-1)


def test_a_row_has_the_same_noise_in_any_batch_and_whatever_columns_were_asked_for():
    together = Noise([7, 8, 2**70, -3], [5, 4, 4], CPU)
    for at in (0, 3, COLUMNS, 5, 10 * COLUMNS + 1):
        parts = together.at(at)
        assert [part.shape for part in parts] == [(4, 5), (4, 4), (4, 4)]
        for row, seed in enumerate((7, 8, 2**70, -3)):
            alone = Noise([seed], [5, 4, 4], CPU).at(at)
            assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, parts, strict=True))


def test_it_has_the_moments_and_the_tails_of_a_gumbel_distribution():
    x = torch.cat([column(range(4), [4096], at) for at in range(40)]).flatten().double()
    assert x.isfinite().all()
    assert x.mean() == pytest.approx(0.57722, abs=0.005)
    assert x.var() == pytest.approx(math.pi**2 / 6, abs=0.01)
    uniform = (-(-x).exp()).exp()
    counts = torch.histc(uniform, 64, 0, 1)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 103  # 0.1 % of fair ones lie above


def test_seeds_columns_slots_and_streams_have_nothing_in_common():
    seeds = [0, 1, 2, 1 << 32, -1]
    rows = [*column(seeds, [2000, 2000], 0), *column(seeds, [2000, 2000], 1), *column(seeds, [2000, 2000], 0, stream=1)]
    slots = torch.stack(rows).unflatten(1, (2, 2000)).flatten(0, 1)  # [30, 2000]
    off = torch.corrcoef(slots) - torch.eye(len(slots))
    assert off.abs().max() < 0.11  # 5 standard deviations
