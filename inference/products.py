"""Products with a weight that stays the same, in a layout and a precision that its device multiplies fast.

    product(x)                 # x [.., in] -> x W [.., out]
    product.into(x, out)       # out = x W, of N rows
    product.add(x, total)      # total += x W, of N rows

The result of a row depends on that row alone, whatever stands beside it. precision.py says which kind a model takes.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-30  # least size of a row: zeros stay zeros
ROWS = 64  # that oneDNN lays a matrix out for; the layout serves any number


class Product:
    """As it is: any device, float32 and float64."""

    precision = "float32"

    def __init__(self, weight: Tensor):
        """weight: [in, out]."""
        # on a GPU the numbers of an output lie together (cuda_kernels.py)
        self.weight = weight.t().contiguous().t() if weight.is_cuda else weight.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight

    def into(self, x: Tensor, out: Tensor) -> None:
        torch.mm(x, self.weight, out=out)

    def add(self, x: Tensor, total: Tensor) -> None:
        total.addmm_(x, self.weight)


class OwnWeight(Product):
    """With the model's own tensor, in whatever order its numbers lie: no copy."""

    def __init__(self, weight: Tensor):
        self.weight = weight


class Packed(Product):
    """In oneDNN's layout, for a CPU."""

    dtype = torch.float32

    def __init__(self, weight: Tensor):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.t().to(self.dtype).contiguous(), ROWS)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")

    def into(self, x: Tensor, out: Tensor) -> None:
        out.copy_(self(x))

    def add(self, x: Tensor, total: Tensor) -> None:
        total.add_(self(x))


class PackedBFloat16(Packed):
    """The same in bfloat16; what it gives is in float32."""

    precision, dtype = "bfloat16", torch.bfloat16

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x.bfloat16()).float()


class BFloat16(Product):
    """In bfloat16, for a GPU; what it gives is in float32."""

    precision = "bfloat16"

    def __init__(self, weight: Tensor):
        super().__init__(weight.bfloat16())

    def __call__(self, x: Tensor) -> Tensor:
        return (x.bfloat16() @ self.weight).float()

    def into(self, x: Tensor, out: Tensor) -> None:
        out.copy_(x.bfloat16() @ self.weight)

    def add(self, x: Tensor, total: Tensor) -> None:
        total.add_(x.bfloat16() @ self.weight)


@contextmanager
def fbgemm() -> Iterator[None]:
    """Within: weights are packed for fbgemm."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


class Float16(Product):
    """In float16, multiplied in float32: only the weight is rounded. By fbgemm, for a CPU."""

    precision = "float16"

    def __init__(self, weight: Tensor):
        with fbgemm():
            self.packed = torch.ops.quantized.linear_prepack_fp16(weight.t().float().contiguous(), None)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)

    def into(self, x: Tensor, out: Tensor) -> None:
        out.copy_(self(x))

    def add(self, x: Tensor, total: Tensor) -> None:
        total.add_(self(x))


class Int8(Product):
    """8 bits for each number of W, with a scale for each column; x is rounded to 8 bits, with a scale for each row.

    By fbgemm, for a CPU. Its sums are exact; without VNNI they have room for 7 bits of x only.
    """

    precision = "int8"

    def __init__(self, weight: Tensor):
        rows = weight.t().float()
        scales = rows.abs().amax(dim=1).clamp_min(TINY).double() / 127
        with fbgemm(), warnings.catch_warnings(action="ignore"):  # torch means to remove quantized tensors, one day
            rounded = torch.quantize_per_channel(rows, scales, torch.zeros(len(rows)).long(), 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(rounded, None)
        self.zero = 128 if torch.cpu._is_vnni_supported() else 64

    def scaled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The product of x / size with W, and size [.., 1]."""
        size = torch.linalg.vector_norm(x, float("inf"), dim=-1, keepdim=True)  # 0 of a row of zeros, which stay zeros
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        return multiply(x / size, 1 / (self.zero - 1), self.zero, self.packed), size

    def __call__(self, x: Tensor) -> Tensor:
        product, size = self.scaled(x)
        return product.mul_(size)

    def into(self, x: Tensor, out: Tensor) -> None:
        torch.mul(*self.scaled(x), out=out)

    def add(self, x: Tensor, total: Tensor) -> None:
        total.addcmul_(*self.scaled(x))


def plain_product(device: torch.device, dtype: torch.dtype, rows: int = 1) -> type[Product]:
    """The kind that loses no precision. A single row gains nothing by a layout of its own."""
    has_layout = device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return Packed if has_layout and rows > 1 else Product


class Halves:
    """A buffer for N rows, and views of its two halves."""

    def __init__(self, both: Tensor):
        self.both, (self.first, self.second) = both, both.chunk(2, dim=-1)


class Gate:
    """silu(x G) * (x U), by one product."""

    def __init__(self, gate: Tensor, up: Tensor, kind: type[Product]):
        """gate, up: [in, out]."""
        self.both = kind(torch.cat([gate, up], dim=1))

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, dim=-1)
        return F.silu(gate, inplace=True).mul_(up)

    def step(self, x: Tensor, buffer: Halves) -> Tensor:
        """The same of N rows, in a buffer [N, 2 out]."""
        self.both.into(x, buffer.both)
        return F.silu(buffer.first, inplace=True).mul_(buffer.second)


class PackedGate(Gate):
    """The same by two products of oneDNN, which do all that is between them."""

    def __init__(self, gate: Tensor, up: Tensor):
        self.gate, self.up = Packed(gate).weight, Packed(up).weight

    def __call__(self, x: Tensor) -> Tensor:
        multiply: Any = torch.ops.mkldnn._linear_pointwise
        return multiply.binary(x, multiply(x, self.gate, None, "swish", [], ""), self.up, None, "mul")

    def step(self, x: Tensor, buffer: Halves) -> Tensor:
        return self(x)


def make_gate(gate: Tensor, up: Tensor, kind: type[Product]) -> Gate:
    return PackedGate(gate, up) if kind is Packed else Gate(gate, up, kind)
