"""Another machine's rounding, imitated: `CODECLM_ROUNDING=SEED pytest ...` (tests/conftest.py turns it on).

Products, norms and softmaxes are off by up to two units in the last place, as they are on another CPU or with another
number of threads. What is off by how much depends on the operation, the shapes, the strides and the alignment of its
tensors alone: the same computation repeated gives the same bits, another way to compute the same does not. A test that
fails under it asks for bits that no machine owes us. Plain sums stay as they are: torch adds the numbers of a row in
one order. Not seen: other processes, compiled code, numpy.
"""

import os
import zlib
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SEED = os.environ.get("CODECLM_ROUNDING", "")
ROUNDED = {
    "mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "mkldnn_rnn_layer", "_euclidean_dist",
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward",
    "_scaled_dot_product_attention_math_for_mps", "_softmax", "_softmax_backward_data", "_log_softmax",
    "_log_softmax_backward_data", "logsumexp", "var_mean", "linalg_vector_norm",
    "native_layer_norm", "native_group_norm", "_fused_rms_norm",
    "_fft_r2c", "_fft_c2r", "index_add_",
}  # fmt: skip


class OtherRounding(TorchDispatchMode):
    supports_higher_order_operators = True  # which pass through as they are

    def __init__(self, seed: str):
        super().__init__()
        self.seed = seed
        self.factors: dict[tuple[Any, ...], torch.Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if getattr(func, "overloadpacket", func).__name__ in ROUNDED:
            key = str(func), *(_layout(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor))
            for number, out in enumerate(tree_leaves(found)):
                if isinstance(out, torch.Tensor) and type(out) is torch.Tensor and out.is_floating_point():
                    self.nudge(out, (*key, number))
        return found

    def nudge(self, out: torch.Tensor, key: tuple[Any, ...]) -> None:
        """Whole numbers stay: what is counted in floats is counted alike everywhere."""
        key = *key, tuple(out.shape), out.dtype
        if key not in self.factors:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {key}".encode()))
            units, eps = torch.randint(-2, 3, out.shape, generator=generator), torch.finfo(out.dtype).eps
            if eps > 1e-6:  # sums are kept in float32, so that few of them land on another bfloat16
                units = units.sign() * (torch.rand(out.shape, generator=generator) < 0.02)
            self.factors[key] = 1 + units.to(out.dtype) * eps
        with torch.no_grad():
            out.copy_(torch.where(out == out.round(), out, out * self.factors[key]))


def _layout(x: torch.Tensor) -> tuple[Any, ...]:
    return tuple(x.shape), x.stride(), x.dtype, x.data_ptr() % 64 if x.device.type == "cpu" else 0
