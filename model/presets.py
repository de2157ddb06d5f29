"""Sizes of SpeechLMs by name."""

from typing import Literal

from .shapes import BACKBONE, DEPTH, DepthConfig, TransformerConfig

Preset = Literal["default", "tiny", "small", "base"]


# shape names -> (backbone, depth decoder)
PRESETS: dict[str, tuple[TransformerConfig, DepthConfig]] = {
    "default": (BACKBONE, DEPTH),
    "tiny": (
        TransformerConfig(dim=256, num_layers=6, num_heads=4, num_kv_heads=4, ff_dim=768),
        DepthConfig(dim=192, num_layers=2, num_heads=4, num_kv_heads=4, ff_dim=512),
    ),
    "small": (
        TransformerConfig(dim=768, num_layers=12, num_heads=12, num_kv_heads=12, ff_dim=2560),
        DepthConfig(dim=512, num_layers=4, num_heads=8, num_kv_heads=8, ff_dim=1536),
    ),
    "base": (
        TransformerConfig(dim=2048, num_layers=16, num_heads=32, num_kv_heads=8, ff_dim=8192, rope_theta=500_000.0),
        DepthConfig(dim=1024, num_layers=4, num_heads=16, num_kv_heads=4, ff_dim=2816),
    ),
}


# shapes that speech LMs' speeds are compared at: S, which no one trains, and CSM-1B's (sesame/csm-1b)
SHAPE_S = (
    TransformerConfig(dim=512, num_layers=8, num_heads=8, num_kv_heads=8, ff_dim=2048),
    DepthConfig(dim=256, num_layers=4, num_heads=4, num_kv_heads=4, ff_dim=1024),
)
SHAPE_CSM_1B = (
    TransformerConfig(dim=2048, num_layers=16, num_heads=32, num_kv_heads=8, ff_dim=8192, rope_theta=500_000.0),
    DepthConfig(
        dim=1024, num_layers=4, num_heads=8, num_kv_heads=2, head_dim=128, ff_dim=8192, rope_theta=500_000.0,
        conditioning="prefix", embeddings="shared",
    ),
)  # fmt: skip
