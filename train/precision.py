"""Which number formats are fast on this machine."""

import torch


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are fast: on any CUDA GPU, or a CPU with AMX or AVX512-BF16 (else 100x slower)."""
    if device.type != "cpu":
        return device.type == "cuda"
    capability = torch.backends.cpu.get_cpu_capability()
    return capability.startswith("AVX512") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
