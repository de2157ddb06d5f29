"""Masks of torch's flex_attention. B batch, S queries, P positions."""

from typing import Any

import torch
from torch import Tensor


def flex_mask(
    batch: int, num_queries: int, num_positions: int, window: int, documents: Tensor | None, device: torch.device
) -> Any:
    """A BlockMask: position p is seen by a query that does not come before it, is in its document and near enough.

    window: positions that a query sees, its own included; 0: all. documents: [B, P], or one in every row.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    offset = num_positions - num_queries

    def sees(b: Tensor, _: Tensor, q: Tensor, position: Tensor) -> Tensor:
        query = q + offset
        seen = position <= query
        if window:
            seen = seen & (position > query - window)
        return seen if documents is None else seen & (documents[b, query] == documents[b, position])

    return create_block_mask(sees, batch, None, num_queries, num_positions, device)
