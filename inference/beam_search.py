"""Beam search: of the texts that a model may write beside what it hears, some of the likeliest are kept at every step.

    column        0      1    2    3    4
    audio         .      c    c    c    .
    one text      WRITE  PAD  a    PAD  EOS
    another       WRITE  a    PAD  b    EOS

A text is what is told, whenever that is: rows that tell the same text are one, which has the probability of all of them
and goes on as the likeliest. Texts are chosen by that of the model and, where the tokenizer has one, by that of an
n-gram model of texts alone (shallow fusion, arXiv:1503.03535): audio tells only in part how a word is spelled.
B rows (texts that are kept), K codebooks, T columns, C text tokens.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.ngram import Ngram, State
from ..model.delay_pattern import ABSENT, delay
from ..model.flatten import TEXT
from ..model.lm import SpeechLM
from ..model.text_tokens import EOS, PAD
from ..model.walk import Walk
from .config import BeamConfig
from .frame_step import FrameStep, is_supported
from .grid import Request


@dataclass
class Reading:
    """A text, as far as it is told."""

    tokens: tuple[int, ...]
    nats: float  # ln of its probability, however it was told
    row: int  # that tells it, in its likeliest way so far
    likeliest: float  # ln of the probability of that way
    text_nats: float = 0.0  # ln of its probability by the n-gram model
    state: State = ()  # what the n-gram model keeps of it
    told: int = PAD  # the last column


@torch.inference_mode()
def likeliest_text(
    model: SpeechLM, request: Request, num_pieces: int, beam: BeamConfig, ngram: Ngram | None = None
) -> list[int]:
    """The tokens that are written. request: one row without a window, of which only the text is to be drawn.

    num_pieces: text tokens up to here may be written. Raises FloatingPointError if the model gives NaN.
    """
    assert request.codes is not None
    given, device = request.codes.shape[1], model.device
    new = request.new_codes
    if new is None:
        new = torch.full((model.num_codebooks, request.num_frames), ABSENT)
    columns = torch.cat([request.codes.to(device), new.to(device)], dim=1)
    steps = delay(columns[None], model.config.delays)
    text = None if request.text is None else request.text[None].to(device)
    last = int((new[0] != ABSENT).sum())  # columns with audio, after those that are given
    walk = FrameStep(model, beam.beam_size, columns.shape[1] + 1) if is_supported(model) else None
    if walk is None:
        walk = Walk(model, beam.beam_size, columns.shape[1] + 1)
        steps = steps.expand(beam.beam_size, -1, -1)
        text = None if text is None else text.expand(beam.beam_size, -1)
    walk.prefill(steps[:, :, :given], text)
    search = BeamSearch(walk, num_pieces, beam, ngram)
    for column in range(given, columns.shape[1]):
        search.may_end = column >= given + last
        walk.step(search.choose, {k: code.expand(beam.beam_size) for k, code in enumerate(steps[0, :, column])})
        if search.has_ended:
            break
    return list(search.best())


@dataclass
class BeamSearch:
    """The texts that are kept while a walk takes its steps."""

    walk: Walk | FrameStep
    num_pieces: int
    config: BeamConfig
    ngram: Ngram | None
    may_end: bool = False  # whether a text may end in this step
    readings: list[Reading] = field(default_factory=list)
    ended: dict[tuple[int, ...], float] = field(default_factory=dict)  # texts that have ended, and their scores

    def __post_init__(self) -> None:
        self.readings = [Reading((), 0.0, 0, 0.0, state=self.ngram.start if self.ngram else ())]

    def score(self, reading: Reading, nats: float = 0.0, text_nats: float = 0.0) -> float:
        """What a text is chosen by, if its end adds these."""
        if self.ngram is None:
            return reading.nats + nats
        by_ngram = self.config.ngram_weight * (reading.text_nats + text_nats)
        return reading.nats + nats + by_ngram + self.config.token_bonus * len(reading.tokens)

    def choose(self, slot: int, logits: Tensor) -> Tensor:
        """Logits [B, C] of the text -> what each row tells, once the rows are those of the texts that are kept."""
        assert slot == TEXT
        nats = F.log_softmax(logits.double(), dim=-1)
        if nats.isnan().any():
            raise FloatingPointError("the model gave NaN logits: its weights or its input are broken")
        count = min(self.config.beam_size, self.num_pieces - PAD - 1)
        best, tokens = nats[:, PAD + 1 : self.num_pieces].topk(count)
        pauses, ends = nats[:, PAD].tolist(), nats[:, EOS].tolist()
        found: dict[tuple[int, ...], Reading] = {}
        for reading in self.readings:
            row = reading.row
            by_ngram = None if self.ngram is None else self.ngram.log_probabilities(reading.state)
            if self.may_end:
                self.end(reading, ends[row], 0.0 if by_ngram is None else float(by_ngram[EOS]))
            add(found, reading, pauses[row], PAD, 0.0)
            for more, token in zip(best[row].tolist(), (tokens[row] + PAD + 1).tolist(), strict=True):
                add(found, reading, more, token, 0.0 if by_ngram is None else float(by_ngram[token]))
        self.keep(sorted(found.values(), key=self.score, reverse=True)[: self.config.beam_size])
        told = torch.full((len(logits),), PAD)
        for reading in self.readings:
            told[reading.row] = reading.told
        return told.to(logits.device)

    def end(self, reading: Reading, nats: float, text_nats: float) -> None:
        """Let a text have ended here, too."""
        before = self.ended.get(reading.tokens, -math.inf)
        self.ended[reading.tokens] = float(np.logaddexp(before, self.score(reading, nats, text_nats)))

    def keep(self, readings: list[Reading]) -> None:
        """Let these texts, best first, go on: each in the row it came from, or in a free one where several did."""
        rows = list(range(self.walk.batch))
        free = sorted(set(rows) - {reading.row for reading in readings}, reverse=True)
        taken: set[int] = set()
        for reading in readings:
            if self.ngram is not None and reading.told != PAD:
                reading.state = self.ngram.next(reading.state, reading.told)
            source = reading.row
            if source in taken:
                reading.row = free.pop()
                rows[reading.row] = source
            taken.add(source)
        if rows != list(range(self.walk.batch)):
            self.walk.select(rows)
        self.readings = readings

    @property
    def has_ended(self) -> bool:
        """Whether enough texts have ended, and one is better than all that go on."""
        enough = len(self.ended) >= self.config.beam_size
        return enough and max(self.ended.values()) > max(map(self.score, self.readings))

    def best(self) -> tuple[int, ...]:
        """Where none has ended, the best of those that go on."""
        if self.ended:
            return max(self.ended, key=self.ended.__getitem__)
        return max(self.readings, key=self.score).tokens


def add(found: dict[tuple[int, ...], Reading], before: Reading, nats: float, token: int, text_nats: float) -> None:
    """A text with another column, which costs this much, to those that were found."""
    tokens = before.tokens if token == PAD else (*before.tokens, token)
    likeliest, nats = before.likeliest + nats, before.nats + nats
    same = found.get(tokens)
    if same is None:
        text_nats += before.text_nats
        found[tokens] = Reading(tokens, nats, before.row, likeliest, text_nats, before.state, token)
        return
    if likeliest > same.likeliest:
        same.row, same.likeliest, same.state, same.told = before.row, likeliest, before.state, token
    same.nats = float(np.logaddexp(same.nats, nats))
