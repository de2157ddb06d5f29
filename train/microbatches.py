"""The rows of a step that one rank computes, in parts that fit into its memory. B rows."""

from typing import NamedTuple

from accelerate import Accelerator
from torch import Tensor

from ..data.dataset import Batches
from ..data.rows import Rows
from ..model.layout import num_scored, scored_part
from ..model.random_bits import row_keys
from ..model.speech_lm_config import SpeechLMConfig
from .config import RunConfig

ANNOUNCED = 8  # steps ahead, for what is read from a disk


class Microbatch(NamedTuple):
    """Rows that go through the model at once."""

    rows: Rows
    keys: Tensor  # [B], see random_bits.py
    scored: int  # codes, EOS and text tokens; 0: the loss of these rows counts nothing


class StepRows:
    """This rank's rows of a step: a function of the step, in as many parts as every other rank's."""

    def __init__(self, batches: Batches, config: RunConfig, accelerator: Accelerator, model: SpeechLMConfig):
        self.batches, self.config, self.model = batches, config, model
        self.rank, self.ranks = accelerator.process_index, accelerator.num_processes
        self.is_pinned = accelerator.device.type == "cuda"

    def __call__(self, step: int) -> list[Microbatch]:
        if step + ANNOUNCED < self.config.steps:
            self.batches.announce(step + ANNOUNCED, self.rank, self.ranks)
        rows = self.batches.rows(step, self.rank, self.ranks)
        keys = row_keys(self.config.seed, step, range(self.rank, self.rank + len(rows) * self.ranks, self.ranks))
        size, count = self.sizes(step, rows)
        return [self._part(step, rows, keys, slice(i * size, (i + 1) * size)) for i in range(count)]

    def sizes(self, step: int, rows: Rows) -> tuple[int, int]:
        """-> the most rows of a microbatch, and the number of microbatches of a step, which is every rank's."""
        frames = self.config.batch.frames_per_microbatch
        if not frames:
            return len(rows), 1
        size = max(1, frames // rows.codes.shape[2])
        most = -(-len(self.batches.batch(step)) // self.ranks)  # rows of a rank
        return size, -(-most // size)

    def _part(self, step: int, rows: Rows, keys: Tensor, which: slice) -> Microbatch:
        part, own = rows.take(which), keys[which]
        text = part.text if self.model.text.vocab_size else None
        codes, text = scored_part(part.codes, text, part.given)
        scored = int(num_scored(self.model, codes, part.ends, text))
        if scored == 0:  # fewer rows than ranks: this one takes part in the reduction, with a loss that counts nothing
            part, own = self.batches.rows(step, 0, self.config.batch.frames_per_batch), keys.new_zeros(1)
        return Microbatch(part.pinned() if self.is_pinned else part, own, scored)
