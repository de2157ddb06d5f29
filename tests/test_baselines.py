"""inference/evaluate/baselines.py: the counts reach what is known of their source."""

import numpy as np
import pytest

from codeclm.inference.evaluate.baselines import CountBaselines

SIZE = 6


def entropy(p: np.ndarray) -> float:
    return float(-(p * np.log(p)).sum())


def chain(transitions: np.ndarray, num_frames: int, seed: int) -> np.ndarray:
    """First-order Markov codes [T, 1]."""
    rng = np.random.default_rng(seed)
    cumulative, draws, codes = transitions.cumsum(axis=1), rng.random(num_frames), [0]
    for draw in draws[1:]:
        codes.append(min(SIZE - 1, int(np.searchsorted(cumulative[codes[-1]], draw))))
    return np.array(codes)[:, None]


def per_frame(baselines: CountBaselines, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    unigram, bigram = baselines.nll(codes)
    return unigram / len(codes), bigram / len(codes)


def test_on_independent_codes_bigram_and_unigram_reach_the_entropy():
    rng = np.random.default_rng(0)
    p = np.stack([rng.dirichlet(np.ones(SIZE)), rng.dirichlet(np.ones(SIZE))])
    draw = lambda n: np.stack([rng.choice(SIZE, n, p=row) for row in p], axis=1)  # noqa: E731
    baselines = CountBaselines([draw(300) for _ in range(30)], SIZE, 2)
    unigram, bigram = per_frame(baselines, draw(20_000))
    expected = [entropy(row) for row in p]
    np.testing.assert_allclose(unigram, expected, rtol=0.02)
    np.testing.assert_allclose(bigram, expected, rtol=0.02)


def test_on_a_markov_chain_the_bigram_reaches_the_entropy_rate_and_the_unigram_the_marginal_entropy():
    rng = np.random.default_rng(1)
    transitions = rng.dirichlet(np.full(SIZE, 0.3), SIZE) * 0.95 + 0.05 / SIZE
    stationary = np.linalg.matrix_power(transitions, 200)[0]
    rate = sum(weight * entropy(row) for weight, row in zip(stationary, transitions, strict=True))
    baselines = CountBaselines([chain(transitions, 400, seed) for seed in range(40)], SIZE, 1)
    unigram, bigram = per_frame(baselines, chain(transitions, 20_000, 99))
    assert rate < 0.8 * entropy(stationary)
    assert bigram[0] == pytest.approx(rate, rel=0.03)
    assert unigram[0] == pytest.approx(entropy(stationary), rel=0.03)


@pytest.mark.parametrize("num_frames", [0, 1, 2, 50])
def test_the_probabilities_of_the_next_code_sum_to_one(num_frames):
    """After every code and at the beginning, whatever little was counted."""
    rng = np.random.default_rng(0)
    baselines = CountBaselines([rng.integers(0, SIZE - 1, (num_frames, 2))], SIZE, 2)
    everything = np.repeat(np.arange(SIZE)[:, None], 2, axis=1)
    first = np.stack([baselines.nll(code[None]) for code in everything])  # [V, 2, K]
    np.testing.assert_allclose(np.exp(-first).sum(axis=0), 1, rtol=1e-6)
    for before in everything:
        alone = np.stack(baselines.nll(before[None]))
        pairs = np.stack([baselines.nll(np.stack([before, code])) for code in everything]) - alone
        np.testing.assert_allclose(np.exp(-pairs).sum(axis=0), 1, rtol=1e-6)


def test_codes_never_seen_cost_a_finite_number_of_bits():
    baselines = CountBaselines([np.zeros((30, 1), np.uint16)], 1024, 1)
    unigram, bigram = baselines.nll(np.array([[0], [1023], [5]], np.uint16))
    assert np.isfinite([unigram, bigram]).all()
    assert unigram[0] > 2 * np.log(50)
