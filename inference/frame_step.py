"""One frame = one call: the step of generation with static shapes, fused weights and no host synchronisation.

    h = backbone.step(sum of the embeddings of the step before)      # [B, K] -> [B, D]
    codebook 0 <- heads[0](h);  condition = project(h)
    codebook k <- heads[k](depth.step_at(k - 1: condition + tables[k - 1][code k - 1]))

It computes what walk.py, the readable reference, computes (tests hold them together in float64). All buffers, views and
caches are made once for a batch; the weights are those of fused_weights.py.
B rows, K codebooks, D backbone width, d depth width, V codebook size, H heads, G key/value heads, E head width.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.attention import Visibility, prepare
from ..model.delay_pattern import ABSENT
from ..model.depth import DepthDecoder
from ..model.flatten import TEXT
from ..model.lm import SpeechLM
from ..model.rope import rotary_tables
from ..model.walk import Choose, FrameFeed
from .fused_block import FusedBlock
from .fused_weights import Fused, FusedDepth, FusedStack, fused_weights
from .products import Halves

if TYPE_CHECKING:
    from .prefix import Prefix

PAD = 16  # columns beside x, so that its rows stay aligned
BUCKET = 128  # positions by which the part of a cache that is looked at grows
TURNS = 128  # positions whose rotations are computed at once: fewer calls than one for each
EVERY_ROW = slice(None)


def is_supported(model: SpeechLM) -> bool:
    """Whether the frame step knows this model; others are walked (walk.py)."""
    config, depth = model.config, model.config.depth
    plain = config.pattern != "flatten" and not config.user_codebooks and model.dtype in (torch.float32, torch.float64)
    fused = not config.backbone.qk_norm
    if config.pattern == "depth":
        fused = fused and not (depth.qk_norm or depth.weight_sets or depth.sliding_window)
    return plain and fused


class Stack:
    """A transformer that takes one position at a time, in place: `x` [B, D] holds its input, then its output.

    The output is x / |x|: the last norm's gain and sqrt(D) are in the weights that come after (`gain`).

    Positions go on without end; all rows are at the same one. The cache is a ring: position p is in slot p % capacity,
    until position p + capacity takes its place. A row's mask says which slots it sees, so that rows can be emptied and
    filled on their own; only distances between positions count (RoPE), so a row may begin at any of them.
    """

    def __init__(self, weights: FusedStack, batch: int, capacity: int, like: Tensor):
        """capacity: positions that a row sees, its own included; with a sliding window not more than that.

        like: a tensor of the same type and device.
        """
        config = weights.config
        self.config, self.layers = config, weights.layers
        self.batch, self.capacity = batch, min(capacity, config.sliding_window or capacity)
        self.floor = like.new_full((), math.sqrt(config.dim * config.norm_eps))  # a norm's epsilon, for |x|
        self.make_buffers(like)
        self.make_cache(like)
        self.first_turn, self.turns = -TURNS, ()

    def make_buffers(self, like: Tensor) -> None:
        """Buffers of a step, and every view of them that a step needs."""
        config, batch = self.config, self.batch
        heads, groups, size = config.num_heads, config.num_kv_heads, config.size_of_head
        # x, and a column that makes |x| what it is with the norm's epsilon: sqrt(|x|^2 + D eps)
        self.wide = like.new_zeros(batch, config.dim + PAD)
        self.wide[:, -1] = self.floor
        self.x = self.wide[:, : config.dim]
        self.h = like.new_zeros(batch, config.dim)  # a norm's output
        self.length = like.new_zeros(batch, 1)  # |x|
        self.qkv = like.new_zeros(batch, (heads + 2 * groups) * size)
        split = self.qkv.view(batch, heads + 2 * groups, size)
        self.rotating = torch.view_as_complex(split[:, : heads + groups].unflatten(-1, (-1, 2)))  # [B, H + G, E / 2]
        self.query = split[:, :heads].unflatten(1, (groups, -1))  # [B, G, H / G, E]: queries of a group, like positions
        self.value = self.qkv[:, (heads + groups) * size :]  # [B, G E]
        self.ff = Halves(like.new_zeros(batch, 2 * config.ff_dim))
        self.new = split[:, heads:].unflatten(1, (2, groups)).transpose(0, 1)[:, :, :, None]  # [2, B, G, 1, E]

    def make_cache(self, like: Tensor) -> None:
        """Keys and values of each layer, their buckets, and the mask that says which slots a row sees."""
        config = self.config
        shape = (2, self.batch, config.num_kv_heads, self.capacity, config.size_of_head)
        self.caches = [like.new_zeros(shape) for _ in self.layers]
        self.mask = like.new_full((self.batch, 1, 1, self.capacity), float("-inf"))
        self.seen = 0  # slots that the bucket holds
        self.slot = torch.zeros(1, dtype=torch.long, device=like.device)  # position % capacity
        self.restart()

    def restart(self) -> None:
        """Back to position 0, every row empty."""
        self.clear()
        self.position = self.num_used = 0  # num_used: slots that some row may see are all below it
        self.slot.zero_()

    def clear(self, rows: slice = EVERY_ROW) -> None:
        """Rows see nothing of the positions so far."""
        self.mask[rows].fill_(float("-inf"))

    def use_bucket(self) -> None:
        """Look at as many slots as are needed, in steps of BUCKET: views are made when the step changes."""
        seen = min(self.capacity, -(-self.num_used // BUCKET) * BUCKET)
        if seen != self.seen:
            self.seen = seen
            self.views = [(cache[0, :, :, :seen], cache[1, :, :, :seen]) for cache in self.caches]
            self.seen_mask = self.mask[..., :seen]

    def step(self) -> None:
        """The next position of every row."""
        self.num_used = max(self.num_used, self.position + 1)
        self.use_bucket()
        self.mask.index_fill_(3, self.slot, 0.0)
        turn = self.turn_at(self.position)
        for layer, cache, (keys, values) in zip(self.layers, self.caches, self.views, strict=True):
            self.project(layer, turn)
            cache.index_copy_(3, self.slot, self.new)
            mixed = F.scaled_dot_product_attention(self.query, keys, values, attn_mask=self.seen_mask)
            layer.out.add(mixed.reshape(self.batch, -1), self.x)  # on a GPU its numbers may lie in another order
            self.feed_forward(layer)
        self.finish()
        self.position += 1
        self.slot.add_(1) if self.position % self.capacity else self.slot.zero_()

    def turn_at(self, position: int) -> Tensor | None:
        """The rotation of a position [E / 2]; None without RoPE."""
        if not self.config.rope:
            return None
        if not self.first_turn <= position < self.first_turn + TURNS:
            self.first_turn, self.turns = position, self.rotations(position, TURNS).unbind()
        return self.turns[position - self.first_turn]

    def rotations(self, first: int, count: int) -> Tensor:
        """Complex [count, E / 2], of positions first, first + 1, ..."""
        positions = torch.arange(first, first + count, device=self.x.device)
        return torch.complex(*rotary_tables(positions, self.config, self.x.dtype))

    def project(self, layer: FusedBlock, turn: Tensor | None) -> None:
        """Query, key and value of x, rotated."""
        self.norm()
        layer.qkv.into(self.h, self.qkv)
        if layer.qkv_bias is not None:
            self.qkv.add_(layer.qkv_bias)
        if turn is not None:
            torch.mul(self.rotating, turn, out=self.rotating)

    def feed_forward(self, layer: FusedBlock) -> None:
        self.norm()
        layer.down.add(layer.gate.step(self.h, self.ff), self.x)

    def norm(self) -> None:
        """h = x / |x|, with the norm's epsilon; sqrt(D) and the gain are in the weights."""
        torch.linalg.vector_norm(self.wide, dim=-1, keepdim=True, out=self.length)
        torch.div(self.x, self.length, out=self.h)

    def finish(self) -> None:
        if self.config.final_norm:
            self.norm()
        else:
            self.h.copy_(self.x)

    def prefill(self, x: Tensor, rows: slice = EVERY_ROW) -> Tensor:
        """S positions [R, S, D] of rows that are empty, at once, the last one before the next -> [R, S, D], no norm.

        At position 0 the stack moves on to position S; later rows take the S positions that are over.
        """
        config, num_positions = self.config, x.shape[1]
        slots, tables = self.slots_before(num_positions), None
        if config.rope:
            positions = torch.arange(self.position - num_positions, self.position, device=x.device)
            tables = rotary_tables(positions, config, x.dtype)
        attend = prepare(
            "sdpa", Visibility(num_positions, num_positions, config.sliding_window), x, config.size_of_head
        )
        cache = Slots(self.caches, rows, slots)
        for layer in self.layers:
            x = layer(x, tables, attend, cache)
        self.mask[rows].index_fill_(3, slots, 0.0)
        return x

    def slots_before(self, num_positions: int) -> Tensor:
        """The slots of the last positions before the next one, which are about to be filled; see `prefill`."""
        if self.position == 0:
            self.position = num_positions
            self.slot.fill_(num_positions % self.capacity)
        # the first of them may be before position 0
        self.num_used = max(self.num_used, self.position if self.position >= num_positions else self.capacity)
        kept = min(num_positions, self.capacity)
        return torch.arange(self.position - kept, self.position, device=self.x.device).remainder(self.capacity)

    def kept(self) -> Tensor:
        """Keys and values of the first row, of the last positions: [layers, 2, G, S, E]."""
        slots = self.slots_before(self.position)
        return torch.stack([cache[:, 0][:, :, slots] for cache in self.caches])

    def restore(self, kept: Tensor, x: Tensor, rows: slice = EVERY_ROW) -> Tensor:
        """As `prefill`, by what another stack `kept` of the same positions. -> x as it is."""
        slots = self.slots_before(x.shape[1])
        turn = self.rotations(self.position - x.shape[1], 1)[0] if self.config.rope else None
        for cache, (key, value) in zip(self.caches, kept.to(x), strict=True):
            if turn is not None:  # the other one's first position was 0
                key = torch.view_as_real(torch.view_as_complex(key.unflatten(-1, (-1, 2))) * turn).flatten(-2)
            cache[:, rows, :, slots] = torch.stack([key, value])[:, None]
        self.mask[rows].index_fill_(3, slots, 0.0)
        return x


