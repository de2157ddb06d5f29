"""One DATA of the doctor: its tokens, who speaks, and a sample of its sound. N utterances, S samples, K codebooks."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...data.audio import AudioError, audio_header, find_audio, load_audio
from ...data.plan import utterance_names
from ...data.preparation import REJECTED
from ...data.split import name_hash
from ...data.token_store import TokenStore
from ...data.utterance_table import recording_name
from ...model.codecs import Codec

LEAST_S = 0.5  # of the last clip that is measured


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
        self.speakers = [speaker_of(name) for name in store.names]
        self.recordings = recordings(store.names)  # of each utterance

    @property
    def originals(self) -> list[int]:
        """Utterances that are no shifted copy of another."""
        return [i for i, name in enumerate(self.store.names) if not re.search(r"~[1-9]\d*$", name)]

    def rejected(self) -> dict[str, list[str]]:
        """Reason without its numbers -> the names of what could not be used."""
        found: dict[str, list[str]] = {}
        path = self.store.folder / REJECTED
        for line in path.read_text().splitlines() if path.is_file() else []:
            entry = json.loads(line)
            found.setdefault(re.split(r" \(|;", entry["reason"])[0], []).append(entry["name"])
        return found

    def clips(self, seconds: float) -> Iterator[Clip]:
        """About this much sound, by hash of the names and from all speakers in turn: recordings, or decoded tokens."""
        if self.is_audio:
            return self._read(seconds)
        return self._decoded(seconds)

    def _read(self, seconds: float) -> Iterator[Clip]:
        files = find_audio(self.path)
        names = utterance_names(self.path, files)
        used = set(self.recordings)
        order = in_turn([i for i, name in enumerate(names) if name in used or len(files) == 1], names)
        for i in order:
            try:
                rate, _ = audio_header(files[i])
                audio = load_audio(files[i], rate)[: round(seconds * rate)]
            except AudioError:  # it is among the rejected
                continue
            yield Clip(names[i], speaker_of(names[i]), audio, rate)
            seconds -= len(audio) / rate
            if seconds < LEAST_S:
                return

    @torch.inference_mode()
    def _decoded(self, seconds: float) -> Iterator[Clip]:
        if self.codec is None:
            return
        rate, frame_rate = self.codec.sample_rate, self.codec.frame_rate
        for i in in_turn(self.originals, self.store.names):
            codes = self.store.codes(i)[: max(1, round(seconds * frame_rate))]
            batch = torch.from_numpy(codes.T.astype(np.int64))[None].to(self.codec.device)
            yield Clip(self.store.names[i], self.speakers[i], self.codec.decode(batch)[0, 0].cpu().numpy(), rate)
            seconds -= len(codes) / frame_rate
            if seconds < LEAST_S:
                return


def speaker_of(name: str) -> str:
    """The first folder of an utterance's name; "" without one."""
    return name.rpartition("/")[0].split("/")[0]


def in_turn(indices: Sequence[int], names: Sequence[str]) -> list[int]:
    """By hash of their names, the first of every speaker before the second of any."""
    seen: Counter[str] = Counter()
    keyed = []
    for i in sorted(indices, key=lambda i: name_hash(names[i])):
        speaker = speaker_of(names[i])
        keyed.append((seen[speaker], i))
        seen[speaker] += 1
    return [i for _, i in sorted(keyed, key=lambda pair: pair[0])]


def recordings(names: Sequence[str]) -> list[str]:
    """The recording of each utterance; where all are pieces of a single one, its piece."""
    whole = [recording_name(name) for name in names]
    return whole if len(set(whole)) > 1 else [re.sub(r"~\d+$", "", name) for name in names]
