"""tests/sources.py: its closed forms against the sum over all sequences, formulas done by hand and samples."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from .sources import SOURCES, Cell, MarkovSource, place


def random_source(num_codebooks: int, codebook_size: int, seed: int) -> MarkovSource:
    rng, num_states = np.random.default_rng(seed), codebook_size**num_codebooks
    rows = rng.dirichlet(np.full(num_states, 0.5), num_states) * 0.98 + 0.02 / num_states
    return MarkovSource(rows.reshape((codebook_size,) * 2 * num_codebooks))


def every_sequence(source: MarkovSource, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """All codes [V^(K T), K, T] and their probabilities, frame after frame from the definition."""
    num_codes = source.num_codebooks * num_frames
    rows = np.array(list(itertools.product(range(source.codebook_size), repeat=num_codes)))
    codes = rows.reshape(-1, source.num_codebooks, num_frames)
    probability = source.stationary[tuple(codes[:, :, 0].T)]
    for t in range(1, num_frames):
        probability = probability * source.kernel[(*codes[:, :, t - 1].T, *codes[:, :, t].T)]
    return codes, probability


def summed_nll(codes: np.ndarray, probability: np.ndarray, pattern: str, delays: tuple[int, ...]) -> np.ndarray:
    """Nats [N, K, T] of every sequence, given *all* codes whose place is before, by summing over the others."""
    cells = list(itertools.product(range(codes.shape[1]), range(codes.shape[2])))
    nll = np.empty(codes.shape)
    for cell in cells:
        seen = [other for other in cells if place(other, pattern, delays) < place(cell, pattern, delays)]

        def mass(chosen: list[Cell]) -> np.ndarray:
            values = np.stack([np.zeros(len(codes), dtype=int), *(codes[:, k, t] for k, t in chosen)], axis=1)
            _, group = np.unique(values, axis=0, return_inverse=True)
            return np.bincount(group, probability)[group]

        nll[:, *cell] = np.log(mass(seen)) - np.log(mass([*seen, cell]))
    return nll


@settings(max_examples=25)
@given(
    shape=st.sampled_from([(1, 3, 4), (2, 2, 1), (2, 2, 4), (2, 3, 3), (3, 2, 3)]),
    pattern=st.sampled_from(["depth", "delay", "parallel", "flatten"]),
    lags=st.lists(st.integers(0, 3), min_size=2, max_size=2),
    seed=st.integers(0, 1000),
)
def test_every_nll_and_its_mean_equal_the_sum_over_all_sequences(shape, pattern, lags, seed):
    num_codebooks, codebook_size, num_frames = shape
    source = random_source(num_codebooks, codebook_size, seed)
    delays = (0, *lags)[:num_codebooks] if pattern in ("depth", "delay") else (0,) * num_codebooks
    codes, probability = every_sequence(source, num_frames)
    assert probability.sum() == pytest.approx(1, abs=1e-12)
    expected = summed_nll(codes, probability, pattern, delays)
    nll = source.nll(torch.from_numpy(codes), pattern, delays).numpy()
    np.testing.assert_allclose(nll, expected, rtol=0, atol=1e-9)
    bits = probability @ expected.sum(axis=(1, 2)) / num_frames / math.log(2)
    assert source.bits_per_frame(num_frames, pattern, delays) == pytest.approx(bits, abs=1e-9)
    if pattern in ("depth", "flatten"):  # the chain rule, in whichever order
        np.testing.assert_allclose(nll.sum(axis=(1, 2)), -np.log(probability), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SOURCES)
def test_the_entropy_of_n_frames_is_that_of_the_first_and_the_rate_of_the_others(name):
    source, num_frames = SOURCES[name], 9
    first = -float((source.stationary * np.log2(source.stationary)).sum())
    expected = (first + (num_frames - 1) * source.entropy_rate()) / num_frames
    assert source.bits_per_frame(num_frames) == pytest.approx(expected, abs=1e-9)
    assert source.bits_per_frame(num_frames, "depth", range(source.num_codebooks)) == pytest.approx(expected, abs=1e-9)


def copy_entropy(probability: float, size: int) -> float:
    """Bits of a code that repeats another with this probability and is uniform otherwise."""
    other = (1 - probability) / size
    return -(probability + other) * math.log2(probability + other) - (size - 1) * other * math.log2(other)


def test_entropy_rates_and_blind_bits_equal_formulas_done_by_hand():
    within, across, zigzag = copy_entropy(0.8, 4), [copy_entropy(p, 4) for p in (0.8, 0.7, 0.6)], copy_entropy(0.8, 6)
    assert SOURCES["within"].entropy_rate() == pytest.approx(2 + 2 * within, abs=1e-9)
    assert SOURCES["across"].entropy_rate() == pytest.approx(sum(across), abs=1e-9)
    assert SOURCES["zigzag"].entropy_rate() == pytest.approx(2 * zigzag, abs=1e-9)
    assert SOURCES["within"].blind_bits(5, "parallel") == pytest.approx(2 * (2 - within), abs=1e-9)
    # codebook 1 alone repeats itself of one frame ago with 0.8^2; the first frame has nothing to repeat
    expected = (4 * (copy_entropy(0.64, 6) - zigzag) + math.log2(6) - zigzag) / 5
    assert SOURCES["zigzag"].blind_bits(5, "parallel") == pytest.approx(expected, abs=1e-9)


def test_what_parallel_cannot_see_is_the_information_of_the_codebooks_given_the_frame_before():
    source = random_source(3, 3, seed=1)
    alone = 0.0
    for k in range(3):
        others = tuple(3 + j for j in range(3) if j != k)
        p = source.kernel.sum(axis=others)  # [V, V, V, V]: codebook k given the frame before
        alone -= float((source.stationary[..., None] * p * np.log2(p)).sum())
    blind = 50 * source.blind_bits(50, "parallel") - 49 * source.blind_bits(49, "parallel")  # of the last frame
    assert blind == pytest.approx(alone - source.entropy_rate(), abs=1e-9)
    assert blind > 0.1


def test_only_dependence_within_a_step_is_hidden():
    blind = {name: source.blind_bits(16, "parallel") for name, source in SOURCES.items()}
    assert blind["across"] == pytest.approx(0, abs=1e-9)
    assert min(blind["within"], blind["both"], blind["zigzag"]) > 0.5
    for name in ("within", "across", "both"):
        assert SOURCES[name].blind_bits(16, "delay", (0, 1, 2)) == pytest.approx(0, abs=1e-9)
    assert SOURCES["zigzag"].blind_bits(16, "delay", (0, 1)) > 0.5
    assert SOURCES["zigzag"].blind_bits(16, "delay", (0, 2)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("pattern, delays", [("flatten", ()), ("parallel", ()), ("delay", (0, 1, 2))])
def test_the_mean_nll_of_samples_is_the_expectation(pattern, delays):
    source = random_source(3, 2, seed=2)
    codes = source.sample(20_000, 5, seed=0)
    assert codes.shape == (20_000, 3, 5) and codes.dtype == torch.int64
    bits = source.nll(codes, pattern, delays).sum(dim=(1, 2)) / 5 / math.log(2)
    standard_error = float(bits.std()) / len(bits) ** 0.5
    assert abs(float(bits.mean()) - source.bits_per_frame(5, pattern, delays)) < 4 * standard_error
    assert standard_error < 0.005


@pytest.mark.parametrize("frame", [0, 4])
def test_every_frame_of_the_samples_has_the_stationary_distribution(frame):
    source = random_source(2, 3, seed=3)
    codes = source.sample(20_000, 5, seed=1)[:, :, frame].numpy()
    seen = np.bincount(np.ravel_multi_index(tuple(codes.T), (3, 3)), minlength=9) / 20_000
    expected = source.stationary.ravel()
    assert (np.abs(seen - expected) < 4 * np.sqrt(expected / 20_000)).all()
    assert expected.max() > 1.3 / 9


def test_samples_are_those_of_their_seed():
    source = SOURCES["both"]
    assert torch.equal(source.sample(3, 4, seed=5), source.sample(3, 4, seed=5))
    assert not torch.equal(source.sample(3, 4, seed=5), source.sample(3, 4, seed=6))
