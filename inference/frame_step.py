"""One frame = one call: the step of generation with static shapes, fused weights and no host synchronisation.

    h = backbone.step(sum of the embeddings of the step before)      # [B, K] -> [B, D]
    codebook 0 <- heads[0](h);  condition = project(h)
    codebook k <- heads[k](depth.step_at(k - 1: condition + tables[k - 1][code k - 1]))

It computes what walk.py, the readable reference, computes (tests hold them together in float64). All buffers, views and
caches are made once for a batch; the weights are those of fused_weights.py.
B rows, K codebooks, D backbone width, d depth width, V codebook size, H heads, G key/value heads, E head width.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.delay_pattern import ABSENT
from ..model.depth import DepthDecoder
from ..model.flatten import TEXT
from ..model.lm import SpeechLM
from ..model.walk import Choose, FrameFeed, new_recent
from .fused_weights import Fused, FusedDepth, fused_weights
from .stack import EVERY_ROW, ShortStack, Stack

if TYPE_CHECKING:
    from .prefix import Prefix


Steps = tuple[Tensor, Tensor | None, Tensor | None]  # codes [B, K, S], text [B, S], user [B, U, S]


def is_supported(model: SpeechLM) -> bool:
    """Whether the frame step knows this model; others are walked (walk.py)."""
    config, depth = model.config, model.config.depth
    plain = config.pattern != "flatten" and not config.user_codebooks and model.dtype in (torch.float32, torch.float64)
    fused = not config.backbone.qk_norm
    if config.pattern == "depth":
        fused = fused and not (depth.qk_norm or depth.weight_sets or depth.sliding_window)
    return plain and fused


class DepthStep:
    """The depth decoder of one step of every row, position by position."""

    def __init__(self, decoder: DepthDecoder, weights: FusedDepth, batch: int, like: Tensor):
        """like: a tensor of the same type and device."""
        self.decoder, self.weights = decoder, weights
        self.stack = ShortStack(weights.stack, batch, decoder.num_positions, like)
        self.condition = like.new_zeros(batch, decoder.config.dim)
        self.may_be_absent = True
        self.position_of = {k: decoder.position_of(k) for k in range(decoder.first, decoder.num_codebooks)}
        self.reads = [list(decoder.read_at(position)) for position in range(decoder.num_positions)]
        self.num_run = 0

    def begin(self, h: Tensor, absent: bool) -> None:
        """A new step, of which the backbone says h [B, D]. absent: whether codes of it may be ABSENT."""
        self.weights.project.into(h, self.condition)
        self.num_run, self.may_be_absent = 0, absent

    def logits(self, k: int, values: Mapping[int, Tensor]) -> Tensor:
        """Codebook k's. values: tokens [B] of the slots before it."""
        last = self.position_of[k]
        for position in range(self.num_run, last + 1):
            self.take(position, values)
        self.num_run = last + 1
        return self.weights.heads[k - self.decoder.first](self.stack.h)

    def take(self, position: int, values: Mapping[int, Tensor]) -> None:
        """One position: the codes of the group before, the backbone's word, and the text at the first one."""
        x = self.stack.x
        codes = [look_up(self.weights.tables[k], values[k], self.may_be_absent) for k in self.reads[position]]
        if self.decoder.config.conditioning == "add" or position == 0:
            codes.append(self.condition)
        torch.add(*codes[:2], out=x) if len(codes) > 1 else x.copy_(codes[0])
        for code in codes[2:]:
            x.add_(code)
        if position == 0 and self.weights.text_table is not None and TEXT in values:
            x.add_(look_up(self.weights.text_table, values[TEXT]))
        self.stack.step_at(position)


