"""Audio files -> a token store: `prepare(audio, out, codec)`. In codeclm.data the name `prepare` is this function's.

The sorted files are grouped into shards; a finished shard is never done again, so a run that was killed goes on where
it was, and its bytes are those of an unbroken run with any number of workers. New files become new shards; the store
that was there stays whole until the new one is. A transcript NAME.txt beside NAME.wav goes with its audio. What cannot
be used is skipped, logged and listed in OUT/rejected.jsonl. The files on disk are token_store.py's. S samples, T
frames, K codebooks.
"""

import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..model.codec_reference import CodecReference
from ..model.codecs import Codec, load_codec
from ..model.device import resolve_device
from ..model.files import locked_folder, readable, write_whole
from .audio import AudioError, audio_header, find_audio
from .config import PrepareConfig, with_settings
from .encode_files import encoder
from .plan import Shard, plan_shards, utterance_names
from .progress import progress_bar
from .split import name_hash
from .store_index import (
    HEADER,
    FutureFormat,
    Rejected,
    ShardIndex,
    ShardInfo,
    StoreHeader,
    check_storable,
    require_codec,
)
from .store_writer import Utterance, commit_store, write_shard
from .token_store import TokenStore

REJECTED = "rejected.jsonl"

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
        texts = f" ({self.num_texts} with text)" if self.num_texts else ""
        return f"{duration(self.hours)} of audio, {self.num_utterances} utterances{texts}, {self.num_frames} frames"

    def __str__(self) -> str:
        text = f"{self.out}: {'' if self.num_encoded else 'nothing to do, it holds '}{self.content}"
        if self.num_rejected:
            text += f"\n{self.num_rejected} rejected (of {self.num_files} files), listed in {self.out / REJECTED}"
        return text


def prepare(
    audio: str | Path,
    out: str | Path,
    codec: str | Path | Codec = "spectral",
    config: PrepareConfig = PrepareConfig(),
    only: Collection[Path] | None = None,
    progress: bool = True,
    device: str = "auto",
    **settings: Any,
) -> PrepareSummary:
    """Encode every audio file below `audio` (or the one file) into the token store `out`.

    A store that is finished already is only read; `TokenStore(out)` opens it.
    codec: a name or folder, as `load_codec` takes it, which computes on `device` (as for `codeclm.load`), or a codec,
    which computes where it is. settings: fields of `config`, such as max_utterance_s=20 (seconds) or num_workers=2
    (processes on the CPU; a script then needs `if __name__ == "__main__"`). only: these of the files; their names and
    order are as if all were there. progress: show a bar (TQDM_DISABLE=1 in the environment turns off
    all bars). Raises AudioError if there is no audio file, ValueError for a setting or a codec that is unknown, if no
    file can be used (then nothing new is left) or if `out` holds tokens of another codec, OSError if `out` cannot be
    written or another prepare is writing there.
    """
    config = with_settings(config, settings)
    codec = _open_codec(codec, device, config) if isinstance(codec, str | Path) else codec
    audio, out, info = Path(audio), Path(out), CodecReference.of(codec)
    check_storable(info)
    files = _audio_files(audio)
    num_files = len(files if only is None else only)

    def plan() -> tuple[StoreHeader | None, list[ShardIndex | Shard], list[Shard]]:
        stored = _stored_header(out, info)
        shards = plan_shards(audio, files, out, stored, info, config, only)
        return stored, shards, [shard for shard in shards if isinstance(shard, Shard)]

    stored, shards, todo = plan()
    finished = [shard for shard in shards if isinstance(shard, ShardIndex)]
    if stored is not None and not todo and stored.describes(finished):
        return _summary(out, info, finished, num_files, 0)
    with locked_folder(out, "codeclm prepare"):
        for partial in out.glob(".*.partial"):  # of a run that was killed
            partial.unlink()
        stored, shards, todo = plan()
        num_encoded = sum(len(shard.files) for shard in todo)
        if stored is not None and todo:
            logger.info("%s: %d of %d files are new, changed, or were encoded otherwise", out, num_encoded, num_files)
        made = iter(list(_encode_shards(todo, out, codec, config, num_files, progress)))
        indices = [next(made) if isinstance(shard, Shard) else shard for shard in shards]
        return _finish(audio, out, stored, info, indices, num_files, num_encoded)


def duration(hours: float) -> str:
    """A length of audio in the unit that suits it: "1.31 h", "0.6 min"."""
    return f"{hours:.2f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _open_codec(name: str | Path, device: str, config: PrepareConfig) -> Codec:
    # worker processes compute on the CPU, and what is made must not depend on their number
    where = resolve_device("cpu" if device == "auto" and config.num_workers > 1 else device)
    return load_codec(name).to(where)


def _audio_files(audio: Path) -> list[Path]:
    try:
        return find_audio(audio)
    except AudioError:
        if (audio / HEADER).is_file():
            raise AudioError(f"{audio}: is a token store already; give the folder of its audio") from None
        if audio.is_dir() and any(audio.glob("*shard-*.*")):
            raise AudioError(
                f"{audio}: is an unfinished token store; repeat the codeclm prepare that began it, and it goes on"
            ) from None
        raise


