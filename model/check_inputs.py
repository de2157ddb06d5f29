"""Tensors of tokens that are not a model's are refused in one line."""

from torch import Tensor

from .delay_pattern import ABSENT


def check_range(values: Tensor, name: str, shape: tuple[int | None, ...], size: int) -> None:
    """Raise ValueError unless values are integers of `shape` (None: any) in -1..size-1."""
    if values.is_floating_point() or values.ndim != len(shape):
        letters = "[B, K, T]" if len(shape) == 3 else "[B, T]"
        raise ValueError(f"{name} must be integers {letters}, not {values.dtype} {list(values.shape)}")
    if len(shape) == 3 and shape[1] is not None and values.shape[1] != shape[1]:
        raise ValueError(f"{name} have {values.shape[1]} codebooks; this model has {shape[1]}")
    if any(want is not None and want != have for want, have in zip(shape, values.shape, strict=True)):
        raise ValueError(f"{name} {list(values.shape)} do not go with codes of {list(shape)} rows and frames")
    if values.numel() and not (int(values.min()) >= ABSENT and int(values.max()) < size):
        span = f"{int(values.min())}..{int(values.max())}"
        raise ValueError(f"{name} span {span}; this model has 0..{size - 1} (-1: absent)")
