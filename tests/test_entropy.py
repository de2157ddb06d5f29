"""DESIGN.md section 4, number 4: on a source of known entropy a trained SpeechLM reaches it, and never goes under it.

What a pattern should reach is `MarkovSource.nll` with that pattern: the entropy for "depth" and "flatten"; for "delay"
and "parallel" more, by the information that the codes of a step have about each other.
N sequences, K codebooks, T frames.
"""

import functools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from codeclm.model import SpeechLM, SpeechLMConfig
from codeclm.model.shapes import DepthConfig, TransformerConfig

from .sources import SOURCES, MarkovSource

BACKBONE = TransformerConfig(dim=48, num_layers=1, num_heads=4, num_kv_heads=4, ff_dim=96)
DEPTH = DepthConfig(dim=32, num_layers=1, num_heads=2, num_kv_heads=2, ff_dim=64)
NUM_FRAMES = 16
STEPS, BATCH, LEARNING_RATE = 180, 64, 1e-2

Case = tuple[str, str, tuple[int, ...]]
ALL: list[Case] = [
    (source, pattern, (0, 1, 2) if pattern == "delay" else (0, 0, 0))
    for source in ("within", "across", "both")
    for pattern in ("depth", "delay", "parallel", "flatten")
]
ALL += [("zigzag", pattern, (0, 0)) for pattern in ("depth", "parallel", "flatten")]
ALL += [("zigzag", "depth", (0, 1)), ("zigzag", "delay", (0, 1)), ("zigzag", "delay", (0, 2))]
QUICK: list[Case] = [("zigzag", "depth", (0, 0)), ("zigzag", "delay", (0, 1))]
CASES = [pytest.param(*case, marks=[pytest.mark.slow] * (case not in QUICK)) for case in ALL]


@dataclass
class Trial:
    """Bits per frame of held-out sequences."""

    entropy: float  # of the source
    blind: float  # what the pattern must pay above it
    truth: Tensor  # [N] under the source
    reachable: Tensor  # [N, K] under the source, given what the pattern sees
    model: Tensor  # [N, K] under the trained model

    def paid(self) -> float:
        """What the model spends above the source."""
        return float((self.model.sum(dim=1) - self.truth).mean())


@functools.cache
def trial(name: str, pattern: str, delays: tuple[int, ...]) -> Trial:
    source = SOURCES[name]
    model, codes = train(source, pattern, delays), source.sample(2000, NUM_FRAMES, seed=2)
    with torch.no_grad():
        scored = torch.cat([model(part).nll.double() for part in codes.split(1000)])
    per_frame = 1 / NUM_FRAMES / math.log(2)
    return Trial(
        source.bits_per_frame(NUM_FRAMES),
        source.blind_bits(NUM_FRAMES, pattern, delays),
        source.nll(codes).sum(dim=(1, 2)) * per_frame,
        source.nll(codes, pattern, delays).sum(dim=2) * per_frame,
        scored.sum(dim=2) * per_frame,
    )


def train(source: MarkovSource, pattern: str, delays: tuple[int, ...]) -> SpeechLM:
    """A tiny model after STEPS batches of fresh samples; the learning rate rises for a tenth of them, then falls."""
    torch.manual_seed(0)
    config = SpeechLMConfig(source.num_codebooks, source.codebook_size, BACKBONE, DEPTH, list(delays), pattern=pattern)
    model = SpeechLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    rise = STEPS // 10
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min((n + 1) / rise, (STEPS - n) / (STEPS - rise)))
    all_steps = BATCH * (NUM_FRAMES + max(delays) + 1)  # in one chunk: fewer operations
    for codes in source.sample(STEPS * BATCH, NUM_FRAMES, seed=1).split(BATCH):
        optimizer.zero_grad()
        model(codes, depth_chunk=all_steps).loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@pytest.mark.parametrize("name, pattern, delays", CASES, ids=str)
def test_every_pattern_reaches_what_it_can_see_to_1_percent_of_the_entropy(name, pattern, delays):
    result = trial(name, pattern, delays)
    excess = float((result.model - result.reachable).sum(dim=1).mean())
    assert excess < 0.01 * result.entropy
    if pattern in ("depth", "flatten"):
        assert float(result.model.sum(dim=1).mean()) == pytest.approx(result.entropy, rel=0.03)


@pytest.mark.parametrize("name, pattern, delays", CASES, ids=str)
def test_no_codebook_goes_below_what_its_pattern_sees_on_held_out_sequences(name, pattern, delays):
    result = trial(name, pattern, delays)
    excess = result.model - result.reachable  # [N, K]: its expectation is a divergence, never negative
    standard_error = excess.std(dim=0) / len(excess) ** 0.5
    assert (excess.mean(dim=0) > -3 * standard_error).all()
    assert float(standard_error.max()) < 0.002 * result.entropy


@pytest.mark.parametrize(
    "name, pattern, delays",
    [case for case in CASES if case.values[1] == "parallel" and case.values[0] != "across"]
    + [("zigzag", "delay", (0, 1))],
    ids=str,
)
def test_what_is_paid_above_the_entropy_is_the_information_within_a_step_to_5_percent(name, pattern, delays):
    result = trial(name, pattern, delays)
    assert result.blind > 0.5
    assert result.paid() == pytest.approx(result.blind, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name, delays", [("within", (0, 1, 2)), ("both", (0, 1, 2)), ("zigzag", (0, 2))], ids=str)
def test_the_right_delays_close_the_gap_of_parallel(name, delays):
    delayed, parallel = trial(name, "delay", delays), trial(name, "parallel", (0,) * len(delays))
    assert delayed.paid() == pytest.approx(0, abs=0.03 * delayed.entropy)
    assert delayed.paid() < 0.05 * parallel.paid()
