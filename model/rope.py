"""Rotary positions (arXiv:2104.09864). B batch, S positions, H heads, E head width."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    if x.is_cuda and not torch.compiler.is_compiling():
        return Rotation.apply(x, cos, sin)  # pyright: ignore[reportReturnType]
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Rotation(torch.autograd.Function):
    """`rotate` in 4 kernels for either direction in place of 7 and 8, which keeps no activation: for a GPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, -1), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """x by the angles, or with sign -1 back."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.empty_like(x)
    low, high = turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=low).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=high).addcmul_(first, sin, value=sign)
    return turned
