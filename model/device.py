"""Which device computes: the one rule behind `--device` and `load(device=)`."""

from collections.abc import Sequence

import torch
from torch import Tensor

DEVICES = ("auto", "cpu", "cuda", "mps")


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """ "auto" is CUDA where there is a GPU, else the CPU ("mps" only when asked for: it has no float64).

    Raises ValueError for an unknown name, and for a device that this machine or this torch does not have.
    """
    if isinstance(name, torch.device):
        name = str(name)
    kind = name.partition(":")[0]
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in DEVICES:
        raise ValueError(f"device '{name}' is unknown; choose one of {', '.join(DEVICES)}, or cuda:N")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device '{name}' is unknown; choose one of {', '.join(DEVICES)}, or cuda:N") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[kind]
    if not there or (kind == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"device '{name}' is not there on this machine; give --device auto or cpu")
    return device


def put(values: Sequence[int] | Sequence[float], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers as a tensor on the device. `torch.tensor(device=)` would wait until a GPU has done all it was given."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=device.type == "cuda")


def few_sizes(size: int, step: int, device: torch.device) -> int:
    """On a GPU the next multiple of `step`: its libraries choose kernels anew for every new size."""
    return -(-size // step) * step if device.type == "cuda" else size


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are fast: on any CUDA GPU, or a CPU with AMX or AVX512-BF16 (else 100x slower)."""
    if device.type != "cpu":
        return device.type == "cuda"
    capability = torch.backends.cpu.get_cpu_capability()
    return capability.startswith("AVX512") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
