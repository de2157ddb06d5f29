"""Speech in numbered tar files of about seven minutes: KEY.flac (16 kHz) and KEY.json with text, speaker and more.

A shard is a pure function of the material, the side and its number: it can be deleted and made again, anywhere, by any
number of processes, and is there whole or not at all.
"""

import io
import json
import logging
import os
import random
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from ....data.audio import AudioError, load_audio
from ....data.progress import progress_bar
from ....data.text_encoder import clean_text, said_words
from ....data.word_times import Word, letters_of
from ....inference.sound.measures import resampled
from ....model.files import whole_file
from .recordings import Recording
from .synthesizers import synthesizer
from .texts import SHARES as TEXT_SHARES
from .texts import Sides, deal
from .variants import Change, placed
from .voices import AS_IT_COMES, SHARES, VERSIONS, Voice, changed, synthetic_voices

RATE = 16_000  # Hz
SYNTHESES = 50  # for each shard: half a turn of SHARES
SHARD_HOURS = 0.11  # about
MIN_S, MAX_S = 0.5, 30.0  # an utterance of another length is left out
LANGUAGE = "en"  # in which synthesizers say their texts
MIN_LOUDNESS = 1e-4  # root mean square of a synthesis; less is silence

logger = logging.getLogger(__name__)

Version = tuple[np.ndarray, Voice, dict[str, Any], Sequence[Word]]  # audio [S], who speaks, and what is known of it


