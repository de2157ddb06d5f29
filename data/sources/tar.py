"""Tar files of samples, as WebDataset writes them: KEY.flac with KEY.txt or KEY.json beside it."""

import json
import logging
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fsspec.core import url_to_fs

from ...model.files import readable
from ..audio import EXTENSIONS, FOREIGN, AudioError
from ..store_index import Rejected
from ..text_encoder import clean_text
from ..word_times import has_words
from .manifest import BadLine, known_text, pick
from .source import ByteRange, Fact, Found, Source, place_stamp, prefixes

logger = logging.getLogger(__name__)


def read_tars(place: str, files: Sequence[str]) -> Found:
    """The samples of tar files, in their order. Raises AudioError if there is none that can be used."""
    found = Found()
    for file, prefix in zip(files, prefixes(place, files), strict=True):
        _add(found, file, prefix)
    if not found.sources:
        reason = f"; {found.skipped[0].name}: {found.skipped[0].reason}" if found.skipped else ""
        raise AudioError(f"{readable(place)}: holds no audio that can be used{reason}")
    return found


def _add(found: Found, file: str, prefix: str) -> None:
    stamp = place_stamp(file)
    called = prefix.rstrip("/") or PurePosixPath(readable(file)).stem
    try:
        samples, is_whole = _samples(file)
    except (tarfile.ReadError, OSError) as error:
        reason = f"cannot be read as a .tar file ({error}); a compressed one must be unpacked to a plain .tar"
        logger.warning("%s: %s; skipped", readable(file), reason)
        found.skipped.append(Rejected(called, reason))
        return
    if not is_whole:
        last = samples.popitem()[0] if samples else "its start"
        logger.warning("%s: is cut off or broken at %s; used up to there", readable(file), last)
        found.skipped.append(Rejected(called, f"is cut off or broken at {last}; used up to there"))
    for key, sample in samples.items():
        name = prefix + key
        try:
            found.sources.append(_source(file, key, name, sample, stamp))
        except BadLine as error:
            logger.warning("%s: %s: %s; skipped", readable(file), key, error)
            found.skipped.append(Rejected(name, str(error)))


Place = tuple[int, int]  # the first byte of a member in the file, and its size


@dataclass(frozen=True)
class Member:
    """What is said about a recording."""

    place: Place
    content: bytes


Sample = dict[str, Place | Member]  # extension -> where the audio is, or what is said about it


def _samples(file: str) -> tuple[dict[str, Sample], bool]:
    """Samples by key, and whether the file ends as it should. Members of one key need not be neighbours."""
    system, path = url_to_fs(file)
    samples: dict[str, Sample] = {}
    with system.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            folder, slash, base = member.name.removeprefix("./").rpartition("/")
            stem, _, extension = base.partition(".")
            suffix = "." + extension.rpartition(".")[2].lower()
            if not member.isfile() or not stem:
                continue
            place, content = (member.offset_data, member.size), None
            if suffix in (*EXTENSIONS, *FOREIGN):
                content = place
            elif suffix in (".txt", ".json"):
                part = tar.extractfile(member)
                content = Member(place, part.read() if part else b"")
            if content is not None:
                samples.setdefault(readable(folder + slash + stem), {})[extension.lower()] = content
        stream.seek(tar.offset)  # Python stops at a broken header without a word
        end = stream.read(tarfile.BLOCKSIZE)
        return samples, end == bytes(tarfile.BLOCKSIZE)


def _source(file: str, key: str, name: str, sample: Sample, stamp: tuple[Fact, ...]) -> Source:
    audio = [(extension, place) for extension, place in sample.items() if isinstance(place, tuple)]
    if len(audio) != 1:
        found = ", ".join(extension for extension, _ in audio) or "none"
        raise BadLine(f"a sample has one audio file, this one: {found}")
    extension, (first, size) = audio[0]
    about: dict[str, Any] = {}
    words_in = None
    for other, content in sample.items():
        if isinstance(content, Member):
            about |= (values := _described(other, content.content))
            if has_words(values):
                words_in = ByteRange(file, *content.place)
    text, speaker = known_text(pick(about, "text")), known_text(pick(about, "speaker"))
    facts = (*stamp, first, size, text, speaker)
    audio_in, origin = ByteRange(file, first, size), f"{readable(file)}: {key}.{extension}"
    return Source(name, audio_in, facts, size, text=text, speaker=speaker, origin=origin, words_in=words_in)


def _described(extension: str, content: bytes) -> dict[str, Any]:
    try:
        text = content.decode("utf-8-sig")
        values = json.loads(text) if extension.endswith("json") else {"text": clean_text(text)}
    except ValueError:
        raise BadLine(f"its .{extension} is no {'JSON' if extension.endswith('json') else 'UTF-8 text'}") from None
    if not isinstance(values, dict):
        raise BadLine(f"its .{extension} is not a JSON object")
    return values
