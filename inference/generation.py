"""A continuation as it was generated: audio, codes, and their surprise. K codebooks, T frames, S samples."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.audio_out import save_audio


@dataclass
class Generation:
    """A continuation, the prompt it continues, and how surprising each code was to the model."""

    audio: np.ndarray  # [S] float32, the continuation only
    prompt_audio: np.ndarray  # [S'] float32, the prompt as the codec renders it; empty without a prompt
    sample_rate: int  # Hz
    codes: np.ndarray  # [K, T], prompt and continuation
    nll: np.ndarray  # [K, T] nats under the model at temperature 1
    num_prompt_frames: int
    finish_reason: str  # "length" or "eos"
    text: str = ""  # what the model wrote beside the audio, or after it
    seed: int = 0
    told: np.ndarray | None = None  # [T] text tokens beside the codes, PAD or -1 where there is none; None: no text

    @property
    def surprise_bits(self) -> np.ndarray:
        """Bits per frame, summed over codebooks [T]."""
        return self.nll.sum(axis=0) / np.log(2)

    def save(self, path: str | Path, with_prompt: bool = False) -> None:
        """Write the continuation, or the prompt followed by it, as .wav, .flac, .ogg, .opus or .mp3.

        Raises ValueError if there is no continuation: the model ended at once.
        """
        if not len(self.audio):
            raise ValueError(f"{path}: nothing to write, the model ended at once; give another seed, or let it not end")
        audio = np.concatenate([self.prompt_audio, self.audio]) if with_prompt else self.audio
        save_audio(path, audio, self.sample_rate)
