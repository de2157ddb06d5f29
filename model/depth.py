"""The depth decoder over the codebooks of one step: what its positions are given, what they predict, their loss.

N steps that are scored, K codebooks (K' of them predicted here), J positions, D backbone width, d depth width,
V codebook size, C classes. In the cheapest form (conditioning "add", codebook 0 from the backbone) position j is given
the context and code j, and predicts codebook j + 1. Otherwise there are K positions: position 0 is given the context
and no code, position j code j - 1, and each predicts the codebook of its own number.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .chunked import chunked_sum
from .delay_pattern import ABSENT
from .hf_config import SpeechLMConfig
from .losses import Weights, cross_entropy
from .steps import Steps
from .transformer import Transformer, make_linear

if TYPE_CHECKING:
    from .lm import SpeechLM


def make_depth_parts(model: "SpeechLM", config: SpeechLMConfig) -> None:
    """Give `model` the parameters of its depth decoder."""
    depth, width, others = config.depth_config, config.backbone_config.dim, config.num_codebooks - 1
    model.project = make_linear(width, depth.dim, max(depth.weight_sets, default=-1) + 1)
    if depth.embeddings != "shared":
        rows = others * (config.codebook_size + 1) + 1  # as in the frame embedding
        model.depth_embedding = nn.Embedding(rows, depth.dim if depth.embeddings == "own" else width)
    if depth.sees_text:
        model.depth_text_embedding = nn.Embedding(config.text_stream.vocab_size + 1, depth.dim)
    model.depth_decoder = Transformer(depth, _ShortAttention(config), depth.weight_sets)
    model.depth_heads = nn.Parameter(torch.empty(others, depth.dim, config.codebook_size))


class _ShortAttention:
    """K positions are too few for flash or flex attention: sdpa, unless the written-out definition is asked for."""

    def __init__(self, choice: SpeechLMConfig):
        self.choice = choice

    @property
    def _attn_implementation(self) -> str:
        return "eager" if self.choice._attn_implementation == "eager" else "sdpa"


def num_silent(model: "SpeechLM") -> int:
    """0 if position j predicts codebook j + 1, else 1: the first position is given no code."""
    return model.config.depth_config.num_positions(model.num_codebooks) - (model.num_codebooks - 1)


def depth_inputs(model: "SpeechLM", context: Tensor, fed: Tensor, first: int, text: Tensor | None) -> Tensor:
    """context [N, D], the codes that positions first.. are given [N, J] -> [N, J, d].

    fed: ABSENT where there is no code; at a position 0 that is given none, always. text: [N], ABSENT allowed.
    """
    depth, count = model.config.depth_config, fed.shape[1]
    sets = depth.weight_sets[first : first + count]
    x = embed_depth(model, fed, first)
    if depth.embeddings != "own":
        x = model.project(x, sets)
    if depth.conditioning == "prefix":
        if first == 0:
            x = x + F.pad(model.project(context[:, None], sets[:1]), (0, 0, 0, count - 1))
    elif sets:
        x = x + model.project(context[:, None].expand(-1, count, -1), sets)
    else:
        x = x + model.project(context)[:, None]
    if depth.sees_text and first == 0 and text is not None:
        token = F.embedding(text.clamp_min(0), model.depth_text_embedding.weight) * (text != ABSENT)[:, None]
        x = x + F.pad(token[:, None], (0, 0, 0, count - 1))
    return x


def embed_depth(model: "SpeechLM", fed: Tensor, first: int) -> Tensor:
    """Codes [N, J] at positions first.., ABSENT allowed -> [N, J, d], or D where they are yet to be projected."""
    silent = num_silent(model)
    table = model.frame_embedding if model.config.depth["embeddings"] == "shared" else model.depth_embedding
    position = torch.arange(first, first + fed.shape[1], device=fed.device)
    if model.config.gaps == "bos":
        fed = torch.where((fed == ABSENT) & (position >= silent), model.bos, fed)
    offsets = (position - silent).clamp_min(0) * (model.codebook_size + 1)
    return F.embedding((fed + offsets).clamp_min(0), table.weight) * (fed != ABSENT)[..., None]


def depth_logits(model: "SpeechLM", out: Tensor, first: int) -> tuple[Tensor | None, Tensor | None]:
    """Outputs [N, J, d] of positions first.. -> (logits of codebook 0 [N, C] or None, of the others [.., N, V])."""
    zero = None
    if num_silent(model) and first == 0:
        zero = model.head_0(out[:, 0]) if model.depth_is_first else None
        out, first = out[:, 1:], 1
    head = first - num_silent(model)
    if not out.shape[1]:
        return zero, None
    return zero, torch.bmm(out.transpose(0, 1), model.depth_heads[head : head + out.shape[1]].to(out.dtype))


class DepthTerms:
    """The depth decoder's part of the loss, over all steps at once: [B, S] steps are rows of a batch, K positions."""

    def __init__(
        self, model: "SpeechLM", steps: Steps, given: Tensor, weights: Tensor | None = None, z_loss: float = 0.0
    ):
        """given: [B, K, S] what is known of each step. weights: [K] of the codebooks."""
        self.model, self.z_loss, self.shape = model, z_loss, steps.targets[:, 0].shape
        self.first = 0 if model.depth_is_first else 1  # the first codebook that is predicted here
        self.targets = steps.targets[:, self.first :].transpose(1, 2).flatten(0, 1)  # [B * S, K']
        given = given.masked_fill(given == model.eos, ABSENT)[:, :-1].transpose(1, 2).flatten(0, 1)
        self.fed = F.pad(given, (num_silent(model), 0), value=ABSENT)  # [B * S, J]
        self.text = None if steps.text_targets is None else steps.text_targets.flatten()
        self.weights = Weights().of(model.num_codebooks, given.new_zeros(0).float()) if weights is None else weights

    def sum(self, contexts: Tensor, fraction: float, chunk: int) -> tuple[Tensor, Tensor | None]:
        """contexts [B, S, D] -> (weighted nats and z-loss, nats [B, K', S]; None with fraction < 1)."""
        rows, scale = self._rows(fraction)
        if not len(rows) and len(self.targets):
            rows = rows.new_zeros(1)  # nothing is scored there either: zero, and all parameters have that as gradient
        if not self.targets.shape[1] or not len(rows):  # a single codebook leaves the depth decoder nothing to do
            nll = contexts.new_zeros(*self.shape, self.targets.shape[1])
            return contexts.new_zeros(()), nll.transpose(1, 2)

        def terms(context: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            nll, penalty = self._nll(context, rows[part])
            return scale * ((nll.sum(dim=0) * self.weights[self.first :]).sum() + penalty), nll

        total, nll = chunked_sum(terms, contexts.flatten(0, 1)[rows], self.parameters(), chunk)
        if fraction < 1:
            return total, None
        everything = nll.new_zeros(self.targets.shape).index_copy(0, rows, nll)
        return total, everything.view(*self.shape, -1).transpose(1, 2)

    def logits(self, contexts: Tensor) -> Tensor:
        """contexts [B, S, D] -> [B, K', S, C]; -inf where a codebook has no EOS."""
        classes = self.model.num_classes if self.first == 0 else self.model.codebook_size
        if not self.targets.shape[1]:
            return contexts.new_zeros(self.shape[0], 0, self.shape[1], classes)
        zero, others = self._logits(contexts.flatten(0, 1), torch.arange(len(self.targets), device=contexts.device))
        parts = [] if zero is None else [zero[None]]
        if others is not None:
            parts.append(F.pad(others, (0, classes - others.shape[-1]), value=float("-inf")))
        return torch.cat(parts).unflatten(1, self.shape).transpose(0, 1)

    def parameters(self) -> list[Tensor]:
        """Whatever the terms are made of."""
        model = self.model
        modules = [model.project, model.depth_decoder]
        modules += [
            getattr(model, name) for name in ("depth_embedding", "depth_text_embedding") if hasattr(model, name)
        ]
        if model.config.depth["embeddings"] == "shared":
            modules.append(model.frame_embedding)
        if model.depth_is_first:
            modules.append(model.head_0)
        return [model.depth_heads, *(parameter for module in modules for parameter in module.parameters())]

    def _rows(self, fraction: float) -> tuple[Tensor, float]:
        """Indices into the flattened [B * S] steps that are scored, and 1 / their share."""
        scored = (self.targets != ABSENT).any(dim=1).nonzero().flatten()
        if fraction >= 1 or len(scored) == 0:
            return scored, 1.0
        count = max(1, round(fraction * len(scored)))
        return scored[torch.randperm(len(scored), device=scored.device)[:count]], len(scored) / count

    def _logits(self, context: Tensor, rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x = depth_inputs(self.model, context, self.fed[rows], 0, None if self.text is None else self.text[rows])
        return depth_logits(self.model, self.model.depth_decoder(x), 0)

    def _nll(self, context: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """context [n, D] of some rows -> (nats [n, K'], z-loss)."""
        zero, others = self._logits(context, rows)
        targets, parts, penalty = self.targets[rows].t(), [], context.new_zeros(())
        if zero is not None:
            nll, z = cross_entropy(zero, targets[0], self.z_loss)
            parts.append(nll[None])
            penalty = penalty + z
            targets = targets[1:]
        if others is not None:
            nll, z = cross_entropy(others, targets, self.z_loss)
            parts.append(nll)
            penalty = penalty + z
        return torch.cat(parts).t(), penalty
