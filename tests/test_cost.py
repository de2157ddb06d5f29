"""model/cost.py: the operations that are counted from the shape are those that torch counts while it runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from codeclm.model import SpeechLM, SpeechLMConfig
from codeclm.model.cost import forward_flops_per_frame
from codeclm.model.shapes import DepthConfig, TextConfig, TransformerConfig

BACKBONE = TransformerConfig(dim=64, num_layers=2, num_heads=4, num_kv_heads=2, ff_dim=128)
SHAPE = {"dim": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "ff_dim": 64}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"depth": {"first_codebook": "depth", "weight_sets": (0, 1, 2, 3)}, "text": TextConfig(50)},
        {"depth": {"conditioning": "prefix", "embeddings": "shared"}},
        {"depth": {"group_size": 2}},
        {"depth": {"group_size": 3, "conditioning": "prefix", "embeddings": "wide"}},
        {"pattern": "parallel", "text": TextConfig(50)},
        {"pattern": "delay", "delays": [0, 0, 0, 0]},
        {"pattern": "flatten"},
    ],
)
@torch.no_grad()
def test_operations_counted_from_the_shape_are_those_of_a_forward_pass(options):
    depth = DepthConfig(**SHAPE | options.pop("depth", {}))
    config = SpeechLMConfig(4, 100, BACKBONE, depth, end="never", attn_implementation="eager", **options)
    model, codes = SpeechLM(config).eval(), torch.zeros(3, 4, 20, dtype=torch.long)
    text = torch.zeros(3, 20, dtype=torch.long) if config.text.vocab_size else None
    with FlopCounterMode(display=False) as counter:
        model(codes, text=text)
    counted, expected = counter.get_total_flops() / 60, forward_flops_per_frame(config, 20)
    # written-out attention multiplies the masked half too: it is the only difference
    slots = 4 if config.pattern == "flatten" else 1
    masked = 2 * 4 * 64 * (20 * slots) / 2 * slots
    if config.pattern == "depth":
        positions = depth.num_positions(4)
        masked += 2 * 4 * 32 * positions * positions / 2
    assert counted == pytest.approx(expected + masked, rel=1e-9)


def test_a_share_of_the_depth_decoder_costs_that_share():
    config = SpeechLMConfig(4, 100, BACKBONE, DepthConfig(**SHAPE))
    whole, half, none = (forward_flops_per_frame(config, 20, share) for share in (1.0, 0.5, 0.0))
    assert whole - half == pytest.approx(half - none) and half > none > 0
