"""Speech of the base voices, heard again while a model learns a new one, so that the base is not forgotten.

It is a token store or audio of yours or, where there is none, speech that the base model draws from nothing: codes at
temperature 1, which is exactly the distribution that is to stay, and no audio. B rows, K codebooks, T columns.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..data.dataset import Batches
from ..data.grids import StoreGrids
from ..data.preparation import duration
from ..data.rows import Rows
from ..data.store_index import HEADER
from ..data.store_writer import Utterance, commit_store, write_shard
from ..data.token_store import TokenStore
from ..inference.config import SamplingConfig
from ..inference.engine import generate
from ..inference.generator import SpeechGenerator
from ..inference.grid import Request
from ..inference.threads import decoding_threads
from ..inference.windows import window_frames
from ..model.codec_reference import CodecReference
from ..model.delay_pattern import ABSENT

SELF = "self"
MINUTES = 8.0
ROWS, LONGEST = 8, 512  # rows that are drawn together, and frames of each at most
EVERY_CODE = SamplingConfig(temperature=1.0, top_k=0)

log = logging.getLogger(__name__)


def own_speech(lm: SpeechGenerator, out: Path, minutes: float = MINUTES, seed: int = 0) -> TokenStore:
    """About that many minutes of speech by `lm` itself, as a token store in `out`; drawn once, then only read."""
    if (out / HEADER).is_file():
        return TokenStore(out)
    out.mkdir(parents=True, exist_ok=True)
    codec = CodecReference.of(lm.codec)
    num_frames = min(window_frames(lm.model.config), LONGEST)
    num_rows = max(2, round(minutes * 60 * codec.frame_rate / num_frames))
    log.info(
        f"the base model draws {duration(num_rows * num_frames / codec.frame_rate / 3600)} of speech to hear again"
    )
    shard = write_shard(out, 0, drawn(lm, num_rows, num_frames, seed), codec)
    commit_store(out, codec, [shard])
    return TokenStore(out)


def drawn(lm: SpeechGenerator, num_rows: int, num_frames: int, seed: int) -> Iterator[Utterance]:
    """Speech from nothing. It does not end with its last frame: it is cut off there."""
    request, extra = lm.completed(Request(num_frames))
    for first in range(0, num_rows, ROWS):
        seeds = [seed * num_rows + row for row in range(first, min(first + ROWS, num_rows))]
        with decoding_threads(lm.threads):
            *_, state = generate(lm.model, request, seeds, EVERY_CODE)
        codes = state.codes[:, :, : state.num_frames - extra].transpose(1, 2).cpu().numpy()
        for row, frames in enumerate(codes, first):
            yield Utterance(f"own/{row:05d}", len(frames) * lm.codec.hop_length, frames, goes_on=True)


class Replayed(Batches):
    """Batches of new speech, each with rows of base speech behind its own."""

    def __init__(self, own: Batches, replay: Batches):
        self.own, self.replay = own, replay
        self.packed, self.num_frames, self.max_frames = own.packed, own.num_frames, own.max_frames
        self.frames_per_batch = own.frames_per_batch + replay.frames_per_batch

    @property
    def most_rows(self) -> int:
        return self.own.most_rows

    def batch(self, step: int) -> list[tuple[StoreGrids, np.ndarray]]:
        """Of the new speech."""
        return self.own.batch(step)

    def announce(self, step: int, rank: int = 0, world_size: int = 1) -> None:
        self.own.announce(step, rank, world_size)
        self.replay.announce(step, rank, world_size)

    def rows(self, step: int, rank: int = 0, world_size: int = 1) -> Rows:
        return joined(self.own.rows(step, rank, world_size), self.replay.rows(step, rank, world_size))


def joined(one: Rows, other: Rows) -> Rows:
    """The rows of both, as long as the longer ones."""
    longest = max(one.text.shape[1], other.text.shape[1])
    one, other = widened(one, longest), widened(other, longest)
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return Rows(*(torch.cat(pair) for pair in pairs))


def widened(rows: Rows, num_columns: int) -> Rows:
    """With padding up to `num_columns`, which belongs to the last piece of each row."""
    room = num_columns - rows.text.shape[1]
    documents = torch.zeros_like(rows.text) if rows.documents is None else rows.documents
    last = documents[:, -1:].expand(-1, room)
    return Rows(
        F.pad(rows.codes, (0, room), value=ABSENT),
        F.pad(rows.ends, (0, room)),
        F.pad(rows.text, (0, room), value=ABSENT),
        torch.cat([documents, last], dim=1),
    )