class Slots:
    """Where keys and values of positions go that some rows take at once: the first ones are forgotten if need be."""

    def __init__(self, caches: Sequence[Tensor], rows: slice, slots: Tensor):
        """caches: of each layer [2, B, G, capacity, E]. slots: of the last positions."""
        self.caches, self.rows, self.slots = caches, rows, slots

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """key, value: [R or 1, G, S, E] -> the same."""
        cache = self.caches[layer][:, self.rows]
        new = torch.stack([key, value])[:, :, :, -len(self.slots) :]
        cache.index_copy_(3, self.slots, new.expand(-1, cache.shape[1], -1, -1, -1))
        return key, value


class ShortStack(Stack):
    """A transformer over the few positions of a step: every view of its cache is made beforehand."""

    def make_cache(self, like: Tensor) -> None:
        super().make_cache(like)
        places = range(self.capacity)
        self.places = [[cache[:, :, :, p : p + 1] for cache in self.caches] for p in places]
        self.before = [[(cache[0, :, :, : p + 1], cache[1, :, :, : p + 1]) for cache in self.caches] for p in places]

    def step_at(self, position: int) -> None:
        """One position of every row; the ones before it are filled."""
        turn = self.turn_at(position)
        for number, layer in enumerate(self.layers):
            self.project(layer, turn)
            self.places[position][number].copy_(self.new)
            if position or self.config.num_heads != self.config.num_kv_heads:
                mixed = F.scaled_dot_product_attention(self.query, *self.before[position][number])
                layer.out.add(mixed.reshape(self.batch, -1), self.x)  # on a GPU its numbers may lie in another order
            else:  # attention to itself alone
                layer.out.add(self.value, self.x)
            self.feed_forward(layer)
        self.finish()


