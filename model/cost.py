"""What a model costs in floating-point operations, counted from its shape: a multiply-add is two.

Matrix products and attention; norms, embeddings and activations are left out (under 2 %). K codebooks, T frames.
"""

from .shapes import TransformerConfig
from .speech_lm_config import SpeechLMConfig


def layer_parameters(config: TransformerConfig) -> int:
    """Weights of the matrices of one block."""
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.size_of_head
    return config.dim * (heads + 3 * config.ff_dim)


def transformer_flops(config: TransformerConfig, num_positions: int) -> float:
    """Forward, for all of `num_positions` positions that attend causally to each other."""
    width = config.num_heads * config.size_of_head
    seen = min(num_positions, config.sliding_window or num_positions)
    attention = 4 * width * seen * num_positions / 2  # query x key and weights x value, half of each is masked
    return config.num_layers * (2 * layer_parameters(config) * num_positions + attention)


def forward_flops_per_frame(config: SpeechLMConfig, num_frames: int, depth_fraction: float = 1.0) -> float:
    """Forward of one frame in a sequence of `num_frames`. Training costs three times as much."""
    backbone, depth, num_codebooks = config.backbone, config.depth, config.num_codebooks
    width, size, text = backbone.dim, config.codebook_size, config.text
    slots = num_codebooks + bool(text.vocab_size) if config.pattern == "flatten" else 1
    total = transformer_flops(backbone, num_frames * slots) / num_frames
    if text.vocab_size and text.predicted:
        total += 2 * width * text.vocab_size
    if config.pattern != "depth":
        return total + 2 * width * size * num_codebooks
    positions = depth.num_positions(num_codebooks)
    from_backbone = depth.first_codebook == "backbone"
    # the context is projected once for all positions, or for each one that has weights of its own
    projected = positions if depth.weight_sets and depth.conditioning == "add" else 1
    if depth.embeddings != "own":
        projected += positions
    of_depth = transformer_flops(depth, positions) + 2 * width * depth.dim * projected
    of_depth += 2 * depth.dim * size * (num_codebooks - from_backbone)
    return total + depth_fraction * of_depth + 2 * width * size * from_backbone
