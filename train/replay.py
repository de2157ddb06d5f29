"""Speech of the base voices, heard again while a model learns a new one, so that the base is not forgotten.

It is a token store or audio of yours or, where there is none, speech that the base model draws from nothing: codes at
temperature 1, which is exactly the distribution that is to stay, and no audio.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

from ..data.preparation import duration
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
