"""The depth decoder: a small transformer over the codebooks of one step, and its part of the loss.

    hidden = transformer(project(context) + embedding(codes))       # [N, J, d]
    codebook k <- heads[k - 1](hidden at its position)              # [N, V]

In the cheapest form (conditioning "add", codebook 0 from the backbone) position j takes the context and code j, and
predicts codebook j + 1. Otherwise there are K positions: position 0 takes the context and no code, position j code
j - 1, and each predicts the codebook of its own number.

With groups of G codebooks there are fewer positions: each predicts a group, whose codebooks are independent given all
before the group, and takes the sum of the embeddings of the group before. Codebook 0 is a group of its own.

    group_size 2, 6 codebooks   position      0     1     2
                                takes         0     1 2   3 4
                                predicts      1 2   3 4   5

N steps, K codebooks (K' of them predicted here), J positions, D backbone width, d depth width, V codebook size,
C classes of codebook 0.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .chunked_backward import chunked_sum
from .delay_pattern import ABSENT
from .device import few_sizes
from .layout import Steps
from .linear import make_linear
from .losses import cross_entropy
from .random_bits import DEPTH_DROPOUT, DEPTH_STEPS, fold, random_bits
from .speech_lm_config import SpeechLMConfig
from .transformer import KVCache, Transformer


class DepthDecoder(nn.Module):
    """Predicts the codebooks of a step from the backbone's context and the codebooks before them."""

    def __init__(self, config: SpeechLMConfig):
        super().__init__()
        depth = config.depth
        width = config.backbone.dim
        size = config.codebook_size
        others = config.num_codebooks - 1
        self.config = depth
        self.num_codebooks = config.num_codebooks
        self.codebook_size = size
        self.gaps = config.gaps
        self.group_size = depth.group_size
        self.num_positions = depth.num_positions(config.num_codebooks)
        num_groups = depth.num_groups(config.num_codebooks)
        self.codeless = self.num_positions - num_groups  # positions at the start that take no code: 1 or 0
        self.num_read = 1 + (num_groups - 1) * depth.group_size if num_groups else 0  # codebooks that positions take
        self.first = 0 if depth.first_codebook == "depth" else 1  # the first codebook that is predicted here
        self.project = make_linear(width, depth.dim, max(depth.weight_sets, default=-1) + 1)
        # a table of its own, with rows like the frame embedding's; None: the frame embedding itself
        rows = self.num_read * (size + 1) + 1
        shared = depth.embeddings == "shared"
        self.embedding = None if shared else nn.Embedding(rows, depth.dim if depth.embeddings == "own" else width)
        self.text_embedding = nn.Embedding(config.text.vocab_size + 1, depth.dim) if depth.sees_text else None
        self.transformer = Transformer(depth, ShortAttention(config), depth.weight_sets)
        # codebook 0 may end the audio, so it has a head of another size
        num_classes = size + (config.end == "eos")
        self.head_0 = nn.Linear(depth.dim, num_classes, bias=False) if self.first == 0 else None
        self.heads = nn.Parameter(torch.empty(others, depth.dim, size))

    def condition(self, context: Tensor) -> Tensor:
        """context [N, D] -> its projection for each position [N, J, d], or [N, 1, d] where all positions share it.

        With conditioning "prefix" only position 0 takes it.
        """
        sets = self.config.weight_sets
        if self.config.conditioning == "prefix":
            return self.project(context[:, None], sets[:1])
        if sets:
            return self.project(context[:, None].expand(-1, self.num_positions, -1), sets)
        return self.project(context[:, None])

    def forward(
        self,
        condition: Tensor,
        codes: Tensor,
        frame_embedding: nn.Embedding,
        text: Tensor | None = None,
        cache: KVCache | None = None,
        keys: Tensor | None = None,
    ) -> "DepthLogits":
        """The codes that each position takes [N, J, G], ABSENT for none -> the logits that the positions predict.

        With groups of one codebook [N, J] does as well.

        condition: the result of `condition`. text: [N] the token of the step, ABSENT allowed. cache: positions of this
        step that are done; those given here follow them. keys: [N], for dropout.
        """
        first = 0 if cache is None else cache.length
        hidden = self.transformer(self.inputs(condition, codes, frame_embedding, text, first), cache, keys=keys)
        zero = None
        if self.codeless and first == 0:
            zero = None if self.head_0 is None else self.head_0(hidden[:, 0])
            hidden, first = hidden[:, 1:], 1
        if not hidden.shape[1]:
            return DepthLogits(zero, None)
        head = (first - self.codeless) * self.group_size
        heads = self.heads[head : head + hidden.shape[1] * self.group_size].to(hidden.dtype)
        hidden = hidden.transpose(0, 1)
        if self.group_size > 1:  # once for each head
            hidden = hidden[:, None].expand(-1, self.group_size, -1, -1).flatten(0, 1)[: len(heads)]
        return DepthLogits(zero, torch.bmm(hidden, heads))

    def position_of(self, codebook: int) -> int:
        """The position that predicts a codebook."""
        return self.codeless + (codebook - 1) // self.group_size

    def read_at(self, position: int) -> range:
        """The codebooks whose codes a position takes."""
        group = position - self.codeless
        if group <= 0:
            return range(group + 1)
        return range(1 + (group - 1) * self.group_size, 1 + group * self.group_size)

    def inputs(
        self, condition: Tensor, codes: Tensor, frame_embedding: nn.Embedding, text: Tensor | None, first: int = 0
    ) -> Tensor:
        """The transformer's input at positions first.. [N, J, d]; arguments as in `forward`."""
        count = codes.shape[1]
        x = self.embed(codes, frame_embedding if self.embedding is None else self.embedding, first)
        if self.config.embeddings != "own":
            x = self.project(x, self.config.weight_sets[first : first + count])
        if self.config.conditioning == "prefix":
            x = x + F.pad(condition, (0, 0, 0, count - 1)) if first == 0 else x
        else:
            x = x + (condition if condition.shape[1] == 1 else condition[:, first : first + count])
        if self.text_embedding is not None and first == 0 and text is not None:
            token = F.embedding(text.clamp_min(0), self.text_embedding.weight) * (text != ABSENT)[:, None]
            x = x + F.pad(token[:, None], (0, 0, 0, count - 1))
        return x

    def embed(self, codes: Tensor, table: nn.Embedding, first: int) -> Tensor:
        """Codes [N, J] or [N, J, G] that positions first.. take, ABSENT allowed -> [N, J, width of the table]."""
        group = torch.arange(first, first + codes.shape[1], device=codes.device) - self.codeless
        if self.group_size == 1:
            return self.look_up(codes.view(codes.shape[:2]), group, table)
        slot = torch.arange(self.group_size, device=codes.device)
        # as in `read_at`; below 0: a place that holds no code
        alone = torch.where(slot == 0, group[:, None], -1)
        codebook = torch.where(group[:, None] > 0, 1 + (group[:, None] - 1) * self.group_size + slot, alone)
        return self.look_up(codes, codebook, table).sum(dim=2)

    def look_up(self, codes: Tensor, codebook: Tensor, table: nn.Embedding) -> Tensor:
        """Codes [N, ...] of codebooks [...] -> rows of the table, zero for ABSENT. Below 0: there is no codebook."""
        if self.gaps == "bos":
            codes = torch.where((codes == ABSENT) & (codebook >= 0), self.codebook_size, codes)
        offsets = codebook.clamp_min(0) * (self.codebook_size + 1)
        return F.embedding((codes + offsets).clamp_min(0), table.weight) * (codes != ABSENT)[..., None]

    def codes_in(self, codes: Tensor) -> Tensor:
        """The codes of steps [N, K] -> the codes that each position takes [N, J, G], or [N, J] in groups of one."""
        taken = codes[:, : self.num_read]
        if self.group_size == 1:
            return F.pad(taken, (self.codeless, 0), value=ABSENT)
        first = F.pad(taken[:, :1], (0, self.group_size - 1), value=ABSENT)  # codebook 0 is alone
        taken = torch.cat([first, taken[:, 1:]], dim=1) if self.num_read else taken
        taken = F.pad(taken, (self.codeless * self.group_size, 0), value=ABSENT)
        return taken.unflatten(1, (self.num_positions, self.group_size))


