"""Speech -> a token store: `prepare(audio, out, codec)`. In codeclm.data the name `prepare` is this function's.

What sources.find_sources finds is grouped into shards; a finished shard is never done again, so a run that was killed
goes on where it was, and its bytes are those of an unbroken run with any number of workers, ranks or machines. New
files become new shards; the store that was there stays whole until the new one is. What cannot be used is skipped,
logged and listed in OUT/rejected.jsonl. The files on disk are token_store.py's. S samples, T frames, K codebooks.
"""

import json
import logging
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..model.codec_reference import CodecReference
from ..model.codecs import Codec, load_codec
from ..model.device import resolve_device
from ..model.files import locked_folder, write_whole
from .audio import AudioError, audio_header
from .codec_probe import PROBE, Probe, check_behaviour
from .config import PrepareConfig, with_settings
from .make_shards import make_shards
from .plan import Shard, plan_shards
from .ranks import PATIENCE_S, WORK, Rank, own_folder, rank_folder
from .sources import Found, Source, find_sources
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
from .store_writer import commit_store
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


@dataclass(frozen=True)
class RankSummary:
    """What one rank of several has done, for people: print it."""

    rank: Rank
    num_made: int
    num_missing: int  # shards that other ranks have not made yet
    out: Path

    def __str__(self) -> str:
        rest = f"{self.num_missing} shards are still missing" if self.num_missing else "no shard is missing"
        return (
            f"{self.out}: {self.rank} has made {self.num_made} shards, {rest}; when all ranks are done, the same "
            f"command with --commit in place of --rank makes them a store"
        )


@dataclass(frozen=True)
class Job:
    """What is to be encoded into which folder by which codec."""

    audio: str | Path
    out: Path
    codec: Codec
    config: PrepareConfig
    found: Found

    @property
    def info(self) -> CodecReference:
        return CodecReference.of(self.codec)

    def plan(self) -> tuple[StoreHeader | None, list[ShardIndex | Shard]]:
        """What `out` was finished with, and the shards."""
        stored = _stored_header(self.out, self.info)
        return stored, plan_shards(self.found.sources, self.out, stored, self.info, self.config)


def prepare(
    audio: str | Path,
    out: str | Path,
    codec: str | Path | Codec = "spectral",
    config: PrepareConfig = PrepareConfig(),
    only: Collection[str] | None = None,
    progress: bool = True,
    device: str = "auto",
    commit: bool = False,
    ray: bool = False,
    **settings: Any,
) -> PrepareSummary:
    """Encode the speech in `audio`, whatever `find_sources` reads, into the token store `out`.

    A store that is finished already is only read; `TokenStore(out)` opens it.
    codec: a name or folder, as `load_codec` takes it, which computes on `device` (as for `codeclm.load`), or a codec,
    which computes where it is. settings: fields of `config`, such as max_utterance_s=20 (seconds) or num_workers=2
    (processes on the CPU; a script then needs `if __name__ == "__main__"`). only: sources of these names. progress:
    show a bar (TQDM_DISABLE=1 in the environment turns off all bars). commit: all shards have been made by ranks. ray:
    make them with the actors of a Ray cluster. Raises AudioError if there is no audio, ValueError for a setting or a
    codec that is unknown or behaves otherwise here, if nothing can be used (then nothing new is left), if `out` holds
    tokens of another codec, or if a shard is missing that was to be committed, OSError if `out` cannot be written or
    another prepare is writing there.
    """
    job = _job(audio, out, codec, with_settings(config, settings), only, device)
    out = job.out
    stored, shards = job.plan()
    finished = [shard for shard in shards if isinstance(shard, ShardIndex)]
    if stored is not None and len(finished) == len(shards) and stored.describes(finished):
        return _summary(job, finished, 0)
    with own_folder(out):
        for partial in out.glob(".*.partial"):  # left by a run that was killed
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        stored, shards = job.plan()
        todo = [shard for shard in shards if isinstance(shard, Shard)]
        if commit and todo:
            raise ValueError(_missing(out, todo, len(shards)))
        num_encoded = sum(len(shard.sources) for shard in todo)
        if stored is not None and todo:
            logger.info(
                "%s: %d of %d files are new, changed, or were encoded otherwise", out, num_encoded, len(job.found)
            )
        if todo:
            _check_codec(job, stored)
            if ray:
                from .ray_shards import make_shards_with_ray

                make_shards_with_ray(todo, out, job.codec, job.config, progress)
                shards = job.plan()[1]
            else:
                made = make_shards(todo, out, job.codec, job.config, progress)
                shards = [made[shard.key] if isinstance(shard, Shard) else shard for shard in shards]
        return _finish(job, stored, shards, num_encoded)


