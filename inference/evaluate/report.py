"""What is reported of a likelihood: bits/s, perplexities, intervals, and where the numbers come from.

    nll_k = -sum_t ln p(code[k, t] | everything before it), natural log, over all T frames
    perplexity_k = exp(nll_k / T)        bits/s = frame_rate / ln 2 * sum_k nll_k / T

How the nats are got is score.py. N utterances, K codebooks, T frames.
"""

import json
import math
from dataclasses import asdict, dataclass

import numpy as np

from ..config import EvaluateConfig

DEFINITION = (
    "codeclm-bits-2: frame_rate / ln 2 * sum_k nll_k / T; every code, unweighted; "
    "BOS given (a model without: ln V for a code of the first step); EOS left out"
)
OTHER_HALF = "the other half of the same utterances"  # what baselines are counted on, without data for them
DRAWS_AT_ONCE = 2**20  # utterances drawn in the bootstrap before they are summed: 24 bytes each


@dataclass(frozen=True)
class Likelihood:
    """One model's numbers on one set of utterances."""

    bits_per_second: float
    interval: tuple[float, float]  # 95 %, bootstrap over utterances
    bits_per_frame: float
    perplexity: list[float]  # of each codebook, coarsest first
    coarse_bits_per_second: float  # of codebook 0 alone


@dataclass(frozen=True)
class LikelihoodReport:
    """What `codeclm evaluate` prints and writes."""

    definition: str
    scope: str  # which codebooks bits/s and bits/frame count: all, coarse (codebook 0) or fine (the others)
    num_codebooks: int  # leading ones that were scored
    context: str
    precision: str  # of matrix products
    model: Likelihood
    unigram: Likelihood
    bigram: Likelihood
    saved_interval: tuple[float, float]  # 95 % of the share of the bigram's bits that the model does without
    baselines_from: str
    raw_bits_per_second: float  # frame_rate * log2 V * codebooks in scope
    eos_nats: float  # mean per utterance that ends
    num_tokens: int  # text tokens that were predicted
    text_nats: float  # mean per token
    num_utterances: int
    num_frames: int
    duration_s: float
    codec: str
    codec_fingerprint: str
    data_hash: str
    checkpoint_hash: str

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """For the terminal: bits/s, its interval, and perplexities of the model and the baselines."""
        lines = [
            f"{self.num_utterances} utterances, {self.duration_s / 60:.1f} min, {self.num_frames} frames, "
            f"codec {self.codec} {self.codec_fingerprint[:12]}, data {self.data_hash[:12]}, "
            f"checkpoint {self.checkpoint_hash[:12]}",
            "",
            f"{'':10}{'bits/s':>9}{'95 % interval':>20}{'bits/frame':>12}{'coarse bits/s':>15}"
            "   perplexity of each codebook",
        ]
        for name, row in (("model", self.model), ("bigram", self.bigram), ("unigram", self.unigram)):
            interval = f"{row.interval[0]:.1f} .. {row.interval[1]:.1f}"
            perplexity = " ".join(f"{value:.1f}" for value in row.perplexity)
            lines.append(
                f"{name:10}{row.bits_per_second:9.1f}{interval:>20}{row.bits_per_frame:12.2f}"
                f"{row.coarse_bits_per_second:15.1f}   {perplexity}"
            )
        saved = 1 - self.model.bits_per_second / self.bigram.bits_per_second
        compared = f"{abs(saved):.1%} {'fewer' if saved >= 0 else 'more'} bits than the bigram"
        smaller = self.raw_bits_per_second / self.model.bits_per_second
        lines += [
            f"{'raw codes':10}{self.raw_bits_per_second:9.1f}",
            "",
            f"the model needs {compared}; the raw codes need {smaller:.2f} times the model's",
            f"EOS: {self.eos_nats:.2f} nats per utterance, not counted above",
            *([f"text: {self.text_nats:.3f} nats per token, {self.num_tokens} tokens"] if self.num_tokens else []),
            f"definition: {self.definition}; scope: {self.scope}; codebooks: {self.num_codebooks}",
            f"context: {self.context}; {self.precision}; baselines counted on {self.baselines_from}",
        ]
        return "\n".join(lines)


def likelihood(nll: np.ndarray, num_frames: np.ndarray, frame_rate: float, config: EvaluateConfig) -> Likelihood:
    """nll [N, K] nats and num_frames [N] -> the numbers, with a 95 % bootstrap interval over utterances."""
    to_bits = frame_rate / math.log(2)
    frames = num_frames.sum()
    mean = nll.sum(axis=0) / frames
    counted = _counted(config.scope)
    nats = nll[:, counted].sum(axis=1)
    return Likelihood(
        bits_per_second=float(to_bits * mean[counted].sum()),
        interval=_interval(to_bits * nats, num_frames, config),
        bits_per_frame=float(mean[counted].sum() / math.log(2)),
        perplexity=[float(value) for value in np.exp(mean)],
        coarse_bits_per_second=float(to_bits * mean[0]),
    )


def saved_interval(ours: np.ndarray, bigram: np.ndarray, config: EvaluateConfig) -> tuple[float, float]:
    """Nats [N, K] of the model and of the bigram -> 95 % interval of 1 - model / bigram, over the same utterances."""
    counted = _counted(config.scope)
    low, high = _interval(ours[:, counted].sum(axis=1), bigram[:, counted].sum(axis=1), config)
    return 1 - high, 1 - low


def _interval(above: np.ndarray, below: np.ndarray, config: EvaluateConfig) -> tuple[float, float]:
    """above, below: [N] -> 95 % bootstrap interval of sum(above) / sum(below), over utterances."""
    low, high = np.quantile(resampled_ratios(above, below, config), [0.025, 0.975])
    return float(low), float(high)


def resampled_ratios(above: np.ndarray, below: np.ndarray, config: EvaluateConfig) -> np.ndarray:
    """above, below: [N] -> sum(above) / sum(below) over N that are drawn from them again, as often as is asked for."""
    rng, resampled = np.random.default_rng(config.seed), []
    rows = max(1, DRAWS_AT_ONCE // len(above))
    for first in range(0, config.bootstrap_samples, rows):
        draws = rng.integers(0, len(above), (min(rows, config.bootstrap_samples - first), len(above)))
        resampled.append(above[draws].sum(axis=1) / below[draws].sum(axis=1))
    return np.concatenate(resampled)


def _counted(scope: str) -> slice:
    """Codebooks that a scope counts."""
    return {"all": slice(None), "coarse": slice(1), "fine": slice(1, None)}[scope]


def num_counted(num_codebooks: int, scope: str) -> int:
    """Codebooks that a scope counts. Raises ValueError for "fine" with a single codebook."""
    if scope == "fine" and num_codebooks == 1:
        raise ValueError("scope 'fine' counts codebooks 1 and up; this codec has one codebook")
    return {"all": num_codebooks, "coarse": 1, "fine": num_codebooks - 1}[scope]
