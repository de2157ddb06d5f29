"""What the checks run on: rows of random codes, text and another speaker, and a walk through them step by step.

B rows, K codebooks, U of another speaker (user), T columns (frames), S steps, V codebook size.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...model.delay_pattern import ABSENT, delay, undelay
from ...model.flatten import TEXT
from ...model.lm import SpeechLM
from ...model.shapes import TAGGED, TEXT_LAYOUTS
from ...model.walk import Walk
from ..frame_step import FrameStep

LAYOUTS = ("audio", *TEXT_LAYOUTS)  # no text, or a text stream


@dataclass(frozen=True)
class Rows:
    """Sequences of different lengths, padded; some end with EOS."""

    layout: str
    codes: Tensor  # [B, K, T]
    ends: Tensor  # [B] bool
    lengths: tuple[int, ...]  # columns of each row
    text: Tensor | None = None  # [B, T]
    user: Tensor | None = None  # [B, U, T]

    def row(self, i: int) -> "Rows":
        """One row alone, without its padding."""
        cut = self.lengths[i]
        text = None if self.text is None else self.text[i : i + 1, :cut]
        user = None if self.user is None else self.user[i : i + 1, :, :cut]
        return Rows(self.layout, self.codes[i : i + 1, :, :cut], self.ends[i : i + 1], (cut,), text, user)

    def repeat(self, count: int) -> "Rows":
        """One row, `count` times, to be changed in places."""
        return replace(
            self,
            codes=self.codes.repeat(count, 1, 1),
            ends=self.ends.repeat(count),
            lengths=self.lengths * count,
            text=None if self.text is None else self.text.repeat(count, 1),
            user=None if self.user is None else self.user.repeat(count, 1, 1),
        )

    def arguments(self) -> dict[str, Any]:
        """For `SpeechLM.forward`."""
        return {"codes": self.codes, "ends": self.ends, "text": self.text, "user": self.user}

    def has_end(self, model: SpeechLM) -> Tensor:
        """[B] bool, rows in which EOS is expected."""
        return self.ends & (self.codes[:, 0] != ABSENT).any(dim=1) & (model.config.end == "eos")

    def scored_codes(self, model: SpeechLM) -> Tensor:
        """[B, K, T] bool, the codes that must be scored: all that are present."""
        return self.codes != ABSENT

    def scored_text(self, model: SpeechLM) -> Tensor:
        """[B, T] bool."""
        if self.text is None or not model.predicts_text:
            return torch.zeros_like(self.codes[:, 0], dtype=torch.bool)
        return self.text != ABSENT

    def num_scored(self, model: SpeechLM) -> int:
        """Codes, EOS and text tokens."""
        parts = self.scored_codes(model), self.has_end(model), self.scored_text(model)
        return int(sum(part.sum() for part in parts))


def rows_of(model: SpeechLM) -> list[Rows]:
    """Rows in every layout that the model takes."""
    return [make_rows(model, layout) for layout in (LAYOUTS if model.text_size else LAYOUTS[:1])]


def fullest_rows(model: SpeechLM) -> Rows:
    """Rows in which every stream of the model is present."""
    return make_rows(model, "aligned" if model.text_size else "audio")


def make_rows(model: SpeechLM, layout: str = "audio") -> Rows:
    """Random rows, long enough for every delay; always the same ones."""
    generator = torch.Generator().manual_seed(0)
    longest = 5 + max(model.config.delays)
    lengths = (longest, longest - 2, 2, 1)

    def draw(size: int, *shape: int) -> Tensor:
        return torch.randint(size, (len(lengths), *shape, longest), generator=generator)

    codes, text, user = draw(model.codebook_size, model.num_codebooks), None, None
    if model.config.user_codebooks:
        user = draw(model.codebook_size, model.config.user_codebooks)
    if layout != "audio":
        text = draw(model.text_size)
    for row, length in enumerate(lengths):
        boundary = (length + 1) // 2
        if layout == "first":
            codes[row, :, :boundary] = ABSENT
        elif layout == "last":
            codes[row, :, boundary:] = ABSENT
        elif layout in TAGGED:  # a voice, text, audio
            codes[row, :, boundary // 2 : boundary] = ABSENT
        codes[row, :, length:] = ABSENT
        if text is not None:
            has_text = {
                "first": slice(0, boundary),
                "last": slice(boundary, length),
                "aligned": slice(0, length),
                "mixed": slice(boundary // 2, boundary),
                "timed": slice(boundary // 2, length),
            }[layout]
            kept = text[row, has_text].clone()
            text[row] = ABSENT
            text[row, has_text] = kept
        if user is not None:
            user[row, :, length:] = ABSENT
    ends = torch.tensor([True, False, True, True])
    device = model.device
    return Rows(
        layout, codes.to(device), ends.to(device), lengths,
        None if text is None else text.to(device), None if user is None else user.to(device),
    )  # fmt: skip


@dataclass(frozen=True)
class Nats:
    """What each token of some rows cost."""

    codes: Tensor  # [B, K, T]
    end: Tensor  # [B]
    text: Tensor  # [B, T]


def score_whole(model: SpeechLM, rows: Rows) -> Nats:
    """The whole sequence at once."""
    output = model(**rows.arguments())
    assert output.nll is not None and output.eos_nll is not None
    text = torch.zeros_like(output.nll[:, 0]) if output.text_nll is None else output.text_nll
    return Nats(output.nll, output.eos_nll, text)


# --- step by step ---


@dataclass(frozen=True)
class Walked:
    """What was found step by step, and at which places it was looked at (those of prefilled steps are not)."""

    nats: Nats
    codes_seen: Tensor  # [K, T] bool
    text_seen: Tensor  # [T] bool
    end_seen: Tensor  # [B] bool


@dataclass(frozen=True)
class Laid:
    """Rows as steps. Laid out here once more, on purpose: an error of the model's own layout must not be shared."""

    codes: Tensor  # [B, K, S], EOS among codebook 0's
    text: Tensor | None  # [B, S]
    user: Tensor | None  # [B, U, S]