def prepare_rank(
    audio: str | Path,
    out: str | Path,
    rank: Rank,
    codec: str | Path | Codec = "spectral",
    config: PrepareConfig = PrepareConfig(),
    progress: bool = True,
    device: str = "auto",
) -> RankSummary:
    """Make the shards of one rank of several; `prepare(..., commit=True)` makes a store of all of them.

    All ranks see the same audio and folder, and need no word of each other. Raises as `prepare` does, and OSError if
    another process is this rank.
    """
    job = _job(audio, out, codec, config, None, device)
    with rank_folder(job.out, rank):
        stored, shards = job.plan()
        todo = [shard for shard in shards if isinstance(shard, Shard)]
        mine = [shard for shard in todo if rank.makes(shard.number)]
        if mine:
            _check_codec(job, stored)
            make_shards(mine, job.out, job.codec, job.config, progress)
        return RankSummary(rank, len(mine), len(todo) - len(mine), job.out)


def _job(
    audio: str | Path,
    out: str | Path,
    codec: str | Path | Codec,
    config: PrepareConfig,
    only: Collection[str] | None,
    device: str,
) -> Job:
    codec = _open_codec(codec, device, config) if isinstance(codec, str | Path) else codec
    check_storable(CodecReference.of(codec))
    found = _sources(audio, config)
    if only is not None:
        found = Found([source for source in found.sources if source.name in only])
    return Job(audio, Path(out), codec, config, found)


def _check_codec(job: Job, stored: StoreHeader | None) -> None:
    """The codec behaves as it did for what is there already; of a new store is kept how it does."""

    def is_new() -> bool:
        probe = Probe.read(job.out)
        return stored is None and (probe is None or probe.fingerprint != job.info.fingerprint)

    if is_new():
        probe = Probe.of(job.codec)
        with locked_folder(job.out, WORK, PATIENCE_S):  # ranks may come here at once
            if is_new():
                probe.write(job.out)
    check_behaviour(job.codec, job.out)


def _missing(out: Path, todo: Sequence[Shard], num_shards: int, most: int = 5) -> str:
    told = [f"shard {shard.number} ('{shard.sources[0].name}', ...)" for shard in todo[:most]]
    listed = ", ".join([*told, *(["..."] if todo[most:] else [])])
    return (
        f"{out}: {len(todo)} of {num_shards} shards are missing: {listed}; "
        f"rank R of W makes the shards whose number leaves R when divided by W: run those ranks again"
    )


def duration(hours: float) -> str:
    """A length of audio in the unit that suits it: "1.31 h", "0.6 min"."""
    return f"{hours:.2f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _open_codec(name: str | Path, device: str, config: PrepareConfig) -> Codec:
    # worker processes compute on the CPU, and codes must not depend on their number
    where = resolve_device("cpu" if device == "auto" and config.num_workers > 1 else device)
    return load_codec(name).to(where)


