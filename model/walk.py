"""Walking through a sequence one step at a time, in any pattern: what generation and arithmetic coding do.

    walk = Walk(model, batch, capacity)
    walk.prefill(...)                        # steps that are known
    walk.step(choose)                        # the next one: text (TEXT) first, then codebooks 0..K-1

    def choose(slot, logits):                # [B] what the slot holds, ABSENT where there is nothing
        return logits().argmax(dim=-1)       # [B, C], given everything before the slot

Slots are taken in order; one whose logits are not asked for costs nothing. The walk owns the caches, and is the state:
there is none in the model. B rows at the same step, K codebooks, S steps, D width.
"""

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from .delay_pattern import ABSENT
from .lm import SpeechLM
from .transformer import KVCache

TEXT = -1  # the slot of the text token; the others are codebooks
# (slot, its logits when called: [B, C] for codebook 0 with EOS last if it has one, [B, V] for the others,
# [B, text vocabulary] for TEXT) -> what it holds [B], ABSENT where there is nothing
Choose = Callable[[int, Callable[[], Tensor]], Tensor]


class Walk:
    def __init__(self, model: SpeechLM, batch: int, capacity: int):
        """capacity: the most steps that this walk will take."""
        self.model, self.batch, self.device = model, batch, model.device
        self.flat = model.pattern == "flatten"
        self.slots = [*([TEXT] if model.text_size else []), *range(model.num_codebooks)]
        positions = capacity * (len(self.slots) if self.flat else 1)
        self.cache = KVCache(model.config.backbone, batch, positions, model.frame_embedding.weight)
        self.position = 0  # steps taken so far
        self.values: dict[int, Tensor] = {}  # of the step that is being taken
        self._before = self._start()  # [B, K + U], [B]: the step before, as the backbone is given it
        self._pending: list[Tensor] = []  # "flatten": embeddings [B, n, D] that the backbone has yet to see
        if self.flat:
            self._pending = [model.first_slot.expand(batch, 1, -1)]
        self._context: Tensor | None = None
        self._depth_cache: KVCache | None = None

    # --- known steps ---

    def prefill(self, codes: Tensor, text: Tensor | None = None, user: Tensor | None = None) -> None:
        """Take the steps in codes [B, K, S] (delayed as the model's are, ABSENT allowed), text [B, S], user [B, U, S].

        For a model without BOS the first step is the first of these.
        """
        if not codes.shape[2]:
            return
        if self.flat:
            if text is None and self.model.text_size:
                text = torch.full_like(codes[:, 0], ABSENT)
            self._pending.append(self.model.embed_slots(codes, text).flatten(1, 2))
        else:
            codes = codes if user is None else torch.cat([codes, user], dim=1)
            codes = self._fill_gaps(codes, user is None)
            first_codes, first_text = self._before
            inputs = torch.cat([first_codes[:, :, None], codes[:, :, :-1]], dim=2)
            texts = None if text is None else torch.cat([first_text[:, None], text[:, :-1]], dim=1)
            if text is None and self.model.text_size:
                texts = torch.full_like(inputs[:, 0], ABSENT)
                texts[:, 0] = first_text
            if self.position == 0 and not self.model.config.bos:
                inputs, texts = inputs[:, :, 1:], None if texts is None else texts[:, 1:]
            if inputs.shape[2]:
                self.model.backbone(self.model.embed_frames(inputs, texts), self.cache)
            last_text = torch.full_like(first_text, ABSENT) if text is None else text[:, -1]
            self._before = codes[:, :, -1], last_text
        self.position += codes.shape[2]

    # --- one step ---

    def step(self, choose: Choose, user: Tensor | None = None) -> None:
        """Take the next step: `choose` says what each slot holds. EOS counts as ABSENT for what follows.

        user: what the other speaker's codebooks [B, U] hold at it.
        Raises ValueError for a model without BOS that has not been given its first step.
        """
        if not self.position and not self.model.config.bos:
            raise ValueError("this model has no BOS: it goes on from a given first frame (text or codes)")
        self.values, self._context, self._depth_cache = {}, None, None
        for slot in self.slots:
            value = choose(slot, cache(partial(self._logits, slot)))
            self.values[slot] = torch.where(value == self.model.eos, ABSENT, value) if slot == 0 else value
            if self.flat:
                self._pending.append(self._embed_slot(slot, self.values[slot])[:, None])
        if not self.flat:
            self._get_context()  # the backbone sees every step, also one of which nothing was asked
            codes = torch.stack([self.values[k] for k in range(self.model.num_codebooks)], dim=1)
            codes = codes if user is None else torch.cat([codes, user], dim=1)
            text = self.values[TEXT] if TEXT in self.slots else torch.full_like(codes[:, 0], ABSENT)
            self._before = self._fill_gaps(codes, user is None), text
        self.position += 1

    # --- within ---

    def _logits(self, slot: int) -> Tensor:
        model, context = self.model, self._get_context()
        if slot == TEXT:
            return model.text_logits(context)
        if model.pattern == "depth" and (slot or model.depth_is_first):
            return self._depth_logits(context, slot)
        if slot == 0:
            return model.head_0(context)
        return context @ model.heads[slot - 1].to(context.dtype)

    def _start(self) -> tuple[Tensor, Tensor]:
        """BOS of every stream."""
        model = self.model
        streams = model.num_codebooks + model.config.user_codebooks
        codes = torch.full((self.batch, streams), model.bos, device=self.device)
        return codes, torch.full((self.batch,), model.text_size, device=self.device)

    def _fill_gaps(self, codes: Tensor, no_user: bool) -> Tensor:
        """ABSENT as the model is given it, and as many streams as it hears."""
        if no_user and self.model.config.user_codebooks:
            shape = codes.shape[0], self.model.config.user_codebooks, *codes.shape[2:]
            codes = torch.cat([codes, codes.new_full(shape, ABSENT)], dim=1)
        return codes.masked_fill(codes == ABSENT, self.model.bos) if self.model.config.gaps == "bos" else codes

    def _get_context(self) -> Tensor:
        """[B, D] of the slot that is to come."""
        if self.flat and self._pending:
            x = torch.cat(self._pending, dim=1)
            self._pending = []
            self._context = self.model.backbone(x, self.cache)[:, -1]
        elif self._context is None:
            codes, text = self._before
            x = self.model.embed_frames(codes[:, :, None], text[:, None] if self.model.text_size else None)
            self._context = self.model.backbone(x, self.cache)[:, -1]
        assert self._context is not None
        return self._context

    def _depth_logits(self, context: Tensor, slot: int) -> Tensor:
        """Run the depth decoder up to the position that predicts codebook `slot`."""
        decoder = self.model.depth_decoder
        if self._depth_cache is None:  # it starts afresh every step
            self._depth_cache = KVCache(decoder.config, self.batch, decoder.num_positions, context)
        first, last = self._depth_cache.length, slot - 1 + decoder.codeless
        absent = torch.full((self.batch,), ABSENT, device=self.device)
        # position p takes codebook p - codeless; TEXT is -1, and no code
        books = range(first - decoder.codeless, last + 1 - decoder.codeless)
        codes = torch.stack([self.values.get(k, absent) if k >= 0 else absent for k in books], dim=1)
        hidden = decoder(context, codes, self.model.frame_embedding, self.values.get(TEXT), self._depth_cache)
        zero, others = decoder.logits(hidden, first)
        if slot == 0:
            assert zero is not None
            return zero
        assert others is not None
        return others[-1]

    def _embed_slot(self, slot: int, value: Tensor) -> Tensor:
        """A token [B] -> [B, D], as a position of "flatten"."""
        model = self.model
        if slot == TEXT:
            return model.embed_text(value)
        row = (value + slot * (model.codebook_size + 1)).clamp_min(0)
        return torch.nn.functional.embedding(row, model.frame_embedding.weight) * (value != ABSENT)[:, None]
