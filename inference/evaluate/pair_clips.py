"""The two recordings of a pair -> codes in a token store, and where they part. S samples, T frames.

Whatever is wrong with a pair is told by name and skips it; shards of the store are the unit in which a run goes on.
"""

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...data.audio import AudioError, audio_header, check_usable, load_audio, loudness_dbfs
from ...data.progress import progress_bar
from ...data.store_index import Rejected, ShardIndex, shard_name
from ...data.store_writer import Utterance, commit_store, write_shard
from ...data.token_store import TokenStore
from ...model.codec_reference import CodecReference
from ...model.codecs import Codec
from ...model.files import file_sha256, readable
from .pairs import Pair

CHUNK = 32  # pairs of a shard
MIN_SHARED_S = 0.1  # a beginning that two recordings share, sample for sample, is at least so long
LEVEL_STEP_DB = 0.1  # differences of level below it are none

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clips:
    """Both recordings of a pair, better first, at the codec's sample rate."""

    audio: tuple[np.ndarray, np.ndarray]  # [S] each
    sha256: tuple[str, str]  # hashes of the files
    rates: tuple[int, int]  # Hz, of the files
    span_s: tuple[float, float] | None  # where they differ

    def levels(self, sample_rate: int) -> tuple[float, float] | None:
        """How far the level changes where the span begins, in dB, in steps of 0.1; None without a span."""
        if self.span_s is None:
            return None
        cut = round(self.span_s[0] * sample_rate)
        found = []
        for audio in self.audio:
            before, after = (max(-120.0, loudness_dbfs(part)) for part in (audio[:cut], audio[cut:]))
            found.append(LEVEL_STEP_DB * round(abs(after - before) / LEVEL_STEP_DB))
        return found[0], found[1]


def read_clips(pair: Pair, sample_rate: int) -> Clips:
    """Read a pair. Raises AudioError, naming the file, for a recording or a span that cannot be used."""
    files, audio = (pair.better, pair.worse), []
    for path in files:
        audio.append(load_audio(path, sample_rate))
        check_usable(audio[-1], sample_rate, readable(path))
    rates = (audio_header(files[0])[0], audio_header(files[1])[0])
    span_s = _span(pair, rates) if pair.span is not None else _after_shared(audio, sample_rate)
    return Clips((audio[0], audio[1]), (file_sha256(files[0]), file_sha256(files[1])), rates, span_s)


def _span(pair: Pair, rates: tuple[int, int]) -> tuple[float, float]:
    assert pair.span is not None
    start, stop = pair.span
    if start >= stop:
        raise AudioError(f"its span {start}..{stop} is empty")
    if rates[0] != rates[1]:
        raise AudioError(f"its span is in samples, but its recordings have {rates[0]} and {rates[1]} Hz")
    for path in (pair.better, pair.worse):
        num_samples = round(audio_header(path)[1] * rates[0])
        if start < 0 or stop > num_samples:
            raise AudioError(f"its span {start}..{stop} is outside {readable(path)}, which has {num_samples} samples")
    return start / rates[0], stop / rates[0]


def _after_shared(audio: Sequence[np.ndarray], sample_rate: int) -> tuple[float, float] | None:
    """What follows the beginning that both share; None if they share none, or differ nowhere."""
    length = min(map(len, audio))
    differing = np.flatnonzero(audio[0][:length] != audio[1][:length])
    shared = int(differing[0]) if len(differing) else length
    if shared < MIN_SHARED_S * sample_rate or shared == max(map(len, audio)):
        return None
    return shared / sample_rate, max(map(len, audio)) / sample_rate


def prepare_pairs(
    pairs: Sequence[Pair], folder: Path, codec: Codec, progress: bool = True
) -> tuple[TokenStore, dict[str, str]]:
    """Encode the recordings of pairs into a token store, utterances NAME/better and NAME/worse.

    -> the store and the reason why each pair that cannot be used was skipped. Raises ValueError if none can be.
    """
    info, shards, other_rates = CodecReference.of(codec), [], 0
    with progress_bar(total=len(pairs), unit="pair", desc="encode", leave=False, disable=not progress) as bar:
        for chunk in chunks(pairs):
            key = _key(chunk, info)
            path = folder / f"{shard_name(key)}.json"
            try:
                shard = ShardIndex.read(path)
            except (FileNotFoundError, ValueError):
                shard = write_shard(folder, key, _entries(chunk, codec), info)
            shards.append(shard)
            bar.update(len(chunk))
    rejected = {entry.name: entry.reason for shard in shards for entry in shard.rejected}
    for name, reason in rejected.items():
        logger.info("skipped %s: %s", name, reason)
    if len(rejected) == len(pairs):
        first = next(iter(rejected.items()))
        raise ValueError(f"none of {len(pairs)} pairs can be used (first: {first[0]}: {first[1]})")
    commit_store(folder, info, shards)
    used = [pair for pair in pairs if pair.name not in rejected]
    other_rates = sum(audio_header(path)[0] != info.sample_rate for pair in used for path in (pair.better, pair.worse))
    if other_rates:
        logger.info("%d of %d recordings were resampled to %d Hz", other_rates, 2 * len(used), info.sample_rate)
    return TokenStore(folder), rejected


def chunks(pairs: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    for first in range(0, len(pairs), CHUNK):
        yield pairs[first : first + CHUNK]


def window_of(span_s: tuple[float, float], window_s: float, frame_rate: float, num_frames: int) -> tuple[int, int]:
    """The frames of the local score: from the one in which the span begins, of at most `num_frames`."""
    start = math.floor(span_s[0] * frame_rate + 1e-6)
    stop_s = span_s[0] + window_s if window_s else span_s[1]
    stop = max(start + 1, math.ceil(stop_s * frame_rate - 1e-6))
    return start, min(stop, num_frames)


def _entries(chunk: Sequence[Pair], codec: Codec) -> Iterator[Utterance | Rejected]:
    for pair in chunk:
        try:
            clips = read_clips(pair, codec.sample_rate)
        except AudioError as error:
            yield Rejected(pair.name, str(error))
            continue
        for side, audio in zip(("better", "worse"), clips.audio, strict=True):
            codes = codec.encode(torch.from_numpy(audio)[None, None].to(codec.device))[0].T  # [T, K]
            yield Utterance(f"{pair.name}/{side}", len(audio), codes.cpu().numpy().astype(np.uint16))


def _key(chunk: Sequence[Pair], info: CodecReference) -> str:
    """Equal keys mean equal shards."""

    def content(path: Path) -> str:
        return file_sha256(path) if path.is_file() else ""

    listed = [(pair.name, str(pair.span), content(pair.better), content(pair.worse)) for pair in chunk]
    return hashlib.sha256(json.dumps([info.fingerprint, listed]).encode()).hexdigest()