class DepthLogits(NamedTuple):
    """Logits of the codebooks that some positions predict."""

    zero: Tensor | None  # [N, C] for codebook 0, if it is predicted here
    others: Tensor | None  # [.., N, V] for the codebooks after it


class ShortAttention:
    """K positions are too few for flash or flex attention: sdpa, unless the written-out definition is asked for."""

    def __init__(self, choice: SpeechLMConfig):
        self.choice = choice

    @property
    def _attn_implementation(self) -> str:
        return "eager" if self.choice._attn_implementation == "eager" else "sdpa"


# --- its part of the loss ---

ROWS_OF_A_SIZE = 512  # see `few_sizes`


@dataclass(frozen=True)
class DepthRows:
    """Steps [B, S] as rows of one batch: the inputs of each, and its targets."""

    targets: Tensor  # [B * S, K']
    codes_in: Tensor  # [B * S, J] or [B * S, J, G]
    text: Tensor | None  # [B * S]
    keys: Tensor | None = None  # [B * S] for dropout

    @classmethod
    def of(cls, decoder: DepthDecoder, steps: Steps, known: Steps) -> "DepthRows":
        """known: the same steps, with the codes and the text that positions read; EOS is read as ABSENT."""
        codes = known.targets.masked_fill(known.targets == decoder.codebook_size, ABSENT).transpose(1, 2).flatten(0, 1)
        targets = steps.targets[:, decoder.first :].transpose(1, 2).flatten(0, 1)
        text = None if known.text_targets is None else known.text_targets.flatten()
        keys = None if steps.keys is None else random_bits(fold(steps.keys, DEPTH_DROPOUT), steps.targets.shape[2])
        return cls(targets, decoder.codes_in(codes), text, None if keys is None else keys.flatten())

    def take(self, rows: Tensor, count: int) -> "DepthRows":
        """count: of these rows, the first ones; the targets of the others are ABSENT."""
        text, keys = (None if x is None else x[rows] for x in (self.text, self.keys))
        targets = self.targets[rows]
        targets[max(0, count) :] = ABSENT
        return DepthRows(targets, self.codes_in[rows], text, keys)