def lay_out(model: SpeechLM, rows: Rows) -> Laid:
    """With a step more than the delays need: for EOS."""
    delays, columns = model.config.delays, rows.codes.shape[2]
    num_steps = columns + max(delays) + 1
    codes = F.pad(delay(rows.codes, delays), (0, 1), value=ABSENT)
    for row in rows.has_end(model).nonzero().flatten().tolist():
        last = int((rows.codes[row, 0] != ABSENT).nonzero().max())
        codes[row, 0, last + 1 + delays[0]] = model.eos
    text = None if rows.text is None else F.pad(rows.text, (0, num_steps - columns), value=ABSENT)
    user = None
    if rows.user is not None:
        user = delay(rows.user, delays[: rows.user.shape[1]])
        user = F.pad(user, (0, num_steps - user.shape[2]), value=ABSENT)
    return Laid(codes, text, user)


def walk_through(
    model: SpeechLM, rows: Rows, prefilled: Mapping[int, int] | None = None, kind: type[Walk] | type[FrameStep] = Walk
) -> Walked:
    """Score rows as they are generated: one step after the other, with caches.

    prefilled: start -> stop of steps that are given in one piece. A model without BOS is always given its first.
    """
    pieces = dict(prefilled or {})
    if not model.config.bos:
        pieces.setdefault(0, 1)
    laid = lay_out(model, rows)
    batch, num_codebooks, num_steps = laid.codes.shape
    walk = kind(model, batch, num_steps)
    nll = torch.zeros(laid.codes.shape, dtype=model.dtype, device=model.device)
    text_nll, seen = torch.zeros_like(nll[:, 0]), torch.ones(num_steps, dtype=torch.bool, device=model.device)
    s = 0
    while s < num_steps:
        if s in pieces:
            prefill(walk, laid, slice(s, pieces[s]))
            seen[s : pieces[s]] = False
            if s == 0 and not model.config.bos:
                nll[:, :, 0], text_nll[:, 0], seen[0] = *first_step(model, laid), True
            s = pieces[s]
        else:
            nll[:, :, s], text_nll[:, s] = walk_step(walk, laid, s)
            s += 1
    is_end = laid.codes == model.eos
    is_end[:, 1:] = False
    delays, columns = model.config.delays, rows.codes.shape[2]
    return Walked(
        Nats(
            undelay(nll.masked_fill(is_end, 0.0)[:, :, :-1], delays),
            (nll * is_end).sum(dim=(1, 2)),
            text_nll[:, :columns],
        ),
        undelay(seen[None, None, :-1].expand(1, num_codebooks, -1), delays)[0],
        seen[:columns],
        ~(is_end[:, 0] & ~seen).any(dim=1),
    )


def walked_end(model: SpeechLM, row: Rows) -> Tensor:
    """[1] nats of EOS after all columns of one row, step by step; what `Rows.ends` says does not count."""
    lag = model.config.delays[0]
    laid = lay_out(model, replace(row, ends=torch.zeros_like(row.ends)))
    num_steps = row.codes.shape[2] + lag
    walk = Walk(model, 1, num_steps + 1)
    count = max(num_steps - 1, min(num_steps, int(not model.config.bos)))
    prefill(walk, laid, slice(0, count))
    for s in range(count, num_steps):  # the last one by itself, onto the cache
        walk_step(walk, laid, s)
    nats = []
    absent = row.codes.new_full((1,), ABSENT)

    def choose(slot: int, logits: Tensor) -> Tensor:
        nats.append(-logits.log_softmax(dim=-1)[:, model.eos])
        return absent

    walk.step(choose, {slot: absent for slot in walk.slots if slot != 0})
    return nats[0]


def prefill(walk: Walk | FrameStep, laid: Laid, piece: slice) -> None:
    codes = laid.codes[:, :, piece]
    text, user = (None if x is None else x[..., piece] for x in (laid.text, laid.user))
    walk.prefill(codes.masked_fill(codes == walk.model.eos, ABSENT), text, user)


def first_step(model: SpeechLM, laid: Laid) -> tuple[Tensor, Tensor]:
    """What the first step costs where nothing comes before it: equal probabilities -> nats [B, K] and [B] of text."""
    code_nats = (laid.codes[:, :, 0] != ABSENT).to(model.dtype) * math.log(model.codebook_size)
    if laid.text is None or not model.predicts_text:
        return code_nats, code_nats.new_zeros(len(code_nats))
    return code_nats, (laid.text[:, 0] != ABSENT).to(model.dtype) * math.log(model.text_size)


def walk_step(walk: Walk | FrameStep, laid: Laid, s: int) -> tuple[Tensor, Tensor]:
    """-> nats of the codes [B, K] and of the text [B]."""
    model, codes = walk.model, laid.codes[:, :, s]
    nll = torch.zeros(codes.shape, dtype=model.dtype, device=model.device)
    text_nll = torch.zeros_like(nll[:, 0])
    token = torch.full_like(codes[:, 0], ABSENT) if laid.text is None else laid.text[:, s]

    def choose(slot: int, logits: Tensor) -> Tensor:
        value = token if slot == TEXT else codes[:, slot]
        cost = F.cross_entropy(logits, value, ignore_index=ABSENT, reduction="none")
        (text_nll if slot == TEXT else nll[:, slot]).copy_(cost)
        return value

    known = {} if model.predicts_text else {TEXT: token}
    walk.step(choose, known, None if laid.user is None else laid.user[:, :, s])
    return nll, text_nll
