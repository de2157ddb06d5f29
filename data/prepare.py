"""Audio files -> a token store: `prepare(audio, out, codec)`.

The sorted files are grouped into shards; a finished shard is never done again, so a run that was killed goes on where
it was, and its bytes are those of an unbroken run with any number of workers. A transcript NAME.txt beside NAME.wav
goes with its audio. What cannot be used is skipped, logged and listed in OUT/rejected.jsonl. The files on disk are
shards.py's. S samples, T frames, K codebooks.
"""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..model.codecs import Codec
from ..model.files import readable, write_whole
from .audio import AudioError, find_audio
from .config import PrepareConfig
from .encoding import encoder, transcript_path
from .progress import progress_bar
from .shards import TokenStore, Utterance, commit_store, finished_shard, shard_name, write_shard
from .store_index import HEADER, CodecInfo, FutureFormat, Rejected, ShardIndex, StoreHeader

REJECTED, LOCK = "rejected.jsonl", ".lock"
QUIET_CUTS = "cut where it is quiet"  # part of the key of a shard

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepareSummary:
    """What a store holds after `prepare`, for people: print it."""

    num_files: int
    num_utterances: int
    num_rejected: int
    hours: float  # of the audio in the store
    num_frames: int
    out: Path
    num_texts: int = 0  # utterances with a transcript
    num_encoded: int = 0  # files that were not in the store before

    @property
    def content(self) -> str:
        length = f"{self.hours:.2f} h" if self.hours >= 1 else f"{60 * self.hours:.1f} min"
        texts = f" ({self.num_texts} with text)" if self.num_texts else ""
        return f"{length} of audio, {self.num_utterances} utterances{texts}, {self.num_frames} frames"

    def __str__(self) -> str:
        text = f"{self.out}: {'' if self.num_encoded else 'nothing to do, it holds '}{self.content}"
        if self.num_rejected:
            text += f"\n{self.num_rejected} rejected (of {self.num_files} files), listed in {self.out / REJECTED}"
        return text


@dataclass(frozen=True)
class _Shard:
    number: int
    files: list[tuple[Path, str]]  # with the name of the utterance
    key: str
    key_before_cuts: str  # what it was before long files were cut where it is quiet

    def found(self, out: Path) -> ShardIndex | None:
        """The finished shard in `out`, unless it was made from something else."""
        index = finished_shard(out, self.number, self.key)
        if index is None:
            index = finished_shard(out, self.number, self.key_before_cuts)
            names = {name for _, name in self.files}
            if index is not None and any(re.sub(r"~\d+$", "", entry.name) not in names for entry in index.utterances):
                return None
        return index


def prepare(
    audio: Path, out: Path, codec: Codec, config: PrepareConfig = PrepareConfig(), progress: bool = True
) -> PrepareSummary:
    """Encode every audio file below `audio` (or the one file) into the token store `out`, on the codec's device.

    A store that is finished already is only read. progress: show a bar (TQDM_DISABLE=1 in the environment turns off
    all bars). Raises AudioError if there is no audio file, ValueError if none can be used (then nothing is left) or if
    `out` holds tokens of another codec, OSError if `out` cannot be written or another prepare is writing there.
    """
    audio, out, info = Path(audio), Path(out), CodecInfo.of(codec)
    files = _audio_files(audio)
    shards = _plan(audio, files, info, config)
    stored = _stored_header(out, info)
    if stored is not None:
        found = [shard.found(out) for shard in shards]
        indices = [index for index in found if index is not None]
        if len(indices) == len(found) and stored.describes(indices):
            return _summary(out, info, indices, len(files), 0)
    with _locked(out):
        found = [shard.found(out) for shard in shards]
        todo = [shard for shard, index in zip(shards, found, strict=True) if index is None]
        if stored is not None and todo:
            counts = f"{len(todo)} of {len(shards)}"
            logger.info("%s: %s shards do not fit the files and options and are made again", out, counts)
        (out / HEADER).unlink(missing_ok=True)  # no store until all of its shards fit again
        made = iter(list(_encode_shards(todo, out, codec, config, len(files), progress)))
        indices = [next(made) if index is None else index for index in found]
        return _finish(audio, out, info, indices, len(files), sum(len(shard.files) for shard in todo))


