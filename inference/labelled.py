"""Numbers that are what their label says: eval mode, and the precision that was asked for, whatever is set around."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..model.lm import SpeechLM


@contextmanager
def as_labelled(model: SpeechLM, bf16: bool = False) -> Iterator[None]:
    """Inside, the model is in eval mode (no dropout), and computes in its own dtype, or its products in bfloat16."""
    training, device = model.training, model.device.type
    if training:
        model.eval()
    try:
        if bf16 or torch.is_autocast_enabled(device):
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                yield
        else:
            yield
    finally:
        if training:
            model.train()