def _stored_header(out: Path, info: CodecReference) -> StoreHeader | None:
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
    require_codec(header.codec, info, out)
    return header


def _encode_shards(
    todo: Sequence[Shard], out: Path, codec: Codec, config: PrepareConfig, num_files: int, progress: bool
) -> Iterator[ShardIndex]:
    """Encode and write the shards in order, with a progress bar over all files."""
    waiting = sum(len(shard.files) for shard in todo)
    jobs = [(path, name) for shard in todo for path, name in shard.files]
    info, seconds = CodecReference.of(codec), 0.0
    with (
        encoder(codec, config, len(jobs)) as encode,
        progress_bar(
            total=num_files, initial=num_files - waiting, desc="prepare", unit="file", leave=False, disable=not progress
        ) as bar,
    ):
        results = encode(jobs)

        def entries(shard: Shard) -> Iterator[Utterance | Rejected]:
            nonlocal seconds
            for path, name in shard.files:
                for entry in next(results):
                    if isinstance(entry, Rejected):
                        piece = entry.name.removeprefix(name)  # "#1" of a long file
                        logger.info("skipped %s%s: %s", readable(path), piece, entry.reason)
                    else:
                        seconds += entry.num_samples / info.sample_rate
                    yield entry
                bar.set_postfix(audio=f"{seconds:.0f} s", refresh=False)
                bar.update()

        for shard in todo:
            yield write_shard(out, shard.key, entries(shard), info)


def _finish(
    audio: Path,
    out: Path,
    stored: StoreHeader | None,
    info: CodecReference,
    indices: Sequence[ShardIndex],
    num_files: int,
    num_encoded: int,
) -> PrepareSummary:
    """Write rejected.jsonl, commit the store, remove shards that are not its own."""
    rejected = [entry for index in indices for entry in index.rejected]
    if not any(index.utterances for index in indices):
        _keep_shards(out, [] if stored is None else stored.shards)
        raise ValueError(f"{audio}: none of {num_files} audio files can be used: {_reasons(rejected)}")
    write_whole(out / REJECTED, "".join(json.dumps(asdict(entry)) + "\n" for entry in rejected))
    commit_store(out, info, indices)
    _keep_shards(out, indices)
    return _summary(out, info, indices, num_files, num_encoded)


def _keep_shards(out: Path, kept: Iterable[ShardIndex | ShardInfo]) -> None:
    names = {shard.name for shard in kept}
    for path in out.glob("shard-*.*"):
        if path.stem not in names:
            path.unlink()


def _reasons(rejected: Sequence[Rejected], most: int = 5) -> str:
    """The most frequent reasons without their numbers, each with its count and its first file."""
    names: dict[str, list[str]] = {}
    for entry in rejected:
        names.setdefault(re.split(r" \(|;", entry.reason)[0], []).append(entry.name)
    listed = sorted(names.items(), key=lambda item: -len(item[1]))
    told = [f"{reason} ({len(found)}, such as {found[0]})" for reason, found in listed[:most]]
    return ", ".join([*told, *(["..."] if len(listed) > most else [])])


def _summary(
    out: Path, info: CodecReference, indices: Sequence[ShardIndex], num_files: int, num_encoded: int
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


def open_or_prepare(
    data: str | Path | TokenStore,
    out: Path,
    codec: Codec,
    config: PrepareConfig = PrepareConfig(),
    limit: int = 0,
    progress: bool = True,
) -> TokenStore:
    """`data` itself, or the token store in it, or, where `data` is audio, the one that `prepare` makes of it in `out`.

    limit: of audio, only the files that the first `limit` utterances by hash of their names come from; 0: all.
    Raises as `prepare` and `TokenStore` do, also for a store that is not finished.
    """
    if isinstance(data, TokenStore) or (Path(data) / HEADER).is_file():
        store = data if isinstance(data, TokenStore) else TokenStore(Path(data))
        store.require_codec(codec)
        store.verify()
        return store
    data = Path(data)
    if limit:
        summary = _prepare_some(data, out, codec, config, limit, progress)
    else:
        summary = prepare(data, out, codec, config, progress=progress)
    skipped = f"; {summary.num_rejected} skipped" if summary.num_rejected else ""
    logger.info("%s: %s%s", data, summary.content, skipped)
    return TokenStore(out)


def _prepare_some(
    audio: Path, out: Path, codec: Codec, config: PrepareConfig, limit: int, progress: bool
) -> PrepareSummary:
    """`prepare` of the first `limit` files by hash of their names, and of more where some of these cannot be used.

    A file that becomes several utterances is always among them: their names have hashes of their own.
    """
    files = _audio_files(audio)
    names = dict(zip(files, utterance_names(audio, files), strict=True))
    order = sorted(files, key=lambda file: name_hash(names[file]))
    long = {file for file in files if audio_header(file)[1] > config.max_utterance_s}
    count = min(limit, len(files))
    while True:
        summary = prepare(audio, out, codec, config, {*order[:count], *long}, progress)
        last = name_hash(names[order[count - 1]])  # what was not prepared comes later in the order
        found = sum(name_hash(name) <= last for name in TokenStore(out).names)
        if found >= limit or count == len(files):
            return summary
        count = min(count + limit - found, len(files))
