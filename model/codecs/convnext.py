"""Causal ConvNeXt blocks over time, for whole recordings and for streams.

B batch, N frames, C channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[str, Tensor]  # one entry per layer that needs left context; empty at the start of a stream


class CausalConv(nn.Module):
    """Convolution over time that sees the past only. x [B, N, C] -> [B, N, C'].

    Depthwise when `groups` = C. With a `state`, the left context comes from there instead of being silence.
    """

    def __init__(self, key: str, dim_in: int, dim_out: int, kernel: int, groups: int = 1):
        super().__init__()
        self.key, self.context, self.groups = key, kernel - 1, groups
        self.weight = nn.Parameter(torch.empty(dim_out, dim_in // groups, 1, kernel))
        self.bias = nn.Parameter(torch.zeros(dim_out))
        nn.init.trunc_normal_(self.weight, std=1 / math.sqrt(kernel * dim_in / groups))

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        left = None if state is None else state.get(self.key)
        x = F.pad(x, (0, 0, self.context, 0)) if left is None else torch.cat([left, x], dim=1)
        if state is not None:
            state[self.key] = x[:, x.shape[1] - self.context :]
        weight, bias = self.weight, self.bias
        if x.dtype == torch.float64:
            weight, bias = weight.double(), bias.double()
            if self.groups == x.shape[2]:  # torch would go through the channels one by one
                return (x.unfold(1, self.context + 1, 1) * weight[:, 0, 0]).sum(dim=-1) + bias
        # [B, C, 1, N] with channels last in memory: several times faster on CPU than conv1d
        image = x.transpose(1, 2).unsqueeze(2)
        return F.conv2d(image, weight, bias, groups=self.groups).squeeze(2).transpose(1, 2)


class ConvNeXtBlock(nn.Module):
    """arXiv:2201.03545, over time: depthwise convolution, norm, two matrix products, residual."""

    def __init__(self, key: str, dim: int, kernel: int, expansion: int):
        super().__init__()
        self.mix = CausalConv(key, dim, dim, kernel, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, expansion * dim)
        self.down = nn.Linear(expansion * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        return x + self.scale * self.down(F.gelu(self.up(self.norm(self.mix(x, state)))))


class Trunk(nn.Module):
    """A stack of ConvNeXt blocks."""

    def __init__(self, key: str, num_layers: int, dim: int, kernel: int, expansion: int):
        super().__init__()
        self.blocks = nn.ModuleList(ConvNeXtBlock(f"{key}.{i}", dim, kernel, expansion) for i in range(num_layers))

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, state)
        return x
