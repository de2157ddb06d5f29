"""`--check`: what goes wrong in most runs that go wrong, looked for before the run; nothing is written or learned.

    first loss   no codebook costs more than equal probabilities would before the first step
    gradients    every tensor that should learn gets a gradient from a batch, and none is frozen (of a fine-tune with
                 adapters: every adapter)
    step         a step moves every one of them
    alignment    after a short overfit the model predicts each frame, not one 1 or 2 frames before or after it
    duplicates   held-out speech is not, frame by frame, among the training speech
    bigram       counting pairs of codes beats counting codes: the order of the frames means something

B rows, K codebooks, T frames, V codebook size.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.rows import Rows
from ..data.split import first_by_hash
from ..inference.doctor.alignment import SHIFTS, shifted_nats
from ..inference.evaluate.baselines import CountBaselines
from ..inference.verify.training import learning_parts
from ..model.lm import SpeechLM, SpeechLMOutput
from .trainer import Trainer

log = logging.getLogger(__name__)

SLACK = 1.05  # random weights of a new model cost a little more than equal probabilities
OVERFIT_STEPS, OVERFIT_FRAMES, OVERFIT_RATE = 60, 256, 3e-3
WINDOW = 16  # frames in a row that no two recordings share by chance
COUNTED_FRAMES = 200_000
ORDER = 0.998  # share of the unigram's bits that the bigram needs at most, where codes have an order
MOST_COPIED = 0.01  # share of the held-out windows


class CheckFailed(Exception):
    """Some alarm rang; the message is one line."""


@dataclass(frozen=True)
class Alarm:
    name: str
    problem: str  # "": none
    note: str = ""

    def __str__(self) -> str:
        return f"{'FAILS' if self.problem else 'pass '} {self.name}: {self.problem or self.note}"


def alarms(trainer: Trainer) -> Iterator[Alarm]:
    """Each check; the weights of the trainer's model are afterwards what they were."""
    rows = trainer.aside(lambda: trainer.batches.rows(trainer.step)).to(trainer.accelerator.device)
    before = {name: weight.detach().clone() for name, weight in trainer.raw_model.state_dict().items()}
    checks: tuple[tuple[str, Callable[[Trainer, Rows], tuple[str, str]]], ...] = (
        ("first loss", first_loss),
        ("gradients", gradients),
        ("step", one_step),
        ("alignment", alignment),
        ("duplicates", duplicates),
        ("bigram", bigram),
    )
    for name, check in checks:
        yield Alarm(name, *check(trainer, rows))
        trainer.raw_model.load_state_dict(before)


def first_loss(trainer: Trainer, rows: Rows) -> tuple[str, str]:
    with torch.no_grad():
        nll = forward(trainer.raw_model, trainer, rows).nll
    assert nll is not None
    counted = (rows.codes >= 0).sum(dim=(0, 2))
    bits = (nll.sum(dim=(0, 2)) / counted / math.log(2)).tolist()
    uniform = math.log2(trainer.raw_model.num_classes)
    high = [f"codebook {k} costs {value:.2f}" for k, value in enumerate(bits) if not value <= SLACK * uniform]
    said = ", ".join(f"{value:.2f}" for value in bits)
    if high:
        return f"{', '.join(high)} bits a code, equal probabilities {uniform:.2f}: the labels or weights are wrong", ""
    return "", f"{said} bits a code; equal probabilities cost {uniform:.2f}"


def gradients(trainer: Trainer, rows: Rows) -> tuple[str, str]:
    """With adapters, of the matrices that are added: A's gradient is 0 while B is, before the first step."""
    model = trainer.raw_model
    parts = list(learning_parts(model))
    adapters = [part for part in parts if ".lora_B." in part[0]]
    parts = adapters or parts
    model.zero_grad()
    loss(model, trainer, rows).backward()
    found = []
    for name, index, part in parts:
        weight = model.get_parameter(name)
        if not weight.requires_grad:
            found.append(f"{name} is frozen")
        elif weight.grad is None or not weight.grad[index].any():
            found.append(f"{part} gets no gradient")
    model.zero_grad()
    if found:
        return "; ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else ""), ""
    return "", f"all {len({name for name, _, _ in parts})} {'adapters' if adapters else 'tensors'} get one"


def one_step(trainer: Trainer, rows: Rows) -> tuple[str, str]:
    model, step = trainer.raw_model, trainer.step
    before = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    trainer.train_step()
    trainer.step = step
    trainer.optimizer.state.clear()
    after = dict(model.named_parameters())
    still = [name for name, weight in before.items() if torch.equal(after[name], weight)]
    if still:
        more = f" and {len(still) - 1} more" if len(still) > 1 else ""
        return f"{still[0]}{more} did not move: is the learning rate 0?", ""
    return "", f"moved all {len(before)} tensors"


