"""The limits of a frame: weights that must be read and multiplied, over the rates of this machine.

Numbers from the model's shape, not from its weights. B batch, T positions that are looked back on.
"""

from dataclasses import dataclass

from ...model.cost import layer_parameters
from ...model.shapes import TransformerConfig
from ...model.speech_lm_config import SpeechLMConfig


@dataclass(frozen=True)
class FrameCost:
    """One step of every row. Weights are read once for all rows, keys and values for each."""

    backbone_weights: int  # numbers that are read once, heads and projection with them
    depth_weights: int  # numbers that the depth decoder reads, each as often as it does
    distinct_depth_weights: int  # numbers that it reads, each once: a cache may hold them
    cached_values: int  # keys and values of all rows
    flops: int  # for all rows; a multiply-add is two

    @property
    def weights(self) -> int:
        return self.backbone_weights + self.depth_weights


@dataclass(frozen=True)
class Rates:
    """Measured."""

    flops: float  # FLOP/s of a large float32 matrix product
    memory: float  # bytes/s, reading all that a frame reads
    depth: float  # bytes/s, reading the weights of the depth decoder alone


def frame_cost(config: SpeechLMConfig, batch: int, num_positions: float) -> FrameCost:
    """The cost of a frame at `num_positions`, as the frame step computes it: tables were projected beforehand."""
    backbone, depth, size = config.backbone, config.depth, config.codebook_size
    num_classes = size + (config.end == "eos")
    passes = config.num_codebooks + bool(config.text.vocab_size) if config.pattern == "flatten" else 1
    once = passes * backbone.num_layers * layer_parameters(backbone)
    if config.text.vocab_size and config.text.predicted:
        once += backbone.dim * config.text.vocab_size
    decoder = distinct = 0
    if config.pattern == "depth":
        from_backbone = depth.first_codebook == "backbone"
        positions = depth.num_positions(config.num_codebooks)
        layers = depth.num_layers * layer_parameters(depth)
        heads = depth.dim * (size * (config.num_codebooks - 1) + (0 if from_backbone else num_classes))
        once += backbone.dim * (depth.dim + (num_classes if from_backbone else 0))
        decoder = layers * positions + heads
        distinct = layers * (max(depth.weight_sets, default=0) + 1) + heads
    else:
        once += backbone.dim * (num_classes + size * (config.num_codebooks - 1))
    seen = min(num_positions, backbone.sliding_window or num_positions) * passes
    cached = round(passes * batch * seen * cached_per_position(backbone))
    queries_per_key = backbone.num_heads // backbone.num_kv_heads
    return FrameCost(once, decoder, distinct, cached, 2 * batch * (once + decoder) + 2 * cached * queries_per_key)


def cached_per_position(config: TransformerConfig) -> int:
    """Keys and values."""
    return 2 * config.num_layers * config.num_kv_heads * config.size_of_head


def limit_s(cost: FrameCost, rates: Rates, weight_bytes: int = 4) -> float:
    """Seconds that a frame takes at least: for reading or, in float32, for multiplying, whichever is longer.

    weight_bytes: of each weight; those that stay in float32 are counted alike.
    """
    once = (weight_bytes * cost.backbone_weights + 4 * cost.cached_values) / rates.memory
    reading = once + weight_bytes * cost.depth_weights / rates.depth
    return max(reading, cost.flops / rates.flops) if weight_bytes == 4 else reading
