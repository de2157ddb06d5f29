"""Walking through a sequence one step at a time, in any pattern: generation, arithmetic coding and proofs do.

    walk = Walk(model, batch, capacity)
    walk.prefill(...)                        # steps that are known
    walk.step(choose)                        # the next one: text (TEXT) first, then codebooks 0..K-1

    def choose(slot, logits):                # -> [B] what the slot holds, ABSENT where there is nothing
        return logits.argmax(dim=-1)         # [B, C], given everything before the slot

The walk owns the caches, and is the state: there is none in the model. How far a model may look back is windows.py's.
B rows at the same step, K codebooks, U of another speaker, S steps, D width, V codebook size, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from .delay_pattern import ABSENT
from .flatten import TEXT, SlotFeed
from .lm import SpeechLM
from .recent_tokens import RecentTokens
from .transformer import KVCache

# (slot, its logits: [B, C] for codebook 0, EOS last if it has one, [B, V] for the others, [B, text vocabulary] for
# TEXT) -> its value [B], ABSENT where there is nothing
Choose = Callable[[int, Tensor], Tensor]


class Walk:
    def __init__(self, model: SpeechLM, batch: int, capacity: int):
        """capacity: the most steps that this walk will take."""
        self.model, self.batch = model, batch
        self.slots = [*([TEXT] if model.text_size else []), *range(model.num_codebooks)]
        if model.pattern == "flatten":
            self.feed = SlotFeed(model.backbone, model.slot_embedding, batch, capacity)
        else:
            self.cache = KVCache(model.config.backbone, batch, capacity, model.frame_embedding.weight)
            self.feed = FrameFeed(model, batch, partial(model.backbone, cache=self.cache))
        self.position = 0  # steps taken so far
        self.values: dict[int, Tensor] = {}  # in the step that is being taken
        self._depth_cache: KVCache | None = None
        self._condition: Tensor | None = None
        self._predicted: dict[int, Tensor] = {}  # logits of codebooks, by the depth decoder's last call

    def prefill(self, codes: Tensor, text: Tensor | None = None, user: Tensor | None = None) -> Tensor | None:
        """Take the steps in codes [B, K, S] (delayed as the model's are, ABSENT allowed), text [B, S], user [B, U, S].

        For a model without BOS the first step is the first of these. Gives the contexts from which the steps are
        predicted, [B, S, D] (without BOS one less), or None in "flatten".
        """
        if not codes.shape[2]:
            return None
        self.position += codes.shape[2]
        return self.feed.prefill(codes, text, user)

    def step(self, choose: Choose, known: Mapping[int, Tensor] | None = None, user: Tensor | None = None) -> None:
        """Take the next step: `choose` says what each slot holds. EOS counts as ABSENT for what follows.

        known: slots whose values [B] need no logits; they cost nothing. user: the other speaker's codes [B, U].
        Raises ValueError for a model without BOS that has not been given its first step.
        """
        self.begin()
        for slot in self.slots:
            self.take(slot, known[slot] if known and slot in known else choose(slot, self.logits(slot)))
        self.finish(user)

    def begin(self) -> None:
        if not self.position and not self.model.config.bos:
            raise ValueError("this model has no BOS: it goes on from a given first frame (text or codes)")
        self.values = {}
        self._depth_cache = self._condition = None  # the depth decoder starts afresh every step

    def take(self, slot: int, value: Tensor) -> None:
        """The next slot holds this [B]."""
        self.values[slot] = torch.where(value == self.model.eos, ABSENT, value) if slot == 0 else value

    def finish(self, user: Tensor | None = None) -> None:
        """The step is complete."""
        self.feed.finish(self.values, user)
        self.position += 1

    def select(self, rows: Sequence[int]) -> None:
        """Let row b be what row rows[b] was, before the step's first codebook is asked for."""
        index = torch.tensor(rows, device=self.model.device)
        if self.model.pattern != "flatten":
            self.cache.select(index)
        self.feed.select(index)
        self.values = {slot: value[index] for slot, value in self.values.items()}

    def logits(self, slot: int) -> Tensor:
        """Of the next slot, given those that the step holds."""
        model, context = self.model, self.feed.context(self.values)
        if slot == TEXT:
            return model.text_logits(context)
        if model.pattern == "depth" and (slot or model.depth_is_first):
            return self._depth_logits(context, slot)
        if slot == 0:
            return model.head_0(context)
        return context @ model.heads[slot - 1].to(context.dtype)

    def _depth_logits(self, context: Tensor, slot: int) -> Tensor:
        """Run the depth decoder up to the position that predicts codebook `slot`, if that is not done."""
        decoder = self.model.depth_decoder
        if self._depth_cache is None or self._condition is None:
            self._depth_cache = KVCache(decoder.config, self.batch, decoder.num_positions, context)
            self._condition = decoder.condition(context)
        position, done, size = decoder.position_of(slot), self._depth_cache.length, decoder.group_size
        if position >= done:  # else the codebook is in a group that was predicted
            absent = torch.full((self.batch,), ABSENT, device=context.device)
            columns = []
            for books in map(decoder.read_at, range(done, position + 1)):
                columns += [self.values[k] for k in books] + [absent] * (size - len(books))
            codes = torch.stack(columns, dim=1).unflatten(1, (-1, size))
            text = self.values.get(TEXT)
            zero, others = decoder(self._condition, codes, self.model.frame_embedding, text, self._depth_cache)
            first = 1 + max(done - decoder.codeless, 0) * size
            self._predicted = dict(enumerate(others if others is not None else (), first))
            if zero is not None:
                self._predicted[0] = zero
        return self._predicted[slot]


class FrameFeed:
    """The backbone's side of a walk in which a step is one position, and takes all tokens of the step before."""

    def __init__(self, model: SpeechLM, batch: int, backbone: Callable[[Tensor], Tensor]):
        """backbone: [B, S, D] -> [B, S, D], with a cache of its own."""
        self.model, self.backbone, self.num_users = model, backbone, model.config.user_codebooks
        self.is_first = True
        # the step before: BOS of every stream, [B, K + U] and [B]
        self.codes = torch.full((batch, model.num_codebooks + self.num_users), model.bos, device=model.device)
        self.text = torch.full((batch,), model.text_size, device=model.device)
        self.recent = new_recent(model, batch)
        self.last: Tensor | None = None

    def prefill(self, codes: Tensor, text: Tensor | None, user: Tensor | None, ahead: bool = True) -> Tensor | None:
        """Known steps: codes [B, K, S], text [B, S], user [B, U, S] -> their contexts; None if there are none.

        ahead: the backbone also takes the last one, from which the next step is predicted.
        """
        codes = self.fill_gaps(codes, user)
        texts = torch.full_like(codes[:, 0], ABSENT) if text is None else text
        inputs = torch.cat([self.codes[:, :, None], codes], dim=2)
        text_inputs = torch.cat([self.text[:, None], texts], dim=1)
        self.codes, self.text = inputs[:, :, -1], text_inputs[:, -1]
        # nothing comes before the first step of a model without BOS; a step that the backbone has taken is over
        first = int(self.last is not None or (self.is_first and not self.model.config.bos))
        stop = inputs.shape[2] if ahead else -1
        contexts = [] if self.last is None else [self.last[:, None]]
        if inputs[:, :, first:stop].shape[2]:
            contexts.append(self.run(inputs[:, :, first:stop], text_inputs[:, first:stop]))
        self.is_first, self.last = False, None
        x = torch.cat(contexts, dim=1) if contexts else None
        if ahead and x is not None:
            x, self.last = x[:, :-1], x[:, -1]
        return x if x is not None and x.shape[1] else None

    def run(self, codes: Tensor, text: Tensor) -> Tensor:
        """Steps [B, K + U, S] and text [B, S] through the backbone -> [B, S, D]."""
        recent = None if self.recent is None else self.recent.extend(text)
        return self.backbone(self.model.embed_frames(codes, text if self.model.text_size else None, recent))

    def context(self, values: Mapping[int, Tensor]) -> Tensor:
        """[B, D], the same for every slot of a step; its values so far go to the depth decoder only."""
        if self.last is None:
            self.last = self.run(self.codes[:, :, None], self.text[:, None])[:, -1]
        return self.last

    def finish(self, values: Mapping[int, Tensor], user: Tensor | None) -> None:
        """A step is complete: the values of all slots, user [B, U]."""
        self.context(values)  # the backbone sees every step, also one of which nothing was asked
        codes = torch.stack([values[k] for k in range(self.model.num_codebooks)], dim=1)
        self.codes = self.fill_gaps(codes, user)
        self.text = values[TEXT] if TEXT in values else torch.full_like(codes[:, 0], ABSENT)
        self.is_first, self.last = False, None

    def select(self, rows: Tensor) -> None:
        """Let row b be what row rows[b] was, but for what the backbone keeps of it."""
        self.codes, self.text = self.codes[rows], self.text[rows]
        self.last = None if self.last is None else self.last[rows]
        if self.recent is not None:
            self.recent.select(rows)

    def fill_gaps(self, codes: Tensor, user: Tensor | None) -> Tensor:
        """Codes [B, K, ...] and the other speaker's [B, U, ...] -> [B, K + U, ...], ABSENT as the model is given it."""
        if user is None and self.num_users:
            user = codes.new_full((len(codes), self.num_users, *codes.shape[2:]), ABSENT)
        codes = codes if user is None else torch.cat([codes, user], dim=1)
        return codes.masked_fill(codes == ABSENT, self.model.bos) if self.model.config.gaps == "bos" else codes


def new_recent(model: SpeechLM, batch: int) -> RecentTokens | None:
    """At the start of every row; None for a model that is told no token again."""
    count = model.config.num_recent_tokens
    return RecentTokens(batch, count, model.text_size, model.device) if count else None
