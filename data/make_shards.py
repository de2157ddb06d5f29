"""Shards of a plan -> shards on disk, one after another, with progress in hours of audio."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..model.codec_reference import CodecReference
from ..model.codecs import Codec
from .config import PrepareConfig
from .encode_files import Entries, encoder
from .plan import Shard
from .progress import progress_bar
from .store_index import Rejected, ShardIndex
from .store_writer import Utterance, write_shard

logger = logging.getLogger(__name__)


class HoursBar:
    """A bar over bytes of audio that tells hours: done, about how many there are, and how many an hour."""

    def __init__(self, total_bytes: int, progress: bool):
        # a file without a byte is a step, too
        self.bar = progress_bar(
            total=max(1, total_bytes),
            desc="prepare",
            leave=False,
            disable=not progress,
            bar_format="{desc} {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]",
        )
        self.hours = 0.0

    def __enter__(self) -> "HoursBar":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def add(self, num_bytes: int, hours: float) -> None:
        self.hours += hours
        done, total = self.bar.n + num_bytes, max(1, self.bar.total or 1)
        about = self.hours * total / max(1, done)
        elapsed_h = self.bar.format_dict["elapsed"] / 3600
        rate = f", {self.hours / elapsed_h:.0f} h/h" if elapsed_h > 0 else ""
        self.bar.set_description_str(f"prepare: {self.hours:.2f} of about {about:.2f} h{rate}", refresh=False)
        self.bar.update(num_bytes)


def make_shards(
    todo: Sequence[Shard], out: Path, codec: Codec, config: PrepareConfig, progress: bool = True
) -> dict[str, ShardIndex]:
    """Encode and write the shards, in order -> their indices by key. Raises OSError if the disk does not take them."""
    info, total = CodecReference.of(codec), sum(shard.size for shard in todo)
    num_sources = sum(len(shard.sources) for shard in todo)
    with encoder(codec, config, num_sources, total) as encode, HoursBar(total, progress) as bar:
        results = encode(shard.sources for shard in todo)
        return {shard.key: write_shard(out, shard.key, _told(shard, results, info, bar), info) for shard in todo}


def _told(
    shard: Shard, results: Iterator[Entries], info: CodecReference, bar: HoursBar
) -> Iterator[Utterance | Rejected]:
    for source in shard.sources:
        entries = next(results)
        for entry in entries:
            if isinstance(entry, Rejected):
                piece = entry.name.removeprefix(source.name)  # "#1" of a long file
                logger.info("skipped %s%s: %s", source.label, piece, entry.reason)
        yield from entries
        samples = sum(entry.num_samples for entry in entries if isinstance(entry, Utterance))
        bar.add(source.size, samples / info.sample_rate / 3600)
