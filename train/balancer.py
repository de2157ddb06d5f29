"""Loss balancing (EnCodec, arXiv:2210.13438): weights become shares of the gradient, whatever a loss's own scale is."""

import torch
from torch import Tensor


class Balancer:
    """Keeps a running size of each loss's gradient at the codec's output."""

    def __init__(self, decay: float = 0.99):
        self.decay = decay
        self.sizes: dict[str, Tensor] = {}

    def gradient(self, terms: dict[str, Tensor], weights: dict[str, float], output: Tensor) -> Tensor:
        """Losses of `output` and their weights -> the gradient to send back from `output`, of the same shape.

        Each loss's gradient is divided by its running norm and multiplied by its share of the weights.
        """
        total = sum(weights[name] for name in terms)
        mixed = torch.zeros_like(output)
        for name, term in terms.items():
            (gradient,) = torch.autograd.grad(term, output, retain_graph=True)
            size = gradient.norm()
            before = self.sizes.get(name, size)
            self.sizes[name] = before.lerp(size, 1 - self.decay)
            mixed += gradient * (weights[name] / total / self.sizes[name].clamp_min(1e-12))
        return mixed