class DepthStep:
    """The depth decoder of one step of every row, position by position."""

    def __init__(self, decoder: DepthDecoder, weights: FusedDepth, batch: int):
        self.decoder, self.weights = decoder, weights
        self.stack = ShortStack(weights.stack, batch, decoder.num_positions, weights.tables[0])
        self.condition = weights.tables[0].new_zeros(batch, decoder.config.dim)
        self.position_of = {k: decoder.position_of(k) for k in range(decoder.first, decoder.num_codebooks)}
        self.reads = [list(decoder.read_at(position)) for position in range(decoder.num_positions)]
        self.num_run = 0

    def begin(self, h: Tensor) -> None:
        """A new step, of which the backbone says h [B, D]."""
        self.weights.project.into(h, self.condition)
        self.num_run = 0

    def logits(self, k: int, values: Mapping[int, Tensor]) -> Tensor:
        """Codebook k's. values: rows of the tables [B], for the slots before it."""
        last = self.position_of[k]
        for position in range(self.num_run, last + 1):
            self.take(position, values)
        self.num_run = last + 1
        return self.weights.heads[k - self.decoder.first](self.stack.h)

    def take(self, position: int, values: Mapping[int, Tensor]) -> None:
        """One position: the codes of the group before, the backbone's word, and the text at the first one."""
        x = self.stack.x
        codes = [F.embedding(values[k], self.weights.tables[k]) for k in self.reads[position]]
        if self.decoder.config.conditioning == "add" or position == 0:
            codes.append(self.condition)
        torch.add(*codes[:2], out=x) if len(codes) > 1 else x.copy_(codes[0])
        for code in codes[2:]:
            x.add_(code)
        if position == 0 and self.weights.text_table is not None and TEXT in values:
            x.add_(F.embedding(values[TEXT], self.weights.text_table))
        self.stack.step_at(position)


