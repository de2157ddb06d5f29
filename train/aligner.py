"""When each character of a transcript is said: a small network that hears speech, taught by CTC.

Convolutions that see some 0.6 s to either side tell the characters from the spectra of decoded codes, and connectionist
temporal classification (Graves et al., 2006) teaches them without being told where they are. The likeliest path through
the right text then says where (Viterbi): somewhere within the sound of each character. That is for teaching a language
model which word is being said, not for phonetics. Training and a store's texts are text_alignment.py's.

B utterances, T frames, D width, C characters and the blank (0), S = 2 T steps, L characters of a text.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.codecs import Codec
from .codec_losses import log_mel

STEPS_PER_FRAME = 2  # at 25 frames a second a character is often shorter than a frame
BANDS = 64  # mel bands of a spectrum
WINDOW_S = 0.032
RARE = 20  # a character that is written less often is not learned, and has the time of the next one
BLANK = 0


class Alphabet:
    """The characters that are heard: letters and digits, whatever their case, that occur often."""

    def __init__(self, texts: Iterable[str]):
        seen = Counter(c for text in texts for c in map(plain, text) if c)
        self.characters = sorted(c for c, count in seen.items() if count >= RARE)
        self.numbers = {c: number for number, c in enumerate(self.characters, BLANK + 1)}

    def __len__(self) -> int:
        """With the blank."""
        return len(self.characters) + 1

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Text -> the numbers of its characters that are heard, and the place in the text of each."""
        found = [(self.numbers[c], place) for place, c in enumerate(map(plain, text)) if c in self.numbers]
        return [number for number, _ in found], [place for _, place in found]

    def decode(self, numbers: Iterable[int]) -> str:
        return "".join(self.characters[number - 1] for number in numbers if number != BLANK)


def plain(character: str) -> str:
    """A letter or digit without its case and accents; '' for anything else."""
    base = unicodedata.normalize("NFKD", character.casefold())[:1]
    return base if base.isalnum() else ""


@torch.inference_mode()
def spectra(codec: Codec, codes: Tensor) -> Tensor:
    """Codes [B, K, T] -> log10 mel magnitudes [B, T, 2 x BANDS] of what they sound like, two spectra for each frame."""
    audio = codec.decode(codes)[:, 0]
    window = 1 << round(WINDOW_S * codec.sample_rate - 1).bit_length()
    count = STEPS_PER_FRAME * codes.shape[2]
    hop = codec.hop_length // STEPS_PER_FRAME
    shape = torch.hann_window(window, device=audio.device)
    found = torch.stft(F.pad(audio, (0, window)), window, hop, window=shape, pad_mode="constant", return_complex=True)
    mels = log_mel(found.abs()[..., :count], codec.sample_rate, window, BANDS)  # [B, BANDS, 2 T]
    return mels.transpose(1, 2).reshape(len(codes), codes.shape[2], -1)


class Aligner(nn.Module):
    """Spectra [B, T, 2 x BANDS], and which frames are there [B, T] -> logits [B, S, C]."""

    def __init__(self, num_classes: int, dim: int, num_layers: int):
        super().__init__()
        self.read = nn.Linear(STEPS_PER_FRAME * BANDS, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(num_layers))
        self.split = nn.Linear(dim, dim * STEPS_PER_FRAME)
        self.last = nn.ModuleList(Block(dim) for _ in range(2))
        self.head = nn.Linear(dim, num_classes)

    def forward(self, heard: Tensor, present: Tensor) -> Tensor:
        present = present[..., None].to(heard.dtype)  # [B, T, 1]
        mean = (heard * present).sum(dim=1, keepdim=True) / present.sum(dim=1, keepdim=True).clamp_min(1)
        x = self.read((heard - mean) * present)
        for block in self.blocks:
            x = block(x, present)
        x = self.split(x).view(len(x), STEPS_PER_FRAME * x.shape[1], -1)
        present = present.repeat_interleave(STEPS_PER_FRAME, dim=1)
        for block in self.last:
            x = block(x, present)
        return self.head(x)


class Block(nn.Module):
    """x [B, S, D] + what a convolution over five steps makes of it; nothing is heard beyond the end."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mix = nn.Conv1d(dim, dim, 5, padding=2)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        y = (self.norm(x) * present).transpose(1, 2)
        return x + self.out(F.gelu(self.mix(y).transpose(1, 2)))


def likeliest_paths(scores: np.ndarray, num_steps: np.ndarray, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Log-probabilities [B, S, C], steps of each [B] and the characters -> the steps [L] at which they begin, rising.

    Viterbi over CTC's states: blank, character, blank, character, ..., blank; a blank may be left out between two
    characters that differ. There must be a step for each character, and one more for each that repeats the one before.
    """
    rows, sizes = np.arange(len(texts)), np.array([len(text) for text in texts])
    states = np.full((len(texts), 2 * max(sizes) + 1), BLANK)
    for row, text in enumerate(texts):
        states[row, 1 : 2 * len(text) : 2] = text
    may_skip = np.zeros(states.shape, bool)
    may_skip[:, 3::2] = states[:, 3::2] != states[:, 1:-2:2]
    best = np.full(states.shape, -np.inf)
    best[:, :2] = np.take_along_axis(scores[:, 0], states, axis=1)[:, :2]
    moved = np.zeros((scores.shape[1], *states.shape), np.int8)  # states that the path went on by
    for step in range(1, scores.shape[1]):
        one, two = (np.pad(best, ((0, 0), (by, 0)), constant_values=-np.inf)[:, : best.shape[1]] for by in (1, 2))
        choices = np.stack([best, one, np.where(may_skip, two, -np.inf)])
        moved[step] = choices.argmax(axis=0)
        reached = choices.max(axis=0) + np.take_along_axis(scores[:, step], states, axis=1)
        best = np.where((step < num_steps)[:, None], reached, best)
    state = 2 * sizes - (best[rows, 2 * sizes - 1] > best[rows, 2 * sizes])  # the last blank, or the last character
    begins = np.zeros((len(texts), max(sizes)), np.int64)
    for step in range(scores.shape[1] - 1, -1, -1):
        is_on = step < num_steps
        said = is_on & (state % 2 == 1)
        begins[rows[said], state[said] // 2] = step
        state = np.where(is_on, state - moved[step, rows, state], state)
    return [begins[row, :size] for row, size in enumerate(sizes)]
