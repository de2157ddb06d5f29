"""The audio a codec is trained on: random crops of voices, and their pitch.

The data is any source of speech that `prepare` reads. A voice is a speaker, where the source names them, or else a
sub-folder. Voices are drawn by the square root of their hours, so that a voice with much speech does not drown the
others. B batch, S samples, N trunk frames.
"""

import hashlib
import json
import logging
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.audio import AudioError
from ..data.progress import progress_bar
from ..data.sources import Source, find_sources
from ..inference.sound.measures import pitch_track
from ..model.files import whole_file
from .crop_changes import changed, speeds

log = logging.getLogger(__name__)

PITCH_RATE = 100  # values a second of `pitch_track`


class VoiceCrops:
    """Voices kept decoded as int16 in `cache`, one array a voice, with their pitch."""

    def __init__(
        self, data: str | Path, cache: Path, sample_rate: int, max_hours: float, hop: int, max_voices: int = 0
    ):
        """hop: samples from one value of the pitch to the next. max_voices: 0 for all.

        Raises AudioError if no file of any voice can be used.
        """
        cache.mkdir(parents=True, exist_ok=True)
        self.sample_rate, self.hop = sample_rate, hop
        voices: dict[str, list[Source]] = {}
        only = Path(data).resolve().stem  # where there are neither speakers nor folders
        for source in find_sources(data).sources:
            voices.setdefault(source.voice or only, []).append(source)
        decoded = {}
        chosen = sorted(voices, key=lambda voice: hashlib.sha256(voice.encode()).digest())[: max_voices or None]
        for voice, sources in sorted((voice, voices[voice]) for voice in chosen):
            made_from = [sample_rate, max_hours, [[source.name, *source.stamp] for source in sources]]
            key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]
            stored = cache / f"{voice.replace('/', '_')}-{key}.npy"
            if stored.exists() or self._decode(voice, sources, stored, max_hours):
                decoded[voice] = np.load(stored, mmap_mode="r", allow_pickle=False)
        if not decoded:
            raise AudioError(f"{data}: no file of any voice can be used")
        self.voices = list(decoded.values())
        self.pitches = [self._pitch(cache, voice, samples) for voice, samples in decoded.items()]
        hours = np.array([len(voice) for voice in self.voices]) / sample_rate / 3600
        self.shares = np.sqrt(hours) / np.sqrt(hours).sum()
        for voice, hour, share in zip(decoded, hours, self.shares, strict=True):
            log.info(f"voice {voice}: {hour:.2f} h, drawn {share:.0%} of the time")

    def _decode(self, voice: str, sources: list[Source], stored: Path, max_hours: float) -> bool:
        """Write the voice's samples; False if none of its files can be used."""
        parts, total = [], 0
        for source in progress_bar(sources, desc=f"decode {voice}", unit="file"):
            try:
                audio = source.load(self.sample_rate)
            except AudioError as error:
                log.warning(f"skipped {error}")
                continue
            parts.append((np.clip(audio, -1, 1) * 32767).astype(np.int16))
            total += len(audio)
            if total > max_hours * 3600 * self.sample_rate:
                break
        if not parts:
            log.info(f"voice {voice}: left out, no file of it can be used")
            return False
        with whole_file(stored) as file:
            np.save(file, np.concatenate(parts), allow_pickle=False)
        return True

    def _pitch(self, cache: Path, voice: str, samples: np.ndarray) -> np.ndarray:
        """Pitch in Hz every 10 ms, 0 where unvoiced; found once and kept."""
        stored = cache / f"{voice.replace('/', '_')}-{len(samples)}.pitch.npy"
        if not stored.exists():
            minute = 60 * self.sample_rate
            tracks = [
                pitch_track(samples[start : start + minute].astype(np.float32) / 32768, self.sample_rate)
                for start in progress_bar(range(0, len(samples), minute), desc=f"pitch of {voice}", unit="min")
            ]
            with whole_file(stored) as file:
                np.save(file, np.concatenate(tracks).astype(np.float32), allow_pickle=False)
        return np.load(stored, allow_pickle=False)

    def draw(self, batch_size: int, num_samples: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Audio [B, S] and its pitch in Hz at the ends of the hops [B, N], 0 where unvoiced.

        Most rows are resampled (other speed, pitch and formants), some by a factor that changes on the way, as an
        excited voice does; then comes what crop_changes.py may do to a crop.
        """
        rows, pitches = [], []
        ends = np.arange(1, num_samples // self.hop + 1) * self.hop
        while len(rows) < batch_size:
            number = int(rng.choice(len(self.voices), p=self.shares))
            voice, pitch = self.voices[number], self.pitches[number]
            speed = speeds(num_samples, self.sample_rate, rng)
            place = np.cumsum(speed) - speed[0]  # of each sample in the voice, from the start of the crop
            length = math.ceil(place[-1]) + 2
            start = int(rng.integers(0, max(1, len(voice) - length)))
            crop = voice[start : start + length].astype(np.float32) / 32768
            crop = np.pad(crop, (0, length - len(crop)))
            if np.square(crop).mean() < 1e-5 and rng.random() < 0.9:  # mostly silence teaches little
                continue
            row = np.interp(place, np.arange(length), crop).astype(np.float32)
            rows.append(torch.from_numpy(changed(row, self.sample_rate, rng)))
            index = np.round((start + place[ends - 1]) / self.sample_rate * PITCH_RATE).astype(int)
            sung = pitch[np.minimum(index, len(pitch) - 1)] * speed[ends - 1]
            pitches.append(torch.from_numpy(sung.astype(np.float32)))
        return torch.stack(rows), torch.stack(pitches)
