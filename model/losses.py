"""Cross entropy in nats, and the weights of its parts in training, which never reach a reported number."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .delay_pattern import ABSENT
from .device import put
from .recent_tokens import of_any_token
from .text_tokens import PAD, UNNAMED


@dataclass(frozen=True)
class Weights:
    """Weights of the parts of a training loss."""

    codebooks: Sequence[float] | None = None  # one for each codebook; None: 1 for all
    text: float = 1.0
    time_only: bool = False  # a text to be said ("timed") is given: only when its tokens are told is learned
    written_codes: bool = True  # the codes of speech that is written down ("timed") are learned, too
    z_loss: float = 0.0  # weight of the squared log-normaliser (arXiv:2204.02311), which keeps logits from drifting

    def of(self, num_codebooks: int, like: Tensor) -> Tensor:
        """[K] on the device of `like`. Raises ValueError unless there is a weight for each codebook."""
        values = [1.0] * num_codebooks if self.codebooks is None else list(self.codebooks)
        if len(values) != num_codebooks:
            raise ValueError(f"{len(values)} codebook weights were given for {num_codebooks} codebooks")
        return put(values, like.device, torch.promote_types(like.dtype, torch.float32))


def cross_entropy(logits: Tensor, targets: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
    """logits [..., C] and targets [...] -> nats [...] in float32 at least, and z_loss * the squared log-normaliser
    [...]; both are 0 where the target is ABSENT."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    flat = F.cross_entropy(wide.flatten(0, -2), targets.flatten(), ignore_index=ABSENT, reduction="none")
    if not z_loss:
        return flat.view(targets.shape), wide.new_zeros(()).expand(targets.shape)
    return flat.view(targets.shape), z_loss * (wide.logsumexp(dim=-1).square() * (targets != ABSENT))


def text_cross_entropy(logits: Tensor, targets: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
    """`cross_entropy` of text; UNNAMED is all tokens but PAD together."""
    is_unnamed = targets == UNNAMED
    nats, penalty = cross_entropy(logits, targets.masked_fill(is_unnamed, PAD), z_loss)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.where(is_unnamed, wide.logsumexp(dim=-1) - of_any_token(wide), nats), penalty
