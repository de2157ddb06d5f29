"""The depth decoder's logits of whole sequences, for whoever looks at them: scoring and generation need none."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .depth import DepthDecoder, DepthRows


def depth_logits(decoder: DepthDecoder, frame_embedding: nn.Embedding, contexts: Tensor, rows: DepthRows) -> Tensor:
    """contexts [B, S, D] -> logits [B, K', S, C]; -inf where a codebook has no EOS."""
    classes = decoder.codebook_size if decoder.head_0 is None else decoder.head_0.out_features
    if not rows.targets.shape[1]:
        return contexts.new_zeros(contexts.shape[0], 0, contexts.shape[1], classes)
    condition = decoder.condition(contexts.flatten(0, 1))
    zero, others = decoder(condition, rows.codes_in, frame_embedding, rows.text)
    parts = [] if zero is None else [zero[None]]
    if others is not None:
        parts.append(F.pad(others, (0, classes - others.shape[-1]), value=float("-inf")))
    return torch.cat(parts).unflatten(1, contexts.shape[:2]).transpose(0, 1)
