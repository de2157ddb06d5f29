"""Audio files -> a token store: `prepare(audio, out, codec)`.

The sorted files are grouped into shards; a finished shard is never done again, so a run that was killed goes on where
it was, and its bytes are those of an unbroken run with any number of workers. A transcript NAME.txt beside NAME.wav
goes with its audio. What cannot be used is skipped, printed and listed in OUT/rejected.jsonl. The files on disk are
shards.py's. S samples, T frames, K codebooks.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from ..model.codecs import Codec
from ..model.files import whole_file
from .audio import audio_header, find_audio
from .config import PrepareConfig
from .encoding import encoder, transcript_path
from .progress import progress_bar
from .shards import (
    HEADER,
    CodecInfo,
    Rejected,
    ShardIndex,
    TokenStore,
    Utterance,
    commit_store,
    finished_shard,
    name_hash,
    read_header,
    require_codec,
    shard_name,
    write_shard,
)

REJECTED = "rejected.jsonl"


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

    @property
    def content(self) -> str:
        length = f"{self.hours:.2f} h" if self.hours >= 1 else f"{60 * self.hours:.1f} min"
        texts = f" ({self.num_texts} with text)" if self.num_texts else ""
        return f"{length} of audio, {self.num_utterances} utterances{texts}, {self.num_frames} frames"

    def __str__(self) -> str:
        text = f"{self.out}: {self.content}"
        if self.num_rejected:
            text += f"\n{self.num_rejected} rejected (of {self.num_files} files), listed in {self.out / REJECTED}"
        return text


@dataclass(frozen=True)
class _Shard:
    number: int
    files: list[tuple[Path, str]]  # with the name of the utterance
    key: str


def prepare(
    audio: Path,
    out: Path,
    codec: Codec,
    config: PrepareConfig = PrepareConfig(),
    only: Collection[Path] | None = None,
) -> PrepareSummary:
    """Encode every audio file below `audio` (or the one file) into the token store `out`.

    only: of these files; names, and with them the store's order, are as if all were there.
    Raises AudioError if there is no audio file, ValueError if none can be used (then no store is committed) or if
    `out` holds tokens of another codec, OSError if `out` cannot be written or another prepare is writing there.
    """
    audio, out, info = Path(audio), Path(out), CodecInfo.of(codec)
    files = find_audio(audio)
    with _locked(out):
        committed = (out / HEADER).exists()
        if committed:
            require_codec(out, read_header(out).codec, info.fingerprint, info.name)
        shards = _plan(audio, files, info, config, only)
        files = [path for shard in shards for path, _ in shard.files]
        found = [finished_shard(out, shard.number, shard.key) for shard in shards]
        todo = [shard for shard, index in zip(shards, found, strict=True) if index is None]
        if committed and todo:
            tqdm.write(
                f"{out}: {len(todo)} of {len(shards)} shards do not fit the files and options and are made again"
            )
            (out / HEADER).unlink()  # no store until all of its shards fit again
        made = iter(list(_encode_shards(todo, out, codec, config, len(files))))
        indices = [next(made) if index is None else index for index in found]
        return _finish(audio, out, info, indices, len(files))


def utterance_names(audio: Path, files: Sequence[Path]) -> list[str]:
    """Paths relative to the folder `audio` without suffix; with it where two files would have the same name."""
    root = audio.parent if audio.is_file() else audio
    whole = [file.relative_to(root) for file in files]
    stems = Counter(path.with_suffix("") for path in whole)
    taken = set(whole)
    return [
        (path if stems[stem] > 1 or stem in taken else stem).as_posix()
        for path, stem in ((path, path.with_suffix("")) for path in whole)
    ]


def _plan(
    audio: Path, files: Sequence[Path], info: CodecInfo, config: PrepareConfig, only: Collection[Path] | None = None
) -> list[_Shard]:
    named = list(zip(files, utterance_names(audio, files), strict=True))
    named = named if only is None else [pair for pair in named if pair[0] in only]
    shards = []
    for first in range(0, len(named), config.files_per_shard):
        members = named[first : first + config.files_per_shard]
        made_from = [
            info.fingerprint,
            float(config.max_utterance_s),
            config.copies,
            [[name, *stamp(path), *_transcript_stamp(path)] for path, name in members],
        ]
        key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
        shards.append(_Shard(len(shards), members, key))
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
    todo: Sequence[_Shard], out: Path, codec: Codec, config: PrepareConfig, num_files: int
) -> Iterator[ShardIndex]:
    """Encode and write the shards in order, with a progress bar over all files."""
    waiting = sum(len(shard.files) for shard in todo)
    jobs = [(path, name) for shard in todo for path, name in shard.files]
    info, seconds = CodecInfo.of(codec), 0.0
    with (
        encoder(codec, config, len(jobs)) as encode,
        progress_bar(total=num_files, initial=num_files - waiting, desc="prepare", unit="file", leave=False) as bar,
    ):
        results = encode(jobs)

        def entries(shard: _Shard) -> Iterator[Utterance | Rejected]:
            nonlocal seconds
            for path, _ in shard.files:
                for entry in next(results):
                    if isinstance(entry, Rejected):
                        tqdm.write(_printable(f"skipped {path}: {entry.reason}"))
                    else:
                        seconds += entry.num_samples / info.sample_rate
                    yield entry
                bar.set_postfix(audio=f"{seconds:.0f} s", refresh=False)
                bar.update()

        for shard in todo:
            yield write_shard(out, shard.number, entries(shard), info, shard.key)


def _finish(audio: Path, out: Path, info: CodecInfo, indices: Sequence[ShardIndex], num_files: int) -> PrepareSummary:
    """Write rejected.jsonl, remove what an earlier run left over, commit the store."""
    rejected = [entry for index in indices for entry in index.rejected]
    with whole_file(out / REJECTED) as file:
        file.writelines(json.dumps(asdict(entry)).encode() + b"\n" for entry in rejected)
    utterances = [entry for index in indices for entry in index.utterances]
    if not utterances:
        raise ValueError(
            f"{audio}: none of {num_files} audio files can be used (first: {rejected[0].name}: {rejected[0].reason})"
        )
    kept = {shard_name(number) for number in range(len(indices))}
    for path in out.glob("shard-*.*"):
        if path.stem not in kept:
            path.unlink()
    commit_store(out, info, indices)
    hours = sum(entry.num_samples for entry in utterances) / info.sample_rate / 3600
    num_frames = sum(entry.num_frames for entry in utterances)
    num_texts = sum(entry.text is not None for entry in utterances)
    return PrepareSummary(num_files, len(utterances), len(rejected), hours, num_frames, out, num_texts)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """`out` exists, can be written, and is ours alone."""
    lock = FileLock(out / ".lock", timeout=0)
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
        lock.release()


def _printable(text: str) -> str:
    """File names that are not UTF-8 hold surrogates, which cannot be printed."""
    return text.encode("utf-8", "replace").decode()


def open_or_prepare(
    data: Path, out: Path, codec: Codec, config: PrepareConfig = PrepareConfig(), limit: int = 0
) -> TokenStore:
    """The token store in `data`, or, where `data` is audio, the one that `prepare` makes of it in `out`.

    limit: of audio, only the files that the first `limit` utterances by hash of their names come from; 0: all.
    """
    if (data / HEADER).is_file():
        store = TokenStore(data)
        store.verify()
        return store
    summary = _prepare_some(data, out, codec, config, limit) if limit else prepare(data, out, codec, config)
    skipped = f"; {summary.num_rejected} skipped" if summary.num_rejected else ""
    print(f"{data}: {summary.content}{skipped}")
    return TokenStore(out)


def _prepare_some(audio: Path, out: Path, codec: Codec, config: PrepareConfig, limit: int) -> PrepareSummary:
    """`prepare` of the first `limit` files by hash of their names, and of more where some of these cannot be used.

    A file that becomes several utterances is always among them: their names have hashes of their own.
    """
    files = find_audio(audio)
    names = dict(zip(files, utterance_names(audio, files), strict=True))
    order = sorted(files, key=lambda file: name_hash(names[file]))
    long = {file for file in files if audio_header(file)[1] > config.max_utterance_s}
    count = min(limit, len(files))
    while True:
        summary = prepare(audio, out, codec, config, {*order[:count], *long})
        last = name_hash(names[order[count - 1]])  # what was not prepared comes later in the order
        found = sum(name_hash(name) <= last for name in TokenStore(out).names)
        if found >= limit or count == len(files):
            return summary
        count = min(count + limit - found, len(files))