@dataclass(frozen=True)
class Material:
    """What all shards of one side are made of. Sides: "train", "heldout" (voices of training), "new_voices"."""

    side: str
    texts: dict[str, Sides]
    people: list[Recording]
    kinds: tuple[str, ...]  # kinds of voices that can be had here
    folder: Path  # where the files of synthesizers are
    seed: int = 0
    only: tuple[str, ...] = ()  # names of voices: what the others say is left out
    plain: bool = False  # without rooms, noise, other colours and levels

    @cached_property
    def voices(self) -> dict[str, list[Voice]]:
        """Kind -> voices of this side."""
        found = {kind: voices for kind, voices in synthetic_voices().items() if kind in self.kinds}
        return {kind: mine for kind, voices in found.items() if (mine := [v for v in voices if self._is_mine(v)])} | (
            {"human": []} if "human" in self.kinds else {}
        )

    def _is_mine(self, voice: Voice) -> bool:
        return voice.heldout == (self.side == "new_voices")

    def _is_wanted(self, voice: Voice) -> bool:
        return not self.only or voice.name in self.only

    @cached_property
    def speakers(self) -> set[str]:
        """The names of the voices that are wanted and speak on this side."""
        people = [self._of_person(speaker) for speaker in {recording.speaker for recording in self.people}]
        return {voice.name for voice in chain(*self.voices.values(), *people) if self._is_wanted(voice)}

    @cached_property
    def spoken(self) -> dict[str, list[str]]:
        """Source -> its texts on this side."""
        return {name: sides["train" if self.side == "train" else "heldout"] for name, sides in self.texts.items()}

    @cached_property
    def order(self) -> list[int]:
        """The people's recordings, mixed."""
        return random.Random(self.seed).sample(range(len(self.people)), len(self.people))

    def utterances(self, shard: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Audio [S] at RATE, and what is known of it."""
        kind_of = deal({kind: share for kind, share in SHARES.items() if kind in self.voices})
        source_of = deal({name: share for name, share in TEXT_SHARES.items() if self.spoken.get(name)})
        for number in range(shard * SYNTHESES, (shard + 1) * SYNTHESES):
            rng = np.random.default_rng([self.seed, zlib.crc32(self.side.encode()), number])
            kind, before = kind_of(number)
            if kind == "human":
                versions, known = self._recorded(before), {"source": "human"}
            else:
                source, place = source_of(number)
                text = self.spoken[source][place % len(self.spoken[source])]
                versions, known = self._synthesized(kind, text, rng), {"text": text, "source": f"{kind}/{source}"}
            for audio, voice, about, words in versions:
                if MIN_S * RATE <= len(audio) <= MAX_S * RATE:
                    audio, conditions, later_s = placed(audio, RATE, rng, self.plain)
                    about |= {"conditions": conditions} | _aligned(words, later_s)
                    yield audio, {"speaker": voice.name, **known, **about}

    def _synthesized(self, kind: str, text: str, rng: np.random.Generator) -> Iterator[Version]:
        """The text as one synthesis; where that is slow, also in other voices that are made of it."""
        voices = self.voices[kind]
        if kind in VERSIONS:
            bases = sorted({voice.settings for voice in voices})
            base = str(rng.choice(bases))
            found = [voice for voice in voices if voice.settings == base]
            chosen = [found[i] for i in rng.permutation(len(found))[: VERSIONS[kind]]]
        else:
            as_it_comes = kind == "hibari" and self.side != "new_voices" and rng.random() < AS_IT_COMES
            chosen = [voices[0 if as_it_comes else int(rng.integers(len(voices)))]]
        if not (chosen := list(filter(self._is_wanted, chosen))):
            return
        told = " ".join(said_words(text, LANGUAGE))  # so that numbers are said as a model is told them
        audio, rate, words = synthesizer(kind, self.folder)(told, chosen[0].settings, rng)
        if not len(audio) or np.sqrt(np.mean(np.square(audio, dtype=np.float64))) < MIN_LOUDNESS:
            logger.warning("left out: %s says nothing for %r", chosen[0].name, text)
            return
        for voice in chosen:  # changed at the synthesizer's rate: a lower pitch moves what is above 8 kHz into the band
            sound = resampled(voice.change.of(audio, rate), rate, RATE).astype(np.float32)
            yield sound, voice, {}, as_written(text, words) if voice.change == Change() else ()

    def _recorded(self, number: int) -> Iterator[Version]:
        """First each recording as it is, in an order of its own; then in the first voice that is made of it; ..."""
        if not self.people:  # none of them is wanted
            return
        turn, place = divmod(number, len(self.people))
        recording = self.people[self.order[place]]
        voices = self._of_person(recording.speaker)
        voice = voices[turn % len(voices)]
        if not self._is_wanted(voice):
            return
        try:
            audio = load_audio(recording.path, RATE)
        except AudioError as error:
            logger.warning("left out: %s", error)
            return
        yield voice.change.of(audio, RATE), voice, {"text": recording.text} if recording.text else {}, ()

    def _of_person(self, speaker: str) -> list[Voice]:
        """The voices of this side that are made of a person's, or are that person's."""
        own = Voice(speaker, "human")
        made = [voice for voice in changed(own) if self._is_mine(voice)]
        return made if self.side == "new_voices" else [own, *made]


def as_written(text: str, words: Sequence[Word]) -> list[Word]:
    """Letters of a text with its numbers in words, and their times -> those of the text itself, whose numbers in digits
    are one piece each."""
    letters, pieces, place = letters_of(words), [], 0
    for written, told in zip(clean_text(text).split(), said_words(text, LANGUAGE), strict=True):
        own = letters[place : (place := place + sum(map(str.isalnum, told)))]
        if own and told != written:
            own = [("".join(filter(str.isalnum, written)), own[0][1], own[-1][2])]
        pieces += own
    return pieces


def _aligned(words: Sequence[Word], later_s: float) -> dict[str, Any]:
    """Times of words, as moshi-finetune writes them."""
    at = [[word, [round(max(0.0, time + later_s), 3) for time in times]] for word, *times in words]
    return {"alignments": at} if at else {}


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.tar"


def make_shards(material: Material, folder: Path, count: int, num_workers: int) -> None:
    """Make the shards 0..count-1 that are not there. Stopped, it goes on with the same call."""
    todo = [number for number in range(count) if not shard_path(folder, number).exists()]
    with progress_bar(total=count, initial=count - len(todo), unit="shard", desc=folder.name) as bar:
        if num_workers < 2 or len(todo) < 2:
            for number in todo:
                write_shard(material, folder, number)
                bar.update()
            return
        with ProcessPoolExecutor(num_workers, get_context("spawn"), _start_worker, (material, folder)) as pool:
            waiting = [pool.submit(_in_worker, number) for number in todo]
            try:
                for future in as_completed(waiting):
                    future.result()
                    bar.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in active_children():  # their shards are not whole, so they are not there
                    process.terminate()
                raise


def write_shard(material: Material, folder: Path, number: int) -> None:
    with whole_file(shard_path(folder, number)) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for index, (audio, known) in enumerate(material.utterances(number)):
            key = f"{number:05d}-{index:03d}"
            _add(tar, f"{key}.flac", _flac(audio))
            _add(tar, f"{key}.json", json.dumps(known, ensure_ascii=False).encode())


def _flac(audio: np.ndarray) -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, audio, RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # without time and owner: the same bytes every time
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


_worker: tuple[Material, Path] | None = None


def _start_worker(material: Material, folder: Path) -> None:
    global _worker
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    import torch

    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()
    _worker = material, folder


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _in_worker(number: int) -> None:
    assert _worker is not None
    write_shard(*_worker, number)