class FrameStep:
    """The walk of a batch through one window, in place of walk.py's `Walk` and with its methods."""

    def __init__(
        self,
        model: SpeechLM,
        batch: int,
        capacity: int,
        absent: bool = True,
        looks_ahead: bool = True,
        weights: Fused | None = None,
    ):
        """absent: whether `choose` may give EOS or ABSENT; where it does not, its codes are not looked at.

        looks_ahead: the last known step goes through the backbone with those before it, not with the next one.
        weights: of the model, if another step has them.
        """
        weights = self.weights = weights or fused_weights(model, batch)
        self.model, self.batch, self.may_be_absent = model, batch, absent
        self.slots = [*([TEXT] if model.text_size else []), *range(model.num_codebooks)]
        self.backbone = Stack(weights.stack, batch, capacity, weights.tables)
        self.depth = None if weights.depth is None else DepthStep(model.depth_decoder, weights.depth, batch)
        self.values: dict[int, Tensor] = {}  # rows of the tables, of the step that is being taken
        self.looks_ahead = looks_ahead
        self.offsets = torch.arange(model.num_codebooks, device=model.device) * (model.codebook_size + 2)
        self.restart()

    def restart(self) -> None:
        """To the start of a window, every row."""
        self.backbone.restart()
        self.position = 0
        self.is_ahead = False  # whether the backbone has already taken the step before
        self.starts = [0] * self.batch  # positions at which the rows began
        # the step before: rows of the tables [B, K] and [B]
        self.rows, self.text_row = (x.expand(self.batch, *x.shape[1:]) for x in self.nothing_before())

    def prefill(
        self,
        codes: Tensor,
        text: Tensor | None = None,
        user: Tensor | None = None,
        prefix: "Prefix | None" = None,
    ) -> Tensor | None:
        """Known steps, at the start of the window; as `Walk.prefill`. A single row stands for all.

        prefix: of these steps, so that only the last one is taken, with the next. Then there are no contexts.
        """
        if not codes.shape[2]:
            return None
        assert self.position == 0
        self.is_ahead = self.looks_ahead and prefix is None
        return self.fill(EVERY_ROW, codes, text, user, prefix)

    def join(self, row: int, codes: Tensor, text: Tensor | None = None, prefix: "Prefix | None" = None) -> None:
        """Empty a row and let it begin anew: with known steps, codes [K, S] and text [S], of which S may be 0.

        The other rows are not touched: the row's next step is the one that they take next. prefix: of these steps.
        """
        rows = slice(row, row + 1)
        self.backbone.clear(rows)
        self.fill(rows, codes[None], None if text is None else text[None], prefix=prefix)
        self.starts[row] = self.position - codes.shape[1]

    def resized(self, kept: Sequence[int], batch: int) -> "FrameStep":
        """A step of another batch, whose first rows are these of this one, where they are; the others are empty."""
        other = FrameStep(self.model, batch, self.backbone.capacity, self.may_be_absent, self.looks_ahead, self.weights)
        other.go_on(self, kept)
        return other

    def go_on(self, before: "FrameStep", kept: Sequence[int]) -> None:
        """From where another step's rows are, which become this one's first; this one is at the start of a window."""
        index, rows = torch.tensor(kept, device=before.rows.device), slice(len(kept))
        theirs, mine = before.backbone, self.backbone
        for cache, empty in zip(theirs.caches, mine.caches, strict=True):
            empty[:, rows] = cache[:, index]
        mine.mask[rows] = theirs.mask[index]
        mine.slot.copy_(theirs.slot)
        mine.position, mine.num_used, self.position = theirs.position, theirs.num_used, before.position
        self.set_before(rows, before.rows[index], before.text_row[index])
        self.starts[rows] = [before.starts[row] for row in kept]

    def fill(
        self,
        rows: slice,
        codes: Tensor,
        text: Tensor | None,
        user: Tensor | None = None,
        prefix: "Prefix | None" = None,
    ) -> Tensor | None:
        """Known steps of rows that are empty -> their contexts; None of a prefix."""
        take = self.backbone.prefill
        if prefix is not None:
            assert prefix.caches is not None
            take = partial(self.backbone.restore, prefix.caches)
        feed = FrameFeed(self.model, len(codes), partial(take, rows=rows))
        contexts = feed.prefill(codes, text, user, self.is_ahead)
        if feed.last is not None:
            self.backbone.x[rows] = feed.last
            self.backbone.finish()
        before = (feed.codes, self.model.codebook_size + 2), (feed.text, self.model.text_size + 2)
        self.set_before(rows, *(torch.remainder(tokens, size) for tokens, size in before))
        self.position = self.position or codes.shape[2]
        return None if contexts is None or prefix is not None else self.model.backbone.norm(contexts)

    def nothing_before(self) -> tuple[Tensor, Tensor]:
        """The rows of the tables that stand for BOS: [1, K] and [1]."""
        codes = torch.full_like(self.offsets[None], self.model.bos)
        return codes, codes.new_full((1,), self.model.text_size)

    def set_before(self, rows: slice, codes: Tensor, text: Tensor) -> None:
        """The step before, of some rows: rows of the tables."""
        self.rows, self.text_row = self.rows.clone(), self.text_row.clone()
        self.rows[rows], self.text_row[rows] = codes, text

    def step(self, choose: Choose, known: Mapping[int, Tensor] | None = None, user: Tensor | None = None) -> None:
        """The next step; as `Walk.step`."""
        if not self.position and not self.model.config.bos:
            raise ValueError("this model has no BOS: it goes on from a given first frame (text or codes)")
        if not self.is_ahead:
            self.run_backbone()
        self.is_ahead = False
        self.values, known = {}, known or {}
        if self.depth is not None:
            self.depth.begin(self.backbone.h)
        for slot in self.slots:
            if slot in known:
                value = self.row_of(known[slot], slot)
            else:
                value = choose(slot, self.logits(slot))
                value = self.row_of(value, slot) if self.may_be_absent else value
            self.values[slot] = value
        self.rows = torch.stack([self.values[k] for k in range(self.model.num_codebooks)], dim=1)
        if self.weights.text_table is not None:
            self.text_row = self.values[TEXT]
        self.position += 1

    def run_backbone(self) -> None:
        """The step before through the backbone."""
        torch.sum(F.embedding(self.rows + self.offsets, self.weights.tables), dim=1, out=self.backbone.x)
        if self.weights.text_table is not None:
            self.backbone.x.add_(F.embedding(self.text_row, self.weights.text_table))
        self.backbone.step()

    def row_of(self, tokens: Tensor, slot: int) -> Tensor:
        """Tokens [B], ABSENT and EOS allowed -> rows of the tables, whose last one is that of ABSENT."""
        if slot == TEXT:
            return torch.remainder(tokens, self.model.text_size + 2)
        if slot == 0:
            tokens = torch.where(tokens == self.model.eos, ABSENT, tokens)
        return torch.remainder(tokens, self.model.codebook_size + 2)

    def logits(self, slot: int) -> Tensor:
        if slot in self.weights.heads:
            return self.weights.heads[slot](self.backbone.h)
        assert self.depth is not None
        return self.depth.logits(slot, self.values)
