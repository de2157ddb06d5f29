"""Audio files -> codes, here or in worker processes: the same bytes either way. S samples, T frames, K codebooks."""

import logging
import multiprocessing
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..model.codecs import Codec, load_codec
from ..model.files import readable
from .audio import MIN_DURATION_S, AudioError, audio_blocks, check_usable
from .config import PrepareConfig
from .store_index import Rejected
from .store_writer import Utterance
from .text_tokenizer import clean_text

PUSH_S = 60.0  # audio longer than this is streamed through the codec in such chunks, so that memory is bounded
COPY_LEVELS_DB = (0.0, 1.5, -1.5, 0.75, -0.75, 2.0, -2.0, 1.0)
CUT_FROM = 0.8  # share of the longest piece after which the quietest place is sought
CUT_WINDOW_S = 0.02
HINT_FILES = 50  # per core: with fewer of them more processes are not worth their start
FILES_AHEAD = 4  # per worker: files handed out before the oldest one is written

logger = logging.getLogger(__name__)

Entries = list[Utterance | Rejected]  # what one file became


def encode_file(path: Path, name: str, codec: Codec, config: PrepareConfig) -> Entries:
    """One file -> its utterance, or its pieces `name#0`, `name#1`, ..., each checked by itself.

    A long file is cut where it is quiet, and every piece but the file's last is marked as one that goes on: also before
    pieces that are rejected, as silence is. With several copies, copy c of an utterance is called `name~c`; copy 0 is
    the utterance as it is. A file that cannot be read to its end is rejected as a whole, and so is one whose transcript
    cannot be read. Copies of an utterance have its text, pieces have none.
    """
    limit = codec.hop_length * max(1, int(config.max_utterance_s * codec.sample_rate / codec.hop_length))
    least = int(np.ceil(MIN_DURATION_S * codec.sample_rate))
    pieces: list[list[Utterance] | Rejected] = []
    try:
        text = read_transcript(path)
        blocks = audio_blocks(path, codec.sample_rate)
        for piece in pieces_of(blocks, limit, least, codec.hop_length, codec.sample_rate):
            try:
                check_usable(piece, codec.sample_rate, readable(path))
                copies = _copies(piece, codec.hop_length, config.copies, least)
                pieces.append([Utterance("", len(copy), _encode(copy, codec)) for copy in copies])
            except AudioError as error:
                pieces.append(Rejected("", _reason(error, path)))
    except AudioError as error:
        return [Rejected(name, _reason(error, path))]
    text = text if len(pieces) == 1 else None
    names = [name] if len(pieces) == 1 else [f"{name}#{number}" for number in range(len(pieces))]
    entries: Entries = []
    for name, piece in zip(names, pieces, strict=True):
        goes_on = name != names[-1]
        if isinstance(piece, Rejected):
            entries.append(replace(piece, name=name))
            continue
        for number, copy in enumerate(piece):
            copy_name = f"{name}~{number}" if len(piece) > 1 else name
            entries.append(replace(copy, name=copy_name, text=text, goes_on=goes_on))
    return entries


def transcript_path(audio: Path) -> Path:
    """Where the transcript of an audio file lies, if it has one: NAME.txt beside NAME.wav."""
    return audio.with_suffix(".txt")


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


def pieces_of(
    blocks: Iterable[np.ndarray], limit: int, least: int, hop_length: int, sample_rate: int
) -> Iterator[np.ndarray]:
    """Blocks [S] -> pieces of at most `limit` samples, each but the last a whole number of frames.

    The last may be up to `least` samples longer: never a mere scrap.
    """
    held: list[np.ndarray] = []
    for block in blocks:
        held.append(block)
        while sum(map(len, held)) >= limit + least:
            audio = np.concatenate(held)
            cut = quietest_cut(audio, limit, hop_length, sample_rate)
            yield audio[:cut]
            held = [audio[cut:]]
    yield np.concatenate(held)


def quietest_cut(audio: np.ndarray, limit: int, hop_length: int, sample_rate: int) -> int:
    """Where to cut audio [S > limit]: the last of the quietest places in the last fifth before `limit`, on a frame."""
    half = round(CUT_WINDOW_S * sample_rate / 2)
    cuts = hop_length * np.arange(-(-round(CUT_FROM * limit) // hop_length), limit // hop_length + 1)
    first = max(0, int(cuts[0]) - half)
    energy = np.cumsum(np.square(audio[first : limit + half], dtype=np.float64))
    energy = np.concatenate([[0.0], energy])  # energy of the samples before each
    starts, stops = cuts - half - first, np.minimum(cuts + half - first, len(energy) - 1)
    energies = energy[stops] - energy[np.maximum(starts, 0)]
    return int(cuts[len(cuts) - 1 - np.argmin(energies[::-1])])


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


def _reason(error: AudioError, path: Path) -> str:
    return str(error).removeprefix(f"{readable(path)}: ")


Encode = Callable[[Iterable[tuple[Path, str]]], Iterator[Entries]]  # (path, name) of files -> their entries, in order


@contextmanager
def encoder(codec: Codec, config: PrepareConfig, num_jobs: int) -> Iterator[Encode]:
    """How files are encoded: here, or in processes. Each uses one thread: more of them can change codes in the last
    digit, and one process per core is faster than many threads in one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if config.num_workers > cores:
        logger.info("num_workers is %d, more than the cores of this process: %d will do", config.num_workers, cores)
    num_workers = min(config.num_workers, num_jobs, cores)
    if num_workers <= 1:
        if min(cores, num_jobs // HINT_FILES) > 1 and codec.device.type == "cpu":
            logger.info("1 of %d cores is used; codeclm prepare --num-workers %d is faster", cores, cores)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield lambda jobs: (encode_file(*job, codec, config) for job in jobs)
        finally:
            torch.set_num_threads(threads)
        return
    # as files: torch would pass the weights through /dev/shm, which is 64 MB in containers
    folder = tempfile.TemporaryDirectory()
    codec.save(Path(folder.name))
    pool = ProcessPoolExecutor(
        num_workers,
        multiprocessing.get_context("spawn"),
        _start_worker,
        (Path(folder.name), str(codec.device), config),
    )
    try:
        yield lambda jobs: _in_order(pool, jobs, FILES_AHEAD * num_workers)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        folder.cleanup()


def _in_order(pool: ProcessPoolExecutor, jobs: Iterable[tuple[Path, str]], ahead: int) -> Iterator[Entries]:
    running: deque[tuple[Path, Future[Entries]]] = deque()
    try:
        for job in jobs:
            running.append((job[0], pool.submit(_work, *job)))
            if len(running) > ahead:
                yield running[0][1].result()
                running.popleft()
        while running:
            yield running[0][1].result()
            running.popleft()
    except BrokenProcessPool:
        lost = next((path for path, entries in running if entries.done() and entries.exception()), None)
        raise ChildProcessError(
            f"{readable(lost or 'prepare')}: a worker process died at this file or at one encoded beside it (out of "
            f"memory, or a script without `if __name__ == '__main__'`); what is finished is kept: run it again with "
            f"fewer workers"
        ) from None


_worker: tuple[Codec, PrepareConfig] | None = None  # in a worker process


def _start_worker(codec: Path, device: str, config: PrepareConfig) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = load_codec(codec).to(device), config
    threading.Thread(target=exit_with_parent, daemon=True).start()


def exit_with_parent() -> None:
    """For a thread of a worker process: without it, the worker would go on for ever if its parent were killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(path: Path, name: str) -> Entries:
    assert _worker is not None
    return encode_file(path, name, *_worker)