def depth_loss(
    decoder: DepthDecoder,
    frame_embedding: nn.Embedding,
    contexts: Tensor,
    rows: DepthRows,
    codebook_weights: Tensor,
    z_loss: float = 0.0,
    fraction: float = 1.0,
    chunk: int = 0,
    keys: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """contexts [B, S, D] -> (weighted nats and z-loss, nats [B, K', S]; None with fraction < 1).

    codebook_weights: [K]. fraction: share of the steps of each row that is drawn, by its key [B]; their sum is scaled
    up. chunk: steps at a time; 0: as many as `steps_at_a_time` says.
    """
    shape = *contexts.shape[:2], rows.targets.shape[1]
    chosen, scale = draw_rows(rows.targets, fraction, keys)
    if not len(chosen) and len(rows.targets):
        # a row in which nothing is scored: the loss is 0, and every parameter gets a gradient of 0
        chosen = chosen.new_zeros(1)
    if not shape[2] or not len(chosen):  # a single codebook leaves the depth decoder nothing to do
        return contexts.new_zeros(()), contexts.new_zeros(shape).transpose(1, 2)

    count = len(chosen)
    repeated = few_sizes(count, ROWS_OF_A_SIZE, chosen.device) - count
    chosen = torch.cat([chosen, chosen[:1].expand(repeated)])

    def terms(context: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        mine = rows.take(chosen[part], count - part.start)
        nll, penalty = depth_nats(decoder, frame_embedding, context, mine, z_loss)
        costs = nll * codebook_weights[decoder.first :] + penalty
        return (costs.sum() if scale is None else (costs.sum(dim=1) * scale[chosen[part]]).sum()), nll

    parameters: list[Tensor] = list(decoder.parameters())
    if decoder.embedding is None:
        parameters.append(frame_embedding.weight)
    size = chunk or steps_at_a_time(decoder, contexts.device)
    total, nll = chunked_sum(terms, contexts.flatten(0, 1)[chosen], parameters, size)
    if fraction < 1:
        return total, None
    everything = nll.new_zeros(rows.targets.shape).index_copy(0, chosen[:count], nll[:count])
    return total, everything.view(shape).transpose(1, 2)


def steps_at_a_time(decoder: DepthDecoder, device: torch.device) -> int:
    """Steps whose activations are held at once where nobody chose.

    128 keep a CPU busy: at shape S 256 are no faster, and hold a fifth more memory. A GPU would wait for the launches
    of such small chunks: it takes as many as an eighth of its memory holds, from 256 to 8,192, with which an attention
    call stays within a grid's 65,535 rows.
    """
    if device.type != "cuda":
        return 128
    room = torch.cuda.get_device_properties(device).total_memory // 8
    return min(max(room // activation_bytes(decoder), 256), 8192)


def activation_bytes(decoder: DepthDecoder) -> int:
    """Memory of one step in training, in bfloat16, its logits in float32: about 0.5 MB at shape S."""
    shape = decoder.config
    width = shape.num_heads * shape.size_of_head
    # residual stream and norms; query, key, value, rotated and mixed; gate, up and their product
    layer = 4 * shape.dim + 7 * width + 4 * shape.ff_dim
    # logits as they are, wide, their log-softmax, and the gradients of these
    logits = (2 + 4 + 4 + 4 + 2) * decoder.codebook_size
    return decoder.num_positions * 2 * shape.num_layers * layer + len(decoder.heads) * logits


def draw_rows(targets: Tensor, fraction: float, keys: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """targets [B * S, K'] -> indices of steps in which something is scored; and None.

    With fraction < 1 a share of them, in each row of the batch by its key [B], one at least; and 1 / that share.
    """
    scored = (targets != ABSENT).any(dim=1)
    if fraction >= 1:
        return scored.nonzero().flatten(), None
    assert keys is not None
    scored = scored.view(len(keys), -1)
    last = torch.iinfo(torch.int64).max
    order = random_bits(fold(keys, DEPTH_STEPS), scored.shape[1]).masked_fill(~scored, last).argsort(dim=1)
    num_scored = scored.sum(dim=1, keepdim=True)
    count = (fraction * num_scored).round().clamp_min(1)
    first = torch.arange(scored.shape[1], device=scored.device) < count
    drawn = torch.zeros_like(scored).scatter_(1, order, first)
    scale = (num_scored / count).expand(-1, scored.shape[1])
    return (drawn & scored).flatten().nonzero().flatten(), scale.flatten()


def depth_nats(
    decoder: DepthDecoder, frame_embedding: nn.Embedding, context: Tensor, rows: DepthRows, z_loss: float
) -> tuple[Tensor, Tensor]:
    """context [N, D] and its rows -> (nats [N, K'], z-loss, as `cross_entropy` gives them)."""
    condition = decoder.condition(context)
    zero, others = decoder(condition, rows.codes_in, frame_embedding, rows.text, keys=rows.keys)
    targets, parts = rows.targets.t(), []
    if zero is not None:
        nll, penalty = cross_entropy(zero, targets[0], z_loss)
        parts.append((nll[None], penalty[None]))
        targets = targets[1:]
    if others is not None:
        parts.append(cross_entropy(others, targets, z_loss))
    nll, penalty = map(torch.cat, zip(*parts, strict=True))
    return nll.t(), penalty.t()
