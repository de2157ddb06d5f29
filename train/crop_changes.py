"""What is done to the crops that a codec is trained on, so that it serves more voices, rooms and microphones.

A codec meets shouting, telephones, noise and levels of every kind; recordings to train on are calm. S samples.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ..inference.sound.manipulate import coloured, in_room, low_pass, tilted, with_noise

MAX_PEAK = 0.99
GLIDES = 3.0  # times a second that a gliding speed turns
CUTOFFS_HZ = (3400, 4000, 5500, 7000)


def speeds(num_samples: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Factors on speed and pitch of each sample [S]: 1, another one, or one that goes up and down by some semitones."""
    speed = 2 ** rng.uniform(-0.45, 0.45) if rng.random() < 0.7 else 1.0
    if rng.random() > 0.3:
        return np.full(num_samples, speed)
    knots = rng.standard_normal(2 + math.ceil(GLIDES * num_samples / sample_rate)) * rng.uniform(0.05, 0.25)
    octaves = np.interp(np.linspace(0, len(knots) - 1, num_samples), np.arange(len(knots)), knots)
    return speed * 2**octaves


def changed(audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """The crop [S] at some level; some with another throat, slope, colour, room, noise, band, or driven too far."""
    draws = rng.random(7)
    if draws[0] < 0.4:
        audio = move_formants(torch.from_numpy(audio), 2 ** rng.uniform(-0.25, 0.25), sample_rate).numpy()
    if draws[1] < 0.35:
        audio = tilted(audio, rng.uniform(-9, 9), sample_rate)
    if draws[6] < 0.5:
        audio = coloured(audio, rng.uniform(2, 12), sample_rate, rng)
    if draws[2] < 0.1:
        audio = in_room(audio, rng.uniform(0.1, 0.5), sample_rate, rng)
    if draws[3] < 0.25 and np.any(audio):
        audio = with_noise(audio, rng.uniform(8, 45), rng)
    if draws[4] < 0.1:
        audio = low_pass(audio, float(rng.choice(CUTOFFS_HZ)), sample_rate)
    peak = max(float(np.abs(audio).max()), 1e-4)
    if draws[5] < 0.1:  # as loud games and shouting mouths at microphones are
        drive = rng.uniform(1, 4) / peak
        audio, peak = np.tanh(drive * audio), math.tanh(drive * peak)
    return (audio * min(10 ** (rng.uniform(-20, 14) / 20), MAX_PEAK / peak)).astype(np.float32)


def move_formants(audio: Tensor, factor: float, sample_rate: int) -> Tensor:
    """audio [S] with its spectral envelope stretched along frequency by `factor`; pitch and timing stay."""
    size = 4 * round(0.016 * sample_rate)
    window = torch.hann_window(size)
    z = torch.stft(audio, size, size // 4, window=window, return_complex=True)  # [bins, frames]
    cepstrum = torch.fft.irfft(z.abs().clamp_min(1e-5).log(), dim=0)
    smooth = round(0.002 * sample_rate)  # 2 ms and more is pitch
    cepstrum[smooth : size - smooth + 1] = 0
    envelope = torch.fft.rfft(cepstrum, dim=0).real
    place = (torch.arange(len(envelope)) / factor).clamp(max=len(envelope) - 1.001)
    low, share = place.long(), (place % 1)[:, None]
    moved = envelope[low] * (1 - share) + envelope[low + 1] * share
    return torch.istft(z * (moved - envelope).clamp(-4, 4).exp(), size, size // 4, window=window, length=len(audio))
