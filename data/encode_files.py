"""Sources -> codes, here or in worker processes: the same bytes either way. S samples, T frames, K codebooks."""

import logging
import math
import multiprocessing
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ..model.codecs import Codec, load_codec
from ..model.files import readable
from .audio import MIN_DURATION_S, AudioError, audio_blocks, check_usable
from .config import PrepareConfig
from .decode_ahead import decode_ahead
from .pieces import pieces_of
from .sources import Source
from .sources.folder import transcript_path
from .store_index import Rejected
from .store_writer import Utterance
from .text_encoder import clean_text
from .word_times import Word, character_frames, read_words, text_of, words_between

PUSH_S = 60.0  # audio longer than this is streamed through the codec in such chunks, so that memory is bounded
GPU_BATCH_S = 240.0
HELD_S = 3600.0  # audio that waits for neighbours in length
COPY_LEVELS_DB = (0.0, 1.5, -1.5, 0.75, -0.75, 2.0, -2.0, 1.0)
# per worker: with less to do more processes are not worth their start
LEAST_FILES, LEAST_BYTES = 50, 32e6
FILES_AHEAD = 4  # per worker: files handed out before the oldest one is written

logger = logging.getLogger(__name__)

Entries = list[Utterance | Rejected]  # what one source became


@dataclass
class Clip:
    """Audio on its way to codes."""

    audio: np.ndarray  # [S]; empty once there are codes
    num_samples: int
    codes: np.ndarray | None = None  # [T, K]

    @classmethod
    def of(cls, audio: np.ndarray) -> "Clip":
        return cls(audio, len(audio))


@dataclass
class Recording:
    """A source that is being read: its pieces so far, each with its copies."""

    source: Source
    codec: Codec
    text: str | None = None
    words: Sequence[Word] = ()
    pieces: list[tuple[int, list[Clip] | Rejected]] = field(default_factory=list)
    reason: str | None = None  # why all of it is rejected

    def entries(self) -> Entries:
        name, pieces = self.source.name, self.pieces
        if self.reason is not None:
            return [Rejected(name, self.reason)]
        names = [name] if len(pieces) == 1 else [f"{name}#{number}" for number in range(len(pieces))]
        entries: Entries = []
        bounds = [self.source.start_s + first / self.codec.sample_rate for first, _ in pieces]
        bounds.append(math.inf if self.source.end_s is None else self.source.end_s)
        for name, (_, piece), start_s, end_s in zip(names, pieces, bounds[:-1], bounds[1:], strict=True):
            if isinstance(piece, Rejected):
                entries.append(replace(piece, name=name))
                continue
            for number, clip in enumerate(piece):
                assert clip.codes is not None
                copy_name = f"{name}~{number}" if len(piece) > 1 else name
                text, times = self._said(start_s, end_s, len(clip.codes))
                about = text, name != names[-1], self.source.speaker, self.source.origin, times
                entries.append(Utterance(copy_name, clip.num_samples, clip.codes, *about))
        return entries

    def _said(self, start_s: float, end_s: float, num_frames: int) -> tuple[str | None, np.ndarray | None]:
        """The text of a piece of the recording, and the frame in which each character begins, where that is known."""
        words = words_between(self.words, start_s, end_s)
        text = self.text if self.text and len(self.pieces) == 1 else text_of(words)
        return text, character_frames(text, words, self.codec.frame_rate, num_frames, start_s) if text else None


def encode_sources(
    sources: Iterable[Source], codec: Codec, config: PrepareConfig, batch_s: float = 0.0, threads: int = 1
) -> Iterator[Entries]:
    """Each source -> its utterance, or its pieces `name#0`, `name#1`, ..., each checked by itself; in order.

    A long one is cut where it is quiet, and every piece but its last is marked as one that goes on: also before
    pieces that are rejected, as silence is. With several copies, copy c of an utterance is called `name~c`; copy 0 is
    the utterance as it is. A source that cannot be read to its end is rejected as a whole, and so is one whose
    transcript cannot be read. Copies of an utterance have its text, pieces only where it is known when words are said.
    batch_s: seconds of audio, padding included, that are encoded at once, neighbours in length together; 0: one by
    one. By the codec's contract the codes are the same. threads: read files meanwhile.
    """
    batches, waiting = Batches(codec, batch_s), deque[Recording]()
    for source, pieces in decode_ahead(sources, lambda source: read_pieces(source, codec, config), threads):
        recording = Recording(source, codec)
        try:
            recording.text, recording.words = true_text(source), true_words(source)
            for first, piece in pieces:
                recording.pieces.append((first, piece))
                if not isinstance(piece, Rejected):
                    batches.add(piece)
        except AudioError as error:
            recording.reason = _reason(error, source)
        waiting.append(recording)
        if not batches.clips:
            yield from (recording.entries() for recording in waiting)
            waiting.clear()
    batches.encode()
    yield from (recording.entries() for recording in waiting)


