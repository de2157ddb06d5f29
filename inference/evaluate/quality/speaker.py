"""How alike two voices are: speaker embeddings of Resemblyzer (GE2E, arXiv:1710.10467) and their cosine.

The weights are the package's; it is not imported, because it would import librosa and webrtcvad. Of two recordings of
one speaker the cosine is about 0.8, of two speakers about 0.6. S samples, N frames of 10 ms.
"""

import numpy as np
import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from ....data.audio import loudness_dbfs
from ...sound.measures import active_frames, resampled
from .packaged import packaged_weights

RATE = 16_000
MIN_S = 1.6  # a window; of less there is no reliable embedding
WINDOW, STEP = 160, 77  # frames that are heard at once, and from the beginning of a window to the next one's
MIN_COVERED = 0.75  # share of the last window that must be sound
LEAST_DBFS = -30.0  # what is quieter is raised to this level
PAUSE_S = 0.2  # what stays of a pause


class VoiceEncoder(nn.Module):
    """Three LSTM layers over mel frames. Raises ImportError in one line without the package."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        weights = packaged_weights("resemblyzer", "pretrained.pt")["model_state"]
        self.load_state_dict({name: weights[name] for name in self.state_dict()})
        self.eval()

    def forward(self, mels: Tensor) -> Tensor:
        """mels [B, N, 40] -> embeddings [B, 256], of length 1."""
        _, (hidden, _) = self.lstm(mels)
        return nn.functional.normalize(self.linear(hidden[-1]).relu(), dim=1)

    @torch.inference_mode()
    def embed(self, audio: np.ndarray, sample_rate: int) -> np.ndarray | None:
        """audio [S] -> embedding [256] of length 1, the mean over windows; None for silence."""
        if not np.any(audio):
            return None
        audio = without_pauses(resampled(audio.astype(np.float32), sample_rate, RATE))
        if not np.any(audio):  # all of it lies below the level of silence
            return None
        audio = audio * 10 ** (max(0.0, LEAST_DBFS - loudness_dbfs(audio)) / 20)
        mels = torch.from_numpy(np.stack(windows(audio)))
        mean = self(mels).mean(dim=0).numpy().astype(np.float64)
        return mean / np.linalg.norm(mean)


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two embeddings, 0..1."""
    return float(a @ b)


def without_pauses(audio: np.ndarray) -> np.ndarray:
    """audio [S] at RATE with at most PAUSE_S of each pause."""
    heard = active_frames(audio.astype(np.float64), RATE)
    reach = round(PAUSE_S / 2 * 100)
    kept = np.convolve(heard, np.ones(2 * reach + 1), "same") > 0.5
    return audio[np.repeat(kept, RATE // 100)[: len(audio)]]


def windows(audio: np.ndarray) -> list[np.ndarray]:
    """audio [S] -> mel frames [WINDOW, 40] each; silence follows the audio where a window reaches beyond it."""
    hop = RATE // 100
    last = max(0, -(-(len(audio) + 1) // hop) - WINDOW + STEP)
    starts = list(range(0, last + 1, STEP))
    if len(starts) > 1 and (len(audio) - starts[-1] * hop) / (WINDOW * hop) < MIN_COVERED:
        starts.pop()
    mels = mel_frames(np.pad(audio, (0, max(0, (starts[-1] + WINDOW) * hop - len(audio)))))
    return [mels[start : start + WINDOW] for start in starts]


def mel_frames(audio: np.ndarray) -> np.ndarray:
    """audio [S] -> [N, 40] mel powers, N = S // 160 + 1."""
    filters = mel_filter_bank(201, 40, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
    hann = window_function(400, "hann")
    mel = spectrogram(audio, hann, 400, 160, fft_length=400, power=2.0, pad_mode="constant", mel_filters=filters)
    return mel.T.astype(np.float32)
