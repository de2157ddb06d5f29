"""Matrices of a transformer: one for all positions, or a set for each (Moshi). B batch, S positions, D width."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """One weight for every position."""

    def forward(self, input: Tensor, sets: tuple[int, ...] = ()) -> Tensor:
        return F.linear(input, self.weight, self.bias)


class GroupedLinear(nn.Module):
    """A set of weights for each position, or for several: one batched product, no loop."""

    def __init__(self, dim_in: int, dim_out: int, num_sets: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_sets, dim_out, dim_in))

    def forward(self, x: Tensor, sets: tuple[int, ...]) -> Tensor:
        """x [B, S, D] and the set of each position [S] -> [B, S, D']."""
        first = sets[0]
        if sets == tuple(range(first, first + len(sets))):
            weight = self.weight[first : first + len(sets)]  # a view: the usual case copies nothing
        else:
            weight = torch.stack([self.weight[number] for number in sets])  # a list as index would go through the host
        return torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)


def make_linear(dim_in: int, dim_out: int, num_sets: int, bias: bool = False) -> nn.Module:
    return GroupedLinear(dim_in, dim_out, num_sets) if num_sets else Linear(dim_in, dim_out, bias=bias)