def _audio_files(audio: Path) -> list[Path]:
    try:
        return find_audio(audio)
    except AudioError:
        if (audio / HEADER).is_file():
            raise AudioError(f"{audio}: is a token store already; give the folder of its audio") from None
        if audio.is_dir() and any(audio.glob("*shard-?????.*")):
            raise AudioError(
                f"{audio}: is an unfinished token store; repeat the codeclm prepare that began it, and it goes on"
            ) from None
        raise


def _stored_header(out: Path, info: CodecInfo) -> StoreHeader | None:
    """What `out` was finished with. Raises ValueError if that is another codec's, or a newer codeclm's."""
    try:
        header = StoreHeader.read(out)
    except FileNotFoundError:
        return None
    except FutureFormat:
        raise
    except ValueError as error:
        logger.warning("%s", str(error).partition(";")[0])
        return None
    header.codec.require(info, out)
    return header


def utterance_names(audio: Path, files: Sequence[Path]) -> list[str]:
    """Paths relative to the folder `audio` without suffix; with it where two files would have the same name."""
    root = audio.parent if audio.is_file() else audio
    whole = [file.relative_to(root) for file in files]
    stems = Counter(path.with_suffix("") for path in whole)
    taken = set(whole)
    return [
        readable((path if stems[stem] > 1 or stem in taken else stem).as_posix())
        for path, stem in ((path, path.with_suffix("")) for path in whole)
    ]


def _plan(audio: Path, files: Sequence[Path], info: CodecInfo, config: PrepareConfig) -> list[_Shard]:
    named = list(zip(files, utterance_names(audio, files), strict=True))
    shards = []
    for first in range(0, len(named), config.files_per_shard):
        members = named[first : first + config.files_per_shard]
        made_from = [
            info.fingerprint,
            float(config.max_utterance_s),
            config.copies,
            [[name, *stamp(path), *_transcript_stamp(path)] for path, name in members],
        ]
        keys = [hashlib.sha256(json.dumps(made_from + rest).encode()).hexdigest() for rest in ([QUIET_CUTS], [])]
        shards.append(_Shard(len(shards), members, *keys))
    return shards