def _sources(audio: str | Path, config: PrepareConfig) -> Found:
    path = Path(audio)
    try:
        return find_sources(audio, config.split, config.subset, config.streaming)
    except AudioError:
        if (path / HEADER).is_file():
            raise AudioError(f"{path}: is a token store already; give the folder of its audio") from None
        if path.is_dir() and any(path.glob("*shard-*.*")):
            raise AudioError(
                f"{path}: is an unfinished token store; repeat the codeclm prepare that began it, and it goes on"
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


def _finish(
    job: Job, stored: StoreHeader | None, shards: Sequence[ShardIndex | Shard], num_encoded: int
) -> PrepareSummary:
    """Write rejected.jsonl, commit the store, remove shards that are not its own."""
    indices = [shard for shard in shards if isinstance(shard, ShardIndex)]
    if len(indices) < len(shards):
        raise OSError(f"{job.out}: a shard that was written is not there; what is finished is kept: run it again")
    rejected = [*job.found.skipped, *(entry for index in indices for entry in index.rejected)]
    if not any(index.utterances for index in indices):
        _keep_shards(job.out, [] if stored is None else stored.shards)
        if stored is None:
            (job.out / PROBE).unlink(missing_ok=True)
        reasons = _reasons(rejected)
        raise ValueError(f"{job.audio}: none of {len(job.found)} audio files can be used: {reasons}")
    write_whole(job.out / REJECTED, "".join(json.dumps(asdict(entry)) + "\n" for entry in rejected))
    commit_store(job.out, job.info, indices)
    _keep_shards(job.out, indices)
    return _summary(job, indices, num_encoded)


def _keep_shards(out: Path, kept: Iterable[ShardIndex | ShardInfo]) -> None:
    names = {shard.name for shard in kept}
    for path in out.glob("shard-*.*"):
        if path.stem not in names:
            path.unlink()


def _reasons(rejected: Sequence[Rejected], most: int = 5) -> str:
    """The most frequent reasons without their numbers, each with its count and its first file."""
    names: dict[str, list[str]] = {}
    for entry in rejected:
        names.setdefault(entry.kind, []).append(entry.name)
    listed = sorted(names.items(), key=lambda item: -len(item[1]))
    told = [f"{reason} ({len(found)}, such as {found[0]})" for reason, found in listed[:most]]
    return ", ".join([*told, *(["..."] if len(listed) > most else [])])


def _summary(job: Job, indices: Sequence[ShardIndex], num_encoded: int) -> PrepareSummary:
    utterances = [entry for index in indices for entry in index.utterances]
    return PrepareSummary(
        len(job.found),
        num_utterances=len(utterances),
        num_rejected=len(job.found.skipped) + sum(len(index.rejected) for index in indices),
        hours=sum(entry.num_samples for entry in utterances) / job.info.sample_rate / 3600,
        num_frames=sum(entry.num_frames for entry in utterances),
        out=job.out,
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
        check_behaviour(codec, store.folder)
        store.verify()
        return store
    if limit:
        summary = _prepare_some(data, out, codec, config, limit, progress)
    else:
        summary = prepare(data, out, codec, config, progress=progress)
    skipped = f"; {summary.num_rejected} skipped" if summary.num_rejected else ""
    logger.info("%s: %s%s", data, summary.content, skipped)
    return TokenStore(out)


def _prepare_some(
    audio: str | Path, out: Path, codec: Codec, config: PrepareConfig, limit: int, progress: bool
) -> PrepareSummary:
    """`prepare` of the first `limit` sources by hash of their names, and of more where some of these cannot be used.

    A recording that becomes several utterances is always among them: their names have hashes of their own.
    """
    sources = _sources(audio, config).sources
    names = sorted((source.name for source in sources), key=name_hash)
    long = {source.name for source in sources if _seconds(source) > config.max_utterance_s}
    count = min(limit, len(names))
    while True:
        summary = prepare(audio, out, codec, config, {*names[:count], *long}, progress)
        last = name_hash(names[count - 1])  # what was not prepared comes later in the order
        found = sum(name_hash(name) <= last for name in TokenStore(out).names)
        if found >= limit or count == len(names):
            return summary
        count = min(count + limit - found, len(names))


def _seconds(source: Source) -> float:
    """How long it is, as far as that is known without reading it."""
    if source.end_s is not None:
        return source.end_s - source.start_s
    return audio_header(source.audio)[1] if isinstance(source.audio, Path) else 0.0
