"""model/random_bits.py: numbers of a row, whatever is beside it."""

import pytest
import torch

from codeclm.model.random_bits import chosen, dropout, fold, random_bits, row_keys

from .test_attention import COMPILER


def test_the_bits_are_those_of_splitmix64():
    """The first three numbers of the reference implementation (Vigna) for the seed 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    found = random_bits(torch.tensor([[1234567]]), 3)
    assert found.shape == (1, 1, 3) and [number % 2**64 for number in found.flatten().tolist()] == expected


def test_keys_differ_by_seed_step_row_and_purpose():
    keys = torch.cat([row_keys(seed, step, range(50)) for seed in (0, 1) for step in (0, 1, 1009)])
    assert len(torch.cat([keys, fold(keys, 0), fold(keys, 1), fold(keys, -1)]).unique()) == 4 * 300


def test_a_row_is_drawn_alone_as_among_others():
    keys, x = row_keys(0, 7, range(6)), torch.randn(6, 10, 7)
    all_rows = dropout(x, 0.3, keys)
    torch.testing.assert_close(dropout(x[1::2], 0.3, row_keys(0, 7, range(1, 6, 2))), all_rows[1::2], rtol=0, atol=0)
    torch.testing.assert_close(dropout(x[:, :4], 0.3, keys), all_rows[:, :4], rtol=0, atol=0)  # and in a shorter batch


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_share_is_chosen_in_every_row_step_and_place(share):
    found = chosen(row_keys(0, 0, range(40)), 50, 33, share).double()
    assert float(found.mean()) == pytest.approx(share, abs=0.005)
    for dim in (0, 1, 2):  # of 33 * 50, 33 * 40 and 40 * 50 each: five standard deviations
        others = [other for other in (0, 1, 2) if other != dim]
        assert float((found.mean(dim=others) - share).abs().max()) < 5 * (share * (1 - share) / 1320) ** 0.5
    pairs = (found[..., 1:] * found[..., :-1]).mean()  # neighbours are independent
    assert float(pairs) == pytest.approx(share**2, abs=0.005)


def test_dropout_keeps_the_mean():
    assert float(dropout(torch.ones(20, 100, 30), 0.25, row_keys(3, 1, range(20))).mean()) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler and Python's headers")
def test_compiled_dropout_is_the_same():
    keys, compiled = row_keys(3, 1, range(3)), torch.compile(dropout, dynamic=True)
    for shape in ((3, 12, 16), (3, 9, 10)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x, 0.3, keys), dropout(x, 0.3, keys))
