"""Changes of sound: those that make another voice of it, and those of the place and the microphone. S samples."""

from dataclasses import dataclass

import numpy as np

from ....inference.sound.manipulate import at_level, in_room, low_pass, speech_bounds, tilted, with_noise
from ....inference.sound.stretch import shift_pitch, stretch

LEVELS_DBFS = (-33.0, -15.0)  # root mean square of an utterance
PLAIN_DBFS = -23.0
IN_ROOM, NOISY, NARROW, TILTED = 0.2, 0.15, 0.07, 0.3  # shares of the utterances
PAUSE_S = 0.4  # at most, before and after the speech


@dataclass(frozen=True)
class Change:
    """What makes another voice of one: nothing, by default."""

    pitch: float = 0.0  # semitones
    throat: float = 1.0  # factor on the formants
    tempo: float = 1.0  # factor on the duration

    @staticmethod
    def drawn(rng: np.random.Generator) -> "Change":
        """Most pitches go with the throat; they are far enough from the voice as it is to be another one."""
        throat = float(np.exp(rng.choice([-1, 1]) * rng.uniform(0.05, 0.16)))
        return Change(30 * np.log(throat) + rng.uniform(-1.5, 1.5), throat, rng.uniform(0.87, 1.15))

    def of(self, audio: np.ndarray, sample_rate: int) -> np.ndarray:
        """audio [S] -> [about S * tempo]."""
        if self == Change():
            return audio
        import torch

        from ...crop_changes import move_formants

        ratio = 2 ** (self.pitch / 12)
        moved = shift_pitch(audio, self.pitch, sample_rate)  # moves the formants, too
        moved = move_formants(torch.from_numpy(moved), self.throat / ratio, sample_rate).numpy()
        return stretch(moved, self.tempo, sample_rate) if abs(self.tempo - 1) > 0.03 else moved


def placed(
    audio: np.ndarray, sample_rate: int, rng: np.random.Generator, plain: bool = False
) -> tuple[np.ndarray, str, float]:
    """Speech as a microphone somewhere takes it up, plain: in a studio -> audio, what was done, in words, and how many
    seconds later all is said."""
    draws = np.ones(4) if plain else rng.random(4)
    done = []
    lengths = [round(rng.uniform(0.02, PAUSE_S) * sample_rate) for _ in range(2)]
    first, end = speech_bounds(audio, sample_rate)
    later_s = (lengths[0] - first) / sample_rate
    audio = np.pad(audio[first:end], lengths)
    if draws[0] < TILTED:
        done.append(f"tilt {(slope := rng.uniform(-6, 6)):+.1f} dB")
        audio = tilted(audio, slope, sample_rate)
    if draws[1] < IN_ROOM:
        done.append(f"room {(reverberation := rng.uniform(0.15, 0.6)):.2f} s")
        audio = in_room(audio, reverberation, sample_rate, rng)
    if draws[2] < NARROW:
        done.append(f"below {(cutoff := rng.choice([3400, 5000])):d} Hz")
        audio = low_pass(audio, float(cutoff), sample_rate)
    if draws[3] < NOISY:
        done.append(f"noise {(below := rng.uniform(10, 40)):.0f} dB below")
        audio = with_noise(audio, below, rng)
    return at_level(audio, PLAIN_DBFS if plain else rng.uniform(*LEVELS_DBFS)), ", ".join(done), later_s
