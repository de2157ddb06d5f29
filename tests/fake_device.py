"""A device for machines without a GPU: tensors that lie in the CPU's memory, but do not mix with the CPU's.

    with elsewhere():
        model.to(ELSEWHERE)(codes.to(ELSEWHERE))   # computes; raises Mixed where CUDA would refuse a CPU tensor

What runs on it unharmed has no tensor left on the wrong device. It says nothing about kernels, speed or rounding.
It is torch's PrivateUse1 device type, whose operations are Python's here: each runs on the CPU tensor within.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

TENSOR, LSTM = torch.tensor, torch._VF.lstm
aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
COPYING = {aten._to_copy.default, aten.copy_.default}
_register = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
if _register is None:
    pytest.skip("this torch cannot have a device made in Python", allow_module_level=True)
_register("elsewhere")
# what torch asks a new kind of device when activations are recomputed; other tests in this process do that on the CPU
torch.get_device_module("elsewhere").get_amp_supported_dtype = list
ELSEWHERE, CPU = torch.device("elsewhere", 0), torch.device("cpu")


class Mixed(RuntimeError):
    """Tensors of two devices met in one operation."""


class Elsewhere(torch.Tensor):
    """`inner` is what it holds, on the CPU."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Elsewhere":
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=ELSEWHERE
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Elsewhere({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


@contextmanager
def elsewhere() -> Iterator[None]:
    # else a module that changes its type in place (`double()`) keeps the numbers that its tensors held
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with patch("torch.tensor", _tensor), patch("torch._VF.lstm", _lstm), _Mode():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def _tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
    """torch.tensor, which fills its memory without asking the mode."""
    return TENSOR(data, **options).to(device or CPU)


def _lstm(x: torch.Tensor, state: Any, weights: Any, *rest: Any) -> tuple[torch.Tensor, ...]:
    """An LSTM in one operation, as cuDNN has it: thousands of small ones, each run by Python, take a minute."""
    given = [x, *state, *weights]
    learns = torch.is_grad_enabled() and any(value.requires_grad for value in given)
    if learns or not all(isinstance(value, Elsewhere) for value in given):
        return LSTM(x, state, weights, *rest)
    inner: list[Any] = [value.inner for value in given if isinstance(value, Elsewhere)]
    found = LSTM(inner[0], tuple(inner[1 : 1 + len(state)]), inner[1 + len(state) :], *rest)
    with torch.inference_mode(False):
        return tuple(Elsewhere(value) for value in found)


def _lstm_cell(*args: Any) -> tuple[torch.Tensor, ...]:
    """The fused cell that devices other than the CPU are asked for."""
    from_input, from_hidden, cell, *biases = args
    gates = from_input + from_hidden + sum(bias for bias in biases if bias is not None)
    keep, forget, new, out = (gate for gate in gates.chunk(4, dim=1))
    cell = forget.sigmoid() * cell + keep.sigmoid() * new.tanh()
    return out.sigmoid() * cell.tanh(), cell, gates


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation of torch's on what its tensors hold, where all of them are on one device."""
    given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    here = any(isinstance(value, Elsewhere) for value in given)
    if here and func not in COPYING:
        for place, value in enumerate(given):  # CUDA takes single numbers of the CPU, and indices
            index = func in INDEXING and place and value.dtype in (torch.int64, torch.bool)
            if not isinstance(value, Elsewhere) and value.ndim and not index:
                raise Mixed(f"{func}: a tensor {list(value.shape)} is on the {value.device}, another {ELSEWHERE}")
    device = kwargs.get("device")
    goes_there = here if device is None else torch.device(device).type == ELSEWHERE.type
    if device is not None and goes_there:
        kwargs = kwargs | {"device": CPU}
    held_args, held_kwargs = tree_map(lambda x: x.inner if isinstance(x, Elsewhere) else x, (args, kwargs))
    run = _lstm_cell if func is aten._thnn_fused_lstm_cell.default else func
    found = run(*held_args, **held_kwargs)
    if device is not None and func in COPYING and goes_there != here:
        found = found.clone()  # another device has memory of its own
    outs = [kwargs[argument.name] for argument in func._schema.arguments if argument.is_out and argument.name in kwargs]
    if outs:
        return outs[0] if len(outs) == 1 else tuple(outs)
    first = func._schema.arguments[0].alias_info if args else None
    if first is not None and first.is_write and isinstance(found, torch.Tensor):
        return args[0]  # changed in place
    with torch.inference_mode(False):  # which has no views of tensors such as these
        return tree_map(lambda x: Elsewhere(x) if goes_there and isinstance(x, torch.Tensor) else x, found)
