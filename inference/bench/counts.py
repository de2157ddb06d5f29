"""What a frame asks of the library: operations, matrix products, and times that the host waits for the device.

Counted in inference mode, so that an operation made of others counts once. No times: these numbers repeat exactly.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .engines import Engine
from .product import Call, name_of

PRODUCTS = (
    *("mm", "addmm", "linear", "matmul", "bmm", "baddbmm", "mv", "addmv", "einsum", "linear_dynamic_fp16"),
    *("_linear_pointwise", "linear_with_input_q_dq_qweight_dq_output_fp32"),
)
# the host reads a number of the device, or needs one to know a shape
SYNCS = (
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "masked_select"),
    *("unique", "unique_consecutive", "_unique2"),
)
WARM, COUNTED = 4, 8  # frames before counting, and frames that are counted


@dataclass(frozen=True)
class Counts:
    """A frame, on average."""

    operations: float
    products: float
    syncs: float
    calls: list[Call]  # the matrix products of one frame, in order


class Recorder(TorchDispatchMode):
    """Counts while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.totals = (0, 0, 0)  # operations, products, syncs
        self.calls: list[Call] = []
        self.marks: list[tuple[int, int, int]] = []

    def mark(self) -> None:
        """A frame is complete. The calls of the last one are kept, from where counting begins."""
        self.marks.append(self.totals)
        if len(self.marks) <= WARM:
            self.calls = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name, kwargs = name_of(func), kwargs or {}
        result = func(*args, **kwargs)
        is_product = name in PRODUCTS
        operations, products, syncs = self.totals
        self.totals = operations + 1, products + is_product, syncs + is_sync(name, args, result)
        if is_product and len(self.marks) == WARM:
            self.calls.append(Call(func, args, kwargs))
        return result


@torch.inference_mode()
def count(engine: Engine) -> Counts:
    """A frame's average, after some frames of warming up."""
    recorder = Recorder()
    with recorder:
        engine.run(WARM + COUNTED + 1, recorder.mark)
    first, last = recorder.marks[WARM - 1], recorder.marks[WARM + COUNTED - 1]
    operations, products, syncs = ((after - before) / COUNTED for before, after in zip(first, last, strict=True))
    return Counts(operations, products, syncs, recorder.calls)


def is_sync(name: str, args: tuple[Any, ...], result: Any) -> bool:
    if name in SYNCS:
        return True
    if name == "index":  # by a mask: how many are chosen is known on the device only
        return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    tensors = [x for x in (*args, result) if isinstance(x, Tensor)]
    to_host = name in ("copy", "_to_copy", "to", "_copy_from")
    return to_host and len({x.device.type for x in tensors}) > 1 and _target(name, args, result) == "cpu"


def _target(name: str, args: tuple[Any, ...], result: Any) -> str:
    """Where a copy goes."""
    return (args[0] if name == "copy" else result).device.type
