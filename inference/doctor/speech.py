"""One DATA of the doctor: its tokens, who speaks, and a sample of its sound. N utterances, S samples, K codebooks."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch

from ...data.audio import AudioError, audio_header, find_audio, load_audio
from ...data.preparation import REJECTED
from ...data.sources.folder import utterance_names
from ...data.split import originals, recordings
from ...data.store_index import Rejected
from ...data.token_store import TokenStore
from ...data.utterance_table import recording_name, text_hash
from ...model.codecs import Codec

pc: Any = pyarrow.compute  # its functions are made when it is imported: no checker knows them
LEAST_S = 0.5  # length of the last clip that is measured


@dataclass(frozen=True)
class Clip:
    """A piece of sound to measure."""

    name: str
    speaker: str
    audio: np.ndarray  # [S]
    sample_rate: int  # Hz


class Speech:
    """A token store, with the recordings it was made of (audio) or the codec that decodes it."""

    def __init__(self, path: Path, store: TokenStore, codec: Codec | None = None):
        """path: as it was given; another place than the store's folder where it is audio. codec: the store's own."""
        self.path, self.store, self.codec = path, store, codec
        self.is_audio = path != store.folder

    @cached_property
    def originals(self) -> np.ndarray:
        """Utterances that are no shifted copy of another."""
        return originals(self.store)

    @cached_property
    def speakers(self) -> tuple[list[str], np.ndarray]:
        """The speakers, and which of them is in each utterance [N]: as the store says, or the name's first folder."""
        table = self.store.table
        folder = pc.replace_substring_regex(table["name"], r"(?s)^(?:([^/]*)/)?.*$", r"\1")
        found = pc.coalesce(table["speaker"], folder).dictionary_encode()
        return found.dictionary.to_pylist(), found.indices.to_numpy()

    def speaker(self, i: int) -> str:
        names, of = self.speakers
        return names[of[i]]

    @cached_property
    def recordings(self) -> tuple[np.ndarray, np.ndarray]:
        """Recordings, each by its first utterance [R], and which of them it is in each utterance [N]."""
        _, first, of = np.unique(recordings(self.store), return_index=True, return_inverse=True)
        return first, of

    def recording_names(self, numbers: Sequence[int]) -> list[str]:
        first, _ = self.recordings
        single = len(first) > 1 and len(np.unique(self.store.recordings)) == 1
        names = [self.store.names[int(first[number])] for number in numbers]
        return [re.sub(r"~\d+$", "", name) if single else recording_name(name) for name in names]

    def rejected(self) -> dict[str, list[str]]:
        """Reason without its numbers -> the names of what could not be used."""
        found: dict[str, list[str]] = {}
        path = self.store.folder / REJECTED
        for line in path.read_text().splitlines() if path.is_file() else []:
            entry = Rejected(**json.loads(line))
            found.setdefault(entry.kind, []).append(entry.name)
        return found

    def clips(self, seconds: float) -> Iterator[Clip]:
        """About this much sound, by hash of the names and from all speakers in turn: recordings, or decoded tokens."""
        return self._read(seconds) if self.is_audio else self._decoded(seconds)

    def _read(self, seconds: float) -> Iterator[Clip]:
        files = find_audio(self.path)
        names = utterance_names(self.path, files)
        number = {name: i for i, name in enumerate(sorted({first_folder(name) for name in names}))}
        hashes = np.array([text_hash(name) for name in names], np.uint64)
        for i in in_turn(hashes, np.array([number[first_folder(name)] for name in names])):
            try:
                rate, _ = audio_header(files[i])
                audio = load_audio(files[i], rate)[: round(seconds * rate)]
            except AudioError:  # it is among the rejected
                continue
            yield Clip(names[i], first_folder(names[i]), audio, rate)
            seconds -= len(audio) / rate
            if seconds < LEAST_S:
                return

    @torch.inference_mode()
    def _decoded(self, seconds: float) -> Iterator[Clip]:
        if self.codec is None:
            return
        rate, frame_rate = self.codec.sample_rate, self.codec.frame_rate
        for place in in_turn(self.store.recordings[self.originals], self.speakers[1][self.originals]):
            i = int(self.originals[place])
            codes = self.store.codes(i)[: max(1, round(seconds * frame_rate))]
            batch = torch.from_numpy(codes.T.astype(np.int64))[None].to(self.codec.device)
            yield Clip(self.store.names[i], self.speaker(i), self.codec.decode(batch)[0, 0].cpu().numpy(), rate)
            seconds -= len(codes) / frame_rate
            if seconds < LEAST_S:
                return


def first_folder(name: str) -> str:
    return name.rpartition("/")[0].split("/")[0]


def in_turn(hashes: np.ndarray, groups: np.ndarray) -> list[int]:
    """hashes, groups [N] -> an order by hash: the first of every group before the second of any."""
    order = np.lexsort((hashes, groups))
    sizes = np.bincount(groups)
    place = np.empty(len(order), np.int64)  # in its group
    place[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.lexsort((hashes, place)).tolist()


def strings(column: pa.Array, indices: np.ndarray) -> list[str]:
    """Some values of a column of strings."""
    return column.take(pa.array(indices)).to_pylist()