def stamp(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns; (-1, -1) for a link to nowhere."""
    try:
        stat = path.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _transcript_stamp(path: Path) -> tuple[int, ...]:
    """Nothing for an audio file without a transcript: a shard of such files has the key it always had."""
    found = stamp(transcript_path(path))
    return () if found == (-1, -1) else found


def _encode_shards(
    todo: Sequence[_Shard], out: Path, codec: Codec, config: PrepareConfig, num_files: int, progress: bool
) -> Iterator[ShardIndex]:
    """Encode and write the shards in order, with a progress bar over all files."""
    waiting = sum(len(shard.files) for shard in todo)
    jobs = [(path, name) for shard in todo for path, name in shard.files]
    info, seconds = CodecInfo.of(codec), 0.0
    with (
        encoder(codec, config, len(jobs)) as encode,
        progress_bar(
            total=num_files, initial=num_files - waiting, desc="prepare", unit="file", leave=False, disable=not progress
        ) as bar,
    ):
        results = encode(jobs)

        def entries(shard: _Shard) -> Iterator[Utterance | Rejected]:
            nonlocal seconds
            for path, name in shard.files:
                for entry in next(results):
                    if isinstance(entry, Rejected):
                        piece = entry.name.removeprefix(name)  # "#1" of a long file
                        logger.warning("skipped %s%s: %s", readable(path), piece, entry.reason)
                    else:
                        seconds += entry.num_samples / info.sample_rate
                    yield entry
                bar.set_postfix(audio=f"{seconds:.0f} s", refresh=False)
                bar.update()

        for shard in todo:
            yield write_shard(out, shard.number, entries(shard), info, shard.key)


def _finish(
    audio: Path, out: Path, info: CodecInfo, indices: Sequence[ShardIndex], num_files: int, num_encoded: int
) -> PrepareSummary:
    """Write rejected.jsonl, remove what an earlier run left over, commit the store."""
    rejected = [entry for index in indices for entry in index.rejected]
    nothing = not any(index.utterances for index in indices)
    kept = set() if nothing else {shard_name(number) for number in range(len(indices))}
    for path in out.glob("shard-*.*"):
        if path.stem not in kept:
            path.unlink()
    if nothing:
        (out / REJECTED).unlink(missing_ok=True)
        raise ValueError(f"{audio}: none of {num_files} audio files can be used: {_reasons(rejected)}")
    write_whole(out / REJECTED, "".join(json.dumps(asdict(entry)) + "\n" for entry in rejected))
    commit_store(out, info, indices)
    return _summary(out, info, indices, num_files, num_encoded)


def _reasons(rejected: Sequence[Rejected], most: int = 5) -> str:
    """The most frequent reasons without their numbers, each with its count and its first file."""
    names: dict[str, list[str]] = {}
    for entry in rejected:
        names.setdefault(re.split(r" \(|;", entry.reason)[0], []).append(entry.name)
    listed = sorted(names.items(), key=lambda item: -len(item[1]))
    told = [f"{reason} ({len(found)}, such as {found[0]})" for reason, found in listed[:most]]
    return ", ".join([*told, *(["..."] if len(listed) > most else [])])


def _summary(
    out: Path, info: CodecInfo, indices: Sequence[ShardIndex], num_files: int, num_encoded: int
) -> PrepareSummary:
    utterances = [entry for index in indices for entry in index.utterances]
    return PrepareSummary(
        num_files,
        num_utterances=len(utterances),
        num_rejected=sum(len(index.rejected) for index in indices),
        hours=sum(entry.num_samples for entry in utterances) / info.sample_rate / 3600,
        num_frames=sum(entry.num_frames for entry in utterances),
        out=out,
        num_texts=sum(entry.text is not None for entry in utterances),
        num_encoded=num_encoded,
    )


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """`out` exists, can be written, and is ours alone. If nothing is put there, it is gone afterwards."""
    lock = FileLock(out / LOCK, timeout=0)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise OSError(f"{out}: another codeclm prepare is writing here; wait for it or choose another folder") from None
    except FileExistsError:
        raise OSError(f"{out}: is a file, not a folder; choose another place for the tokens") from None
    except OSError as error:
        raise OSError(f"{out}: cannot be written ({error.strerror or error}); choose another folder") from None
    try:
        for partial in out.glob(".*.partial"):  # of a run that was killed
            partial.unlink()
        yield
    finally:
        if [path.name for path in out.iterdir()] == [LOCK]:
            (out / LOCK).unlink()
        lock.release()
        with suppress(OSError):  # others may have put something there
            for folder in made:  # innermost first
                folder.rmdir()


def open_or_prepare(
    data: Path, out: Path, codec: Codec, config: PrepareConfig = PrepareConfig(), progress: bool = True
) -> TokenStore:
    """The token store in `data`, or, where `data` is audio, the one that `prepare` makes of it in `out`.

    Raises as `prepare` and `TokenStore` do, also for a store that is not finished.
    """
    if (data / HEADER).is_file():
        store = TokenStore(data)
        store.verify()
        return store
    summary = prepare(data, out, codec, config, progress)
    skipped = f"; {summary.num_rejected} skipped" if summary.num_rejected else ""
    logger.info("%s: %s%s", data, summary.content, skipped)
    return TokenStore(out)
