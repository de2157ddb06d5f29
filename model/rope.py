"""Rotary positions (arXiv:2104.09864). B batch, S positions, H heads, E head width."""

import torch
from torch import Tensor

from .rope_scaling import stretch
from .shapes import TransformerConfig


def rotary_tables(positions: Tensor, config: TransformerConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [S, E / 2] for integer positions [S]. Computed at each call: a buffer would not survive loading."""
    width = config.size_of_head
    exponent = torch.arange(0, width, 2, device=positions.device, dtype=torch.float64) / width
    frequency = config.rope_theta**-exponent
    if config.rope_scaling.factor != 1:
        frequency = stretch(frequency, config.rope_scaling)
    angles = positions.double()[:, None] * frequency  # [S, E / 2]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (arXiv:2104.09864) of x [B, H, S, E], halves convention."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
