"""The training step beside transformers' CSM: what is counted, and that less work counts as less."""

import pytest
import torch

from codeclm.inference.bench.training import TrainingBench, _held_mb, bench, table
from codeclm.model.shapes import DepthConfig, TransformerConfig
from codeclm.model.speech_lm_config import SpeechLMConfig

SMALL = dict(dim=16, num_layers=2, num_heads=2, num_kv_heads=2, ff_dim=32)
CONFIG = SpeechLMConfig(
    num_codebooks=3, codebook_size=32, backbone=TransformerConfig(**SMALL), depth=DepthConfig(**SMALL)
)


def test_what_autograd_holds_is_counted_once_and_without_parameters():
    layer, x = torch.nn.Linear(250, 1000, bias=False), torch.randn(1000, 250)
    # the product saves x and the weight; each square saves what it squares
    assert _held_mb(layer, lambda: layer(x).square().square().sum()) == pytest.approx(1.0 + 4.0 + 4.0)


def test_a_share_of_the_frames_holds_less_than_all_of_them():
    costs = bench(CONFIG, TrainingBench(rows=2, frames=40, rounds=1))
    assert [cost.name.split()[0] for cost in costs] == ["transformers", "codeclm", "codeclm,"]
    assert all(cost.seconds > 0 and cost.activation_mb > 0 for cost in costs)
    assert costs[2].activation_mb <= costs[1].activation_mb < costs[0].activation_mb
    assert len(table(costs).splitlines()) >= 4
