"""When each character of a store's transcripts is said, in a file beside them: what `codeclm align` writes.

    times-HASH.arrow   an Arrow stream of one record batch, a list of frames for each utterance: one for each character
                       of its `clean_text`, -1 for what is not heard (punctuation, spaces); empty where none are known

HASH is the start of the store's `data_hash`: a store that grows has no times until it is aligned again.
N utterances, L characters or tokens.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..model.files import write_whole
from .text_encoder import TextEncoder
from .token_store import TokenStore, mapped
from .utterance_table import numbers

UNHEARD = -1
NONE = np.zeros(0, np.int64)  # times that are not known

log = logging.getLogger(__name__)


def times_file(store: TokenStore) -> Path:
    return store.folder / f"times-{store.data_hash[:16]}.arrow"


def write_times(store: TokenStore, times: Sequence[np.ndarray]) -> Path:
    """The frames [L] of each utterance's characters, none where they are not known -> the file, whole or not at all."""
    import pyarrow as pa

    assert len(times) == len(store)
    ends = np.cumsum([len(frames) for frames in times], dtype=np.int64)
    values = np.concatenate([np.zeros(0, np.int32), *times]).astype(np.int32)
    column = pa.LargeListArray.from_arrays(np.concatenate([[0], ends]), values)
    schema = pa.schema([pa.field("frames", column.type)], {"sha256": hashlib.sha256(values.data).hexdigest()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.record_batch([column], schema=schema))
    path = times_file(store)
    write_whole(path, sink.getvalue().to_pybytes())
    for old in store.folder.glob("times-*.arrow"):
        if old != path:
            old.unlink(missing_ok=True)
    return path


def keep_times(store: TokenStore, known: Sequence[Sequence[int]]) -> None:
    """Write the times that came with the speech, beside what the store has of others."""
    try:
        before = known_times(store)
    except ValueError:  # they are found out again
        before = [NONE] * len(store)
    write_times(store, [np.asarray(times) if times else other for times, other in zip(known, before, strict=True)])


def known_times(store: TokenStore) -> list[np.ndarray]:
    """The frames of each utterance's characters, none where they are not known. Raises ValueError if damaged."""
    try:
        times = TextTimes(store)
    except FileNotFoundError:
        return [NONE] * len(store)
    return [times.of(i) for i in range(len(store))]


def times_of(store: TokenStore) -> "TextTimes | None":
    """None, with a warning, if the store does not say. Raises ValueError if what it says is damaged."""
    try:
        return TextTimes(store)
    except FileNotFoundError as error:
        log.warning(f"{error}: until then the texts are not used")
        return None


class TextTimes:
    def __init__(self, store: TokenStore):
        """Raises FileNotFoundError or ValueError, in one line, if the store has none, or they are damaged."""
        import pyarrow as pa

        path = times_file(store)
        again = f"run codeclm align {store.folder}"
        if not path.is_file():
            raise FileNotFoundError(f"{store.folder}: does not say when its texts are said; {again}")
        try:
            stream = pa.ipc.open_stream(pa.py_buffer(mapped(path, path.stat().st_size)))
            (batch,) = list(stream)
            column = batch["frames"]
            self.starts = numbers(column.offsets)  # [N + 1]
            self.frames = numbers(column.values)
            digest = (stream.schema.metadata or {}).get(b"sha256", b"").decode()
            is_whole = hashlib.sha256(self.frames.data).hexdigest() == digest and len(column) == len(store)
        except (pa.ArrowInvalid, OSError, KeyError, ValueError):
            is_whole = False
        if not is_whole:
            raise ValueError(f"{path}: is cut off or damaged; {again}")

    @property
    def is_known(self) -> np.ndarray:
        """[N] bool."""
        return np.diff(self.starts) > 0

    def of(self, i: int) -> np.ndarray:
        """The frame of each character of utterance i's text; none where they are not known."""
        return self.frames[self.starts[i] : self.starts[i + 1]]

    def of_tokens(self, i: int, encoder: TextEncoder, text: str) -> tuple[list[int], np.ndarray]:
        """Tokens of utterance i's text, and the frame [L] at which each begins to be heard, never falling."""
        tokens, places = encoder.encode_places(text)
        frames = self.of(i)
        if len(frames) < (places.max() if len(places) else 0):
            raise ValueError(f"utterance {i} has times for {len(frames)} characters, and a text of {places.max()}")
        return tokens, token_frames(places, frames)


def token_frames(places: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Places of tokens [L, 2] and the frame of each character of their text -> those where the tokens begin [L], never
    falling: a token begins with its first character that is heard; without one, where the next token does."""
    place = next_true(frames != UNHEARD)[places[:, 0]]
    is_heard = place < places[:, 1]
    known = np.where(is_heard, np.append(frames, 0)[place], 0)
    return np.append(known, frames.max())[next_true(is_heard)[:-1]]


def next_true(flags: np.ndarray) -> np.ndarray:
    """[N] bool -> [N + 1] the first place at or after each that is true; N where there is none."""
    places = np.append(np.where(flags, np.arange(len(flags)), len(flags)), len(flags))
    return np.minimum.accumulate(places[::-1])[::-1]
