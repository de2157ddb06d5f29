"""Float32 that is float32: what a program asks of its own networks must not reach a codec.

By default torch rounds convolutions on a GPU to TF32 (10 bits of mantissa), with `set_float32_matmul_precision` also
matrix products, on a CPU to bfloat16; under autocast, all of them. Codes would flip, and depend on chunks and batches.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

BACKENDS: Any = torch.backends  # has attributes that its type does not tell
CPU_OPERATIONS = [BACKENDS.mkldnn.conv, BACKENDS.mkldnn.rnn, BACKENDS.mkldnn.matmul]
OPERATIONS = [BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn, BACKENDS.cuda.matmul, *CPU_OPERATIONS]
ROUNDED = ("tf32", "bf16")
DEVICES = ("cpu", "cuda")


@contextmanager
def frozen() -> Iterator[None]:
    """As a decorator or a context: no gradients, no autocast, no TF32 or bfloat16 in the place of float32.

    Torch keeps the last two for the whole process: what other threads compute meanwhile is not rounded either.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for device in filter(torch.is_autocast_enabled, DEVICES):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(_UNROUNDED)
        yield


class _Unrounded:
    """The first of several threads to enter changes the settings, and the last to leave restores them."""

    def __init__(self):
        self.lock, self.inside = threading.Lock(), 0
        self.changed: list[tuple[Any, str]] = []

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                found = [(operation, operation.fp32_precision) for operation in OPERATIONS]
                self.changed = [(operation, precision) for operation, precision in found if precision in ROUNDED]
                for operation, _ in self.changed:
                    operation.fp32_precision = "ieee"
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                for operation, precision in self.changed:
                    operation.fp32_precision = precision


_UNROUNDED = _Unrounded()
