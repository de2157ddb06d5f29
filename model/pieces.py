"""Scoring any number of steps in the memory of few, for models whose sliding window ends a step's look back.

The backbone's cache carries what the next piece sees over to it, so the nats are those of one pass.
B batch, K codebooks, S steps.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .layout import Steps
from .shapes import TransformerConfig
from .transformer import KVCache, piece_size

if TYPE_CHECKING:
    from .lm import SpeechLM


@dataclass
class Scored:
    """Nats of steps, before they are put back into frames."""

    total: Tensor  # the weighted sum
    nll: Tensor | None  # [B, K, S], EOS among codebook 0's; None where only a share of the frames was scored
    text_nll: Tensor | None  # [B, S]


def is_long(backbone: TransformerConfig, steps: Steps) -> bool:
    """Whether it pays to take the steps in pieces. Not where gradients need them all, nor where rows are packed."""
    if torch.is_grad_enabled() or steps.documents is not None or not backbone.sliding_window:
        return False
    return steps.targets.shape[2] > piece_size(backbone)


def score_in_pieces(model: "SpeechLM", heard: Steps, steps: Steps, *options: Any) -> Scored:
    """`model.contexts` of what is heard, and `model.score` with its options, piece by piece."""
    backbone, device = model.config.backbone, steps.targets.device
    batch, _, num_steps = steps.targets.shape
    is_autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if is_autocast else model.dtype
    num_positions = num_steps * (model.slot_embedding.num_slots if model.pattern == "flatten" else 1)
    cache = KVCache(backbone, batch, num_positions, torch.empty(0, device=device, dtype=dtype))
    size, parts = piece_size(backbone), []
    for first in range(0, num_steps, size):
        stop, before = first + size, min(first, 1)  # before: a step that tells what comes before the first
        contexts = model.contexts(heard.part(first - before, stop), cache, before)
        parts.append(model.score(contexts, steps.part(first, stop), heard.part(first, stop), *options))
    nll = [part.nll for part in parts if part.nll is not None]
    text_nll = [part.text_nll for part in parts if part.text_nll is not None]
    return Scored(
        torch.stack([part.total for part in parts]).sum(),
        torch.cat(nll, dim=2) if nll else None,
        torch.cat(text_nll, dim=1) if text_nll else None,
    )