def look_up(table: Tensor, tokens: Tensor, may_be_absent: bool = True, offsets: Tensor | int = 0) -> Tensor:
    """Rows of a table [.., D], by tokens [B, ..] and where the rows of these begin; zero for ABSENT."""
    if not may_be_absent:
        return F.embedding(tokens + offsets if isinstance(offsets, Tensor) else tokens, table)
    return F.embedding(tokens.clamp_min(0) + offsets, table) * (tokens != ABSENT)[..., None]


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
        """absent: whether `choose` may give EOS or ABSENT.

        looks_ahead: the last known step goes through the backbone with those before it, not with the next one.
        weights: of the model, if another step has them.
        """
        weights = self.weights = weights or fused_weights(model, batch)
        self.model, self.batch, self.may_be_absent = model, batch, absent
        self.slots = [*([TEXT] if model.text_size else []), *range(model.num_codebooks)]
        self.backbone = Stack(weights.stack, batch, capacity, weights.tables)
        self.depth = None
        if weights.depth is not None:
            self.depth = DepthStep(model.depth_decoder, weights.depth, batch, weights.tables)
        self.values: dict[int, Tensor] = {}  # tokens [B] of the step that is being taken, as the model hears them
        self.looks_ahead = looks_ahead
        self.offsets = torch.arange(model.num_codebooks, device=model.device) * (model.codebook_size + 1)
        self.recent_offsets = torch.arange(model.config.num_recent_tokens, device=model.device) * model.text_size
        self.restart()

    def restart(self) -> None:
        """To the start of a window, every row."""
        self.backbone.restart()
        self.position = 0
        self.is_ahead = False  # whether the backbone has already taken the step before
        self.starts = [0] * self.batch  # positions at which the rows began
        # the step before, as the model hears it: BOS of every stream
        self.codes = torch.full((self.batch, self.model.num_codebooks), self.model.bos, device=self.model.device)
        self.text = torch.full((self.batch,), self.model.text_size, device=self.model.device)
        self.recent = new_recent(self.model, self.batch)
        self.some_absent = False  # whether codes in it may be ABSENT

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

    def prefill_parts(self, parts: Sequence[Steps]) -> Tensor | None:
        """As `prefill`, but each part of the rows has steps of its own, the first one the most -> its contexts."""
        assert self.position == 0
        contexts, size, self.is_ahead = [], self.batch // len(parts), self.looks_ahead
        for number, (codes, text, user) in enumerate(parts):
            contexts.append(self.fill(slice(number * size, (number + 1) * size), codes, text, user))
            self.starts[number * size : (number + 1) * size] = [self.position - codes.shape[2]] * size
        return contexts[0]

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
        index, rows = torch.tensor(kept, device=before.codes.device), slice(len(kept))
        theirs, mine = before.backbone, self.backbone
        for stack in (theirs, mine):
            stack.clear_slots(stack.capacity)
        for cache, empty in zip(theirs.caches, mine.caches, strict=True):
            empty[:, rows] = cache[:, index]
        mine.mask[rows] = theirs.mask[index]
        mine.slot.copy_(theirs.slot)
        mine.position, mine.num_used, self.position = theirs.position, theirs.num_used, before.position
        self.set_before(rows, before.codes[index], before.text[index])
        if self.recent is not None and before.recent is not None:
            self.recent.put(rows, before.recent, index)
        self.starts[rows] = [before.starts[row] for row in kept]

    def select(self, rows: Sequence[int]) -> None:
        """Let row b be what row rows[b] was, before the step's first codebook is asked for."""
        index = torch.tensor(rows, device=self.codes.device)
        self.backbone.select(rows)
        self.codes, self.text = self.codes[index], self.text[index]
        self.starts = [self.starts[row] for row in rows]
        self.values = {slot: value[index] for slot, value in self.values.items()}
        if self.recent is not None:
            self.recent.select(index)

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
        self.set_before(rows, feed.codes, feed.text)
        if self.recent is not None and feed.recent is not None:
            self.recent.put(rows, feed.recent)
        self.position = self.position or codes.shape[2]
        return None if contexts is None or prefix is not None else self.model.backbone.norm(contexts)

    def set_before(self, rows: slice, codes: Tensor, text: Tensor) -> None:
        """The step before, of some rows, as the model hears it: codes [R, K] and text [R]."""
        self.codes, self.text = self.codes.clone(), self.text.clone()
        self.codes[rows], self.text[rows] = codes, text
        self.some_absent = True

    def step(self, choose: Choose, known: Mapping[int, Tensor] | None = None, user: Tensor | None = None) -> None:
        """The next step; as `Walk.step`."""
        if not self.position and not self.model.config.bos:
            raise ValueError("this model has no BOS: it goes on from a given first frame (text or codes)")
        if not self.is_ahead:
            self.run_backbone()
        self.is_ahead = False
        self.values, known = {}, known or {}
        absent = self.may_be_absent or bool(known)
        self.some_absent = absent and self.model.config.gaps != "bos"
        if self.depth is not None:
            self.depth.begin(self.backbone.h, self.some_absent)
        for slot in self.slots:
            value = known[slot] if slot in known else choose(slot, self.logits(slot))
            self.values[slot] = self.heard(slot, value) if absent else value
        self.codes = torch.stack([self.values[k] for k in range(self.model.num_codebooks)], dim=1)
        self.text = self.values.get(TEXT, self.text)
        self.position += 1

    def run_backbone(self) -> None:
        """The step before through the backbone."""
        rows = look_up(self.weights.tables, self.codes, self.some_absent, self.offsets)  # [B, K, D]
        torch.sum(rows, dim=1, out=self.backbone.x)
        if self.weights.text_table is not None:
            self.backbone.x.add_(look_up(self.weights.text_table, self.text))
        if self.recent is not None and self.weights.recent_table is not None:
            recent = self.recent.take(self.text)  # [B, A]
            self.backbone.x.add_(look_up(self.weights.recent_table, recent, offsets=self.recent_offsets).sum(dim=1))
        self.backbone.step()

    def heard(self, slot: int, tokens: Tensor) -> Tensor:
        """Tokens [B] as the model hears them: EOS is ABSENT, and ABSENT is BOS in a model whose gaps are."""
        if slot == 0:
            tokens = torch.where(tokens == self.model.eos, ABSENT, tokens)
        if slot != TEXT and self.model.config.gaps == "bos":
            tokens = torch.where(tokens == ABSENT, self.model.bos, tokens)
        return tokens

    def logits(self, slot: int) -> Tensor:
        if slot in self.weights.heads:
            return self.weights.heads[slot](self.backbone.h)
        assert self.depth is not None
        return self.depth.logits(slot, self.values)
