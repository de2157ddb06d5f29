"""Drawing codes from logits: pure functions, without a host synchronisation. B batch, V classes."""

import torch
from torch import Tensor


def sample(
    logits: Tensor, noise: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """logits [B, V] -> indices [B], drawn from softmax(logits / temperature) over the classes that the limits leave.

    noise: [B, V] Gumbel noise (noise.py), the only source of randomness. temperature 0 takes the largest logit.
    top_k: the likeliest classes (0: all). top_p: as few of the likeliest as have this probability together.
    min_p: those at least this share as likely as the likeliest. A class as likely as one that is left is left, too.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    scores = torch.add(noise, logits, alpha=1 / temperature)
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        scores.masked_fill_(logits < least, float("-inf"))
    if min_p > 0:
        p = (logits / temperature).softmax(dim=-1)
        scores.masked_fill_(p < min_p * p.amax(dim=-1, keepdim=True), float("-inf"))
    if top_p < 1:
        p = (logits / temperature).softmax(dim=-1)
        falling = p.sort(dim=-1, descending=True).values
        needed = (falling.cumsum(dim=-1) - falling < top_p).sum(dim=-1, keepdim=True)  # classes, at least 1
        scores.masked_fill_(p < falling.gather(-1, needed - 1), float("-inf"))
    return scores.argmax(dim=-1)
