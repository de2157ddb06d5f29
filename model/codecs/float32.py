"""Float32 that is float32: what a program asks of its own networks must not reach a codec.

By default torch rounds convolutions on a GPU to TF32 (10 bits of mantissa), with `set_float32_matmul_precision` also
matrix products, on a CPU to bfloat16; under autocast, all of them. Codes would flip, and depend on chunks and batches.
"""

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

    Torch keeps these settings for the whole process: another thread's products in this moment are exact, too.
    """
    settings = [(operation, operation.fp32_precision) for operation in OPERATIONS]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for device in filter(torch.is_autocast_enabled, DEVICES):
            stack.enter_context(torch.autocast(device, enabled=False))
        try:
            for operation, precision in settings:
                if precision in ROUNDED:
                    operation.fp32_precision = "ieee"
            yield
        finally:
            for operation, precision in settings:
                if precision in ROUNDED:
                    operation.fp32_precision = precision
