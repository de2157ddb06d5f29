"""A stand-in for a model whose continuations are known, and speech-like sounds to continue."""

import numpy as np
import torch

from codeclm.inference.generation import Generation
from codeclm.inference.prompt import encode_end
from codeclm.inference.sound.measures import measure_speech
from codeclm.model.codecs.mulaw import MuLawCodec

RATE = 16_000


def speech(pitch_hz: float, duration_s: float = 2.0, level: float = 0.3) -> np.ndarray:
    """Voiced syllables with breath between: 60 % voiced."""
    time = np.arange(round(duration_s * RATE)) / RATE
    tone = sum(np.sin(2 * np.pi * k * pitch_hz * time + k * k) / k for k in range(1, 12)) / 2
    breath = 0.05 * np.random.default_rng(0).normal(size=len(time))
    return (level * np.where((time * 4) % 1 < 0.6, tone, breath)).astype(np.float32)


class KnownAnswer:
    """Stands in for a model: it continues every prompt with the same audio, and notes what it was asked."""

    name, fingerprint = "known", "0" * 64

    def __init__(self, answer: np.ndarray):
        self.codec, self.answer, self.asked = MuLawCodec(RATE), answer.astype(np.float32), []

    def encode(self, audio: tuple[np.ndarray, int], max_s: float) -> torch.Tensor:
        return encode_end(self.codec, audio, max_s)

    def generate(self, prompt: tuple[np.ndarray, int], duration_s: float = 8.0, seed: int = 0) -> Generation:
        self.asked.append((len(prompt[0]), prompt[1], duration_s, seed))
        length = len(prompt[0]) + len(self.answer)
        codes, nll = np.zeros((1, length), int), np.full((1, length), np.log(2))
        return Generation(self.answer, prompt[0], RATE, codes, nll, len(prompt[0]), "length", seed=seed)


def by_pitch(audio: np.ndarray, sample_rate: int) -> np.ndarray | None:
    """Stands in for the embedding of a voice: pitch as an angle, 30 degrees for an octave above 100 Hz."""
    pitch = measure_speech(audio, sample_rate).median_pitch_hz
    angle = np.pi / 6 * np.log2(pitch / 100) if pitch else np.pi / 2
    return np.array([np.cos(angle), np.sin(angle)])
