"""A matrix product as it was called, to be called again. B batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class Call(NamedTuple):
    """A matrix product as it was called."""

    operation: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def again(self) -> None:
        self.operation(*self.args, **self.kwargs)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Activations and weights."""
        if name_of(self.operation) == "_linear_pointwise":  # (x, [other,] weight in oneDNN's layout, ...)
            first, second = self.args[0], next(x for x in self.args if isinstance(x, Tensor) and x.is_mkldnn)
            return first, second.to_dense().t()
        first, second = [x for x in self.args if isinstance(x, Tensor)][-2:]
        if name_of(self.operation) == "linear":  # (x, weight [out, in]), and perhaps a bias
            first, second = self.args[0], self.args[1].t()
        return first, second

    def flops(self) -> int:
        """A multiply-add is two."""
        first, second = self.factors()
        return 2 * first.numel() * second.shape[-1]

    def weight_bytes(self) -> int:
        second = self.factors()[1]
        return second.numel() * second.element_size()


def name_of(func: Any) -> str:
    """aten::addmm_.out -> addmm"""
    return func.name().split("::")[-1].split(".")[0].rstrip("_")
