"""One number that sizes a model and its training: `layers`, the blocks of the backbone (nanochat's --depth).

    layers   width   heads   feed-forward   depth decoder   frames of a step   learning rate   parameters (V 1024, K 8)
    4          256       4           1024     2 x 192                   4096           1e-3
    12         768      12           2560     4 x 512                  16384           2e-3    the preset "small"
    24        1536      24           5120     8 x 1024                 32768         2.8e-3

Width is 64 a layer, a head 64 wide. The batch grows as the best one does with the size (nanochat: its 0.38th power),
in powers of two, and the learning rate with its root; matrices then learn at the rate x 256 / width (train/optim.py).
"""

import math

from .shapes import DepthConfig, TransformerConfig

HEAD = 64
FEWEST, MOST = 2, 64  # layers
FRAMES, RATE = 4096, 1e-3  # in a step, and its learning rate, at 4 layers


def check_layers(layers: int) -> None:
    if not FEWEST <= layers <= MOST:
        raise ValueError(f"layers is {layers}; it must be from {FEWEST} to {MOST}, or 0: by the preset")


def shape_by_layers(layers: int) -> tuple[TransformerConfig, DepthConfig]:
    """Backbone and depth decoder."""
    width = HEAD * layers
    depth_width = HEAD * max(1, round(2 * width / 3 / HEAD))
    backbone = TransformerConfig(
        dim=width, num_layers=layers, num_heads=layers, num_kv_heads=layers, ff_dim=256 * math.ceil(width / 76.8)
    )
    heads = depth_width // HEAD
    depth = DepthConfig(
        dim=depth_width,
        num_layers=max(2, round(layers / 3)),
        num_heads=heads,
        num_kv_heads=heads,
        ff_dim=3 * depth_width,
    )
    return backbone, depth


def batch_by_layers(layers: int) -> tuple[int, float]:
    """Frames of a step, and the learning rate that goes with them."""
    times = 2 ** max(0, round(math.log2((layers / 4) ** (3 * 0.383))))
    return FRAMES * times, RATE * math.sqrt(times)