def read_pieces(source: Source, codec: Codec, config: PrepareConfig) -> Iterator[tuple[int, list[Clip] | Rejected]]:
    """The pieces of a source, each with its first sample, and its copies. Raises AudioError where it cannot be read to
    its end."""
    limit = codec.hop_length * max(1, int(config.max_utterance_s * codec.sample_rate / codec.hop_length))
    least = int(np.ceil(MIN_DURATION_S * codec.sample_rate))
    audio, label = source.open(), source.label
    blocks = audio_blocks(audio, codec.sample_rate, False, label, source.start_s, source.end_s)
    first = 0
    for piece in pieces_of(blocks, limit, least, codec.hop_length, codec.sample_rate):
        try:
            check_usable(piece, codec.sample_rate, label)
            yield first, [Clip.of(copy) for copy in _copies(piece, codec.hop_length, config.copies, least)]
        except AudioError as error:
            yield first, Rejected("", _reason(error, source))
        first += len(piece)


class Batches:
    """Clips that wait to be encoded beside others of about their length."""

    def __init__(self, codec: Codec, batch_s: float):
        self.codec, self.batch_s = codec, batch_s
        self.clips: list[Clip] = []

    def add(self, clips: Sequence[Clip]) -> None:
        """They have codes at once, or after `encode`."""
        for clip in clips:
            if self.batch_s == 0 or clip.num_samples > PUSH_S * self.codec.sample_rate:
                clip.codes, clip.audio = _encode(clip.audio, self.codec), clip.audio[:0]
            else:
                self.clips.append(clip)
        if sum(clip.num_samples for clip in self.clips) > HELD_S * self.codec.sample_rate:
            self.encode()

    def encode(self) -> None:
        """Give all of them their codes."""
        most, batch = self.batch_s * self.codec.sample_rate, []
        for clip in sorted(self.clips, key=lambda clip: clip.num_samples):
            if batch and clip.num_samples * (len(batch) + 1) > most:
                _encode_batch(batch, self.codec)
                batch = []
            batch.append(clip)
        if batch:
            _encode_batch(batch, self.codec)
        self.clips = []


def true_text(source: Source) -> str | None:
    """What is said in it, if that is known. Raises AudioError as `read_transcript` does."""
    if source.has_transcript and isinstance(source.audio, Path):
        return read_transcript(source.audio)
    return source.text


def true_words(source: Source) -> tuple[Word, ...]:
    """When its words are said, if that is known. Raises AudioError, naming the file, if that is broken."""
    if source.words_in is None:
        return ()
    try:
        if isinstance(source.words_in, Path):
            return read_words(source.words_in.read_bytes())
        return read_words(source.words_in.open().read())
    except (OSError, ValueError) as error:
        name = readable(source.words_in.name) if isinstance(source.words_in, Path) else "its .json"
        raise AudioError(f"{source.label}: {name} {getattr(error, 'strerror', None) or error}") from None


