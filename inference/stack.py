"""A transformer that takes one position at a time, in place: the frame step has two, `Stack` and `ShortStack`.

B rows, D width, H heads, G key/value heads, E head width.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.attention import Visibility, prepare
from ..model.rope import rotary_tables
from .fused_block import FusedBlock
from .fused_weights import FusedStack
from .products import Halves

PAD = 16  # columns beside x, so that its rows stay aligned
BUCKET = 32  # positions by which the part of a cache that is looked at grows
TURNS = 128  # positions whose rotations are computed at once: fewer calls than one for each
EVERY_ROW = slice(None)


class Stack:
    """A transformer that takes one position at a time, in place: `x` [B, D] holds its input, then its output.

    Positions go on without end; all rows are at the same one. The cache is a ring: position p is in slot p % capacity,
    until position p + capacity takes its place. A row's mask says which slots it sees, so that rows can be emptied and
    filled on their own; only distances between positions count (RoPE), so a row may begin at any of them.
    """

    def __init__(self, weights: FusedStack, batch: int, capacity: int, like: Tensor):
        """capacity: positions that a row sees, its own included; with a sliding window not more than that.

        like: a tensor of the same type and device.
        """
        config = weights.config
        self.config, self.layers, self.gain = config, weights.layers, weights.gain
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
        self.caches = [like.new_empty(shape) for _ in self.layers]
        self.mask = like.new_full((self.batch, 1, 1, self.capacity), float("-inf"))
        self.seen = self.num_clear = (
            0  # slots that the bucket holds, and slots that hold numbers: memory comes as needed
        )
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
        for cache in self.caches:  # NaN would come through the mask: it is NaN when multiplied by 0, too
            cache[:, rows, :, : self.num_clear].zero_()

    def select(self, rows: Sequence[int]) -> None:
        """Let row b see what row rows[b] saw."""
        changed = [row for row, source in enumerate(rows) if row != source]
        index = torch.tensor(changed, device=self.x.device)
        source = torch.tensor([rows[row] for row in changed], device=self.x.device)
        for cache in self.caches:
            seen = cache[:, :, :, : self.num_used]
            seen[:, index] = seen[:, source]
        self.mask[index] = self.mask[source]

    def clear_slots(self, count: int) -> None:
        """Let the first slots hold zeros until they are filled, those that were not looked at before."""
        if count > self.num_clear:
            for cache in self.caches:
                cache[:, :, :, self.num_clear : count].zero_()
            self.num_clear = count

    def use_bucket(self) -> None:
        """Look at as many slots as are needed, in steps of BUCKET: views are made when the step changes."""
        seen = min(self.capacity, -(-self.num_used // BUCKET) * BUCKET)
        if seen != self.seen:
            self.seen = seen
            self.clear_slots(seen)
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
        """The output: h, normed if the transformer has a last norm."""
        if self.gain is None:
            self.h.copy_(self.x)
        else:
            self.norm()
            self.h.mul_(self.gain)

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
        self.clear_slots(self.num_used)
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
        turn = self.turn_at(position) if position else None  # position 0 is not turned
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