def alignment(trainer: Trainer, rows: Rows) -> tuple[str, str]:
    """Overfit a copy to a few frames, then see which frame each prediction is of."""
    rows = rows.take(slice(0, 1))
    rows = Rows(
        rows.codes[..., :OVERFIT_FRAMES], rows.ends[..., :OVERFIT_FRAMES], rows.text[..., :OVERFIT_FRAMES],
        None if rows.documents is None else rows.documents[..., :OVERFIT_FRAMES],
    )  # fmt: skip
    model = copy.deepcopy(trainer.raw_model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=OVERFIT_RATE)
    for _ in range(OVERFIT_STEPS):
        optimizer.zero_grad()
        loss(model, trainer, rows).backward()
        optimizer.step()
    with torch.no_grad():
        logits = forward(model, trainer, rows, return_logits=True).logits
    assert logits is not None
    bits = {shift: float(shifted_nats(logits, rows.codes, shift).mean()) / math.log(2) for shift in SHIFTS}
    best = min(bits, key=lambda shift: bits[shift])
    if best:
        return f"the model learned the frame {best:+d} ({bits[best]:.2f} bits a code), not its own ({bits[0]:.2f})", ""
    nearest = min(bits[shift] for shift in SHIFTS if shift)
    return "", f"{bits[0]:.2f} bits a code in place, at least {nearest:.2f} when 1 or 2 frames off"


def duplicates(trainer: Trainer, rows: Rows) -> tuple[str, str]:
    known, copied, total = set(), [], 0
    for corpus in trainer.corpora:
        for i in first_by_hash(corpus.store, np.unique(corpus.training), 10 * COUNTED_FRAMES):
            known.update(windows(corpus.store.codes(i)))
    for corpus in trainer.corpora:
        for i in corpus.scored:
            found = list(windows(corpus.store.codes(i)))
            total += len(found)
            copied += [corpus.store.names[i]] * sum(window in known for window in found)
    share = len(copied) / max(1, total)
    if share > MOST_COPIED:
        return f"{share:.0%} of the held-out speech is among the training speech, such as {copied[0]}", ""
    return "", f"{share:.1%} of the held-out speech is among the training speech"


def windows(codes: np.ndarray) -> Iterator[int]:
    """A hash of each `WINDOW` frames in a row of codes [T, K]; of a shorter utterance, all of it."""
    codes = np.ascontiguousarray(codes)
    for start in range(max(1, len(codes) - WINDOW + 1)):
        yield hash(codes[start : start + WINDOW].tobytes())


def bigram(trainer: Trainer, rows: Rows) -> tuple[str, str]:
    info, corpora = trainer.store.codec, trainer.corpora
    training = (
        corpus.store.codes(i)
        for corpus in corpora
        for i in first_by_hash(corpus.store, np.unique(corpus.training), COUNTED_FRAMES)
    )
    counted = CountBaselines(training, info.codebook_size, info.num_codebooks)
    heldout = [corpus.store.codes(i) for corpus in corpora for i in corpus.scored]
    nats = np.sum([[part.sum() for part in counted.nll(codes)] for codes in heldout], axis=0)
    scale = info.frame_rate / sum(map(len, heldout)) / math.log(2)
    unigram, pairs = (float(value * scale) for value in nats)
    said = f"bigram {pairs:.1f} bits/s, unigram {unigram:.1f}"
    if pairs > ORDER * unigram:
        return f"{said}: the codes have no order, or there are too few of them", ""
    return "", f"{said}; a run that learns goes below both"


def forward(model: SpeechLM, trainer: Trainer, rows: Rows, return_logits: bool = False) -> SpeechLMOutput:
    text = trainer.text_of(rows)
    documents, given = rows.documents, rows.given
    return model(rows.codes, rows.ends, text, documents=documents, given=given, return_logits=return_logits)


def loss(model: SpeechLM, trainer: Trainer, rows: Rows) -> Tensor:
    found = forward(model, trainer, rows).loss
    assert found is not None
    return found


def check(trainer: Trainer) -> list[Alarm]:
    """All alarms, each logged when it is known. Raises CheckFailed if one rang."""
    found = []
    for alarm in alarms(trainer):
        log.info(str(alarm))
        found.append(alarm)
    rang = [alarm.name for alarm in found if alarm.problem]
    if rang:
        raise CheckFailed(f"--check: {len(rang)} of {len(found)} checks fail ({', '.join(rang)})")
    return found