def read_transcript(audio: Path) -> str | None:
    """What is said in an audio file, white space normalised; None without a transcript or with an empty one.

    Raises AudioError, naming the file, if its transcript is not UTF-8 text or cannot be read.
    """
    path = transcript_path(audio)
    about = f"{readable(audio)}: its transcript {readable(path.name)}"
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AudioError(f"{about} cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise AudioError(f"{about} is not UTF-8 text (byte {error.start}); convert or remove it") from None
    if "\0" in text:  # UTF-16 without its mark
        raise AudioError(f"{about} is not UTF-8 text (NUL bytes); convert or remove it")
    return clean_text(text) or None


def _copies(audio: np.ndarray, hop_length: int, count: int, least: int) -> list[np.ndarray]:
    """[S] and `count - 1` variants that start a fraction of a frame later, at other levels; few if there is little."""
    copies = [audio]
    for number in range(1, count):
        first = round(number * hop_length / count)
        if len(audio) - first >= least + hop_length:
            gain = 10 ** (COPY_LEVELS_DB[number % len(COPY_LEVELS_DB)] / 20)
            copies.append(np.clip(audio[first:] * np.float32(gain), -1.0, 1.0))
    return copies


def _encode(audio: np.ndarray, codec: Codec) -> np.ndarray:
    """[S] -> codes [T, K] uint16; equal for whole and streamed audio by the codec's contract."""
    batch = torch.from_numpy(np.ascontiguousarray(audio))[None, None].to(codec.device)  # [1, 1, S]
    push = round(PUSH_S * codec.sample_rate)
    if batch.shape[-1] <= push:
        codes = codec.encode(batch)
    else:
        encoder = codec.streaming_encoder()
        parts = [encoder.push(chunk) for chunk in batch.split(push, dim=-1)]
        codes = torch.cat([part.cpu() for part in [*parts, encoder.flush()]], dim=-1)
    return codes[0].T.cpu().numpy().astype(np.uint16)


def _encode_batch(clips: Sequence[Clip], codec: Codec) -> None:
    """Give the clips their codes, all at once."""
    lengths = [clip.num_samples for clip in clips]
    batch = torch.zeros(len(clips), 1, max(lengths))
    for row, clip in zip(batch, clips, strict=True):
        row[0, : clip.num_samples] = torch.from_numpy(clip.audio)
    codes = codec.encode(batch.to(codec.device), lengths).cpu().numpy().astype(np.uint16)  # [B, K, T]
    for row, clip in zip(codes, clips, strict=True):
        clip.codes = np.ascontiguousarray(row[:, : codec.num_frames(clip.num_samples)].T)
        clip.audio = clip.audio[:0]


def _reason(error: AudioError, source: Source) -> str:
    return str(error).removeprefix(f"{source.label}: ")


Encode = Callable[[Iterable[Sequence[Source]]], Iterator[Entries]]  # the sources of shards -> their entries, in order


@contextmanager
def encoder(codec: Codec, config: PrepareConfig, num_sources: int, num_bytes: int = 0) -> Iterator[Encode]:
    """How sources are encoded: here, or in processes. Each computes with one thread: more of them can change codes in
    the last digit, and one process per core is faster than many threads in one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_cpu = codec.device.type == "cpu"
    worth_it = min(cores, max(num_sources // LEAST_FILES, int(num_bytes // LEAST_BYTES)))
    if config.num_workers > cores:
        logger.info("num_workers is %d, more than the cores of this process: %d will do", config.num_workers, cores)
    num_workers = min(config.num_workers or worth_it, num_sources, cores) if on_cpu else 1
    if num_workers <= 1:
        if worth_it > 1 and on_cpu:
            logger.info("1 of %d cores is used; codeclm prepare --num-workers %d is faster", cores, cores)
        batch_s = config.batch_s if config.batch_s is not None else 0.0 if on_cpu else GPU_BATCH_S
        ahead = 1 if on_cpu else cores
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield lambda shards: (
                entries for sources in shards for entries in encode_sources(sources, codec, config, batch_s, ahead)
            )
        finally:
            torch.set_num_threads(threads)
        return
    # as files: torch would pass the weights through /dev/shm, which is 64 MB in containers
    folder = tempfile.TemporaryDirectory()
    codec.save(Path(folder.name))
    pool = ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("spawn"), _start_worker, (Path(folder.name), config)
    )
    try:
        yield lambda shards: _in_order(pool, (source for sources in shards for source in sources), num_workers)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        folder.cleanup()


def _in_order(pool: ProcessPoolExecutor, sources: Iterable[Source], num_workers: int) -> Iterator[Entries]:
    running: deque[tuple[Source, Future[Entries]]] = deque()
    try:
        for source in sources:
            running.append((source, pool.submit(_work, source)))
            if len(running) > FILES_AHEAD * num_workers:
                yield running[0][1].result()
                running.popleft()
        while running:
            yield running[0][1].result()
            running.popleft()
    except BrokenProcessPool:
        lost = next((source for source, entries in running if entries.done() and entries.exception()), None)
        raise ChildProcessError(
            f"{lost.label if lost else 'prepare'}: a worker process died at this file or at one encoded beside it "
            f"(out of memory, or a script without `if __name__ == '__main__'`); what is finished is kept: run it "
            f"again with fewer workers"
        ) from None


_worker: tuple[Codec, PrepareConfig] | None = None  # in a worker process


def _start_worker(codec: Path, config: PrepareConfig) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = load_codec(codec), config
    threading.Thread(target=exit_with_parent, daemon=True).start()


def exit_with_parent() -> None:
    """For a thread of a worker process: without it, the worker would go on for ever if its parent were killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(source: Source) -> Entries:
    assert _worker is not None
    return next(encode_sources([source], *_worker))
