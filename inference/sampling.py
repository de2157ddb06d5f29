"""Drawing codes from logits: pure functions. B batch, V classes."""

import torch
from torch import Tensor


def draw(logits: Tensor, temperature: float, top_k: int, generators: list[torch.Generator], num_classes: int) -> Tensor:
    """logits [B, V] -> indices [B], each row by its own generator, which moves on by `num_classes` >= V numbers."""
    noise = exponential_noise(generators, num_classes)[:, : logits.shape[1]].to(logits.device)
    return sample(logits, temperature, top_k, noise)


def sample(logits: Tensor, temperature: float, top_k: int, noise: Tensor) -> Tensor:
    """logits [B, V] -> indices [B]: softmax(logits / temperature) restricted to the `top_k` largest (0: all).

    noise: [B, V] exponentially distributed, the only source of randomness (the largest p / noise wins, which draws from
    p without a cumulative sum or a host synchronisation). temperature 0 takes the largest logit.
    Raises FloatingPointError if a logit is NaN.
    """
    if torch.isnan(logits).any():
        raise FloatingPointError("the model gave NaN logits: its weights or its input are broken")
    if temperature == 0:
        return logits.argmax(dim=-1)
    scaled = logits.float() / temperature
    if 0 < top_k < scaled.shape[-1]:
        threshold = scaled.topk(top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < threshold, float("-inf"))
    return (scaled.softmax(dim=-1) / noise).argmax(dim=-1)


def exponential_noise(generators: list[torch.Generator], num_classes: int) -> Tensor:
    """[B, V] with one generator for each row, so that a row's draws do not depend on its neighbours."""
    rows = [torch.empty(num_classes).exponential_(generator=generator) for generator in generators]
    return torch.stack(rows).clamp_min(torch.finfo(torch.float32).tiny)
