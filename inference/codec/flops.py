"""Floating-point operations of real calls: torch's counter, and what it leaves out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def count_flops(work: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """-> what `work` gives, and its floating-point operations in matrix products and convolutions; a multiply-add is 2.

    With what torch's counter leaves out: LSTMs, attention on a CPU, and distances to a codebook, which are a product.
    """
    aten = torch.ops.aten
    more = {
        aten.mkldnn_rnn_layer: _mkldnn_lstm_flops,
        aten._cudnn_rnn: _cudnn_lstm_flops,
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._euclidean_dist: lambda x, y, **_: 2 * int(np.prod(x)) * y[-2],  # [.., P, D], [.., R, D]
    }
    with FlopCounterMode(display=False, custom_mapping=more) as counter:
        result = work()
    return result, counter.get_total_flops()


def _mkldnn_lstm_flops(x: Any, w_input: Any, w_hidden: Any, *_: Any, **__: Any) -> int:
    """One layer; shapes. x [T, B, D], w_input [4 H, D], w_hidden [4 H, H]."""
    return 2 * x[0] * x[1] * int(np.prod(w_input) + np.prod(w_hidden))


def _cudnn_lstm_flops(x: Any, weights: Any, *_: Any, **__: Any) -> int:
    """All layers; shapes. x [T, B, D] or [B, T, D], weights: matrices and biases."""
    return 2 * x[0] * x[1] * sum(int(np.prod(shape)) for shape in weights if len(shape) == 2)
