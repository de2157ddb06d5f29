"""A teaching codec in the manner of MP3: quantized MDCT coefficients of 20-ms frames, 32 kb/s at 16 kHz. No network.

A frame's 320 coefficients (25 Hz each) lie in 20 bands. First come the bands' levels, two in a code, in steps of 3 dB;
then, from low to high, the coefficients as fractions of their band's level: three to a code where the ear is sharp
(9 steps each), then four (5 steps), then six (3 steps). Above 6 kHz there is only noise of the right level, and so
there is wherever codes are left out: any number of leading codebooks decodes.

The frame's window reaches back over the frame before, so encoding looks at nothing after the frame; decoding waits for
one frame more. B batch, K = 64 codebooks, V = 1024, T frames, N = 320 coefficients, G coefficients of a code.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import BlockCodec, Blocks, State
from .teaching import save_tables

RATE, HOP = 16_000, 320
EDGES = (0, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 68, 80, 100, 120, 150, 180, 220, 280, HOP)  # of the bands
NUM_LEVELS, LEVEL_DB, TOP_DB = 32, 3.0, 18.0  # level 0 is silence
LAYERS = ((48, 3, 4), (72, 4, 2), (120, 6, 1))  # coefficients, how many to a code, steps on either side of 0
POWER, ROUNDING = 0.75, 0.4054  # as in MP3: large values are quantized more coarsely
NOISE, FILL = 0.5, 0.15  # of the band's level: where nothing is coded, and where a coefficient of +-1 steps is 0


class MdctCodec(BlockCodec):
    basis: Tensor
    band: Tensor

    def __init__(self):
        super().__init__()
        self.name, self.sample_rate, self.hop_length = "mdct", RATE, HOP
        self.num_bands = len(EDGES) - 1
        self.num_codebooks = self.full_codebooks = self.num_bands // 2 + sum(count // size for count, size, _ in LAYERS)
        self.codebook_size = NUM_LEVELS**2
        self.steps = nn.Parameter(torch.tensor([0.3, 0.6, 1.0]), requires_grad=False)  # of each layer, of the level
        self.register_buffer("basis", mdct_basis(), persistent=False)
        widths = torch.tensor(EDGES).diff()
        self.register_buffer("band", torch.arange(self.num_bands).repeat_interleave(widths), persistent=False)  # [N]
        self.encoder_blocks = Blocks(25, 25, left=1)
        self.decoder_blocks = Blocks(1, 250, right=1)

    def encode_window(self, audio: Tensor, state: State) -> Tensor:
        frames = F.pad(audio[:, 0].double(), (HOP, 0)).unfold(1, 2 * HOP, HOP)  # [1, n, 2 N]
        spectrum = frames @ self.basis  # [1, n, N]
        energy = torch.zeros(*spectrum.shape[:2], self.num_bands, dtype=spectrum.dtype, device=spectrum.device)
        energy = energy.index_add(2, self.band, spectrum**2) / self.band.bincount()
        levels = (10 * energy.clamp_min(1e-12).log10() - TOP_DB) / LEVEL_DB + NUM_LEVELS - 1
        levels = levels.round().clamp(0, NUM_LEVELS - 1).long()  # [1, n, bands]
        codes = [levels[..., ::2] * NUM_LEVELS + levels[..., 1::2]]
        level = self._amplitude(levels).clamp_min(1e-9)
        first = 0
        for (count, size, most), step in zip(LAYERS, self.steps.double(), strict=True):
            part = slice(first, first + count)
            ratio = spectrum[..., part] / (level[..., part] * step)
            steps = (ratio.abs() ** POWER + ROUNDING).floor().clamp(max=most) * ratio.sign() + most
            digits = steps.long().unflatten(-1, (-1, size))
            codes.append((digits * self._places(size, most)).sum(dim=-1))
            first += count
        return torch.cat(codes, dim=-1).transpose(1, 2)[:, : self.num_codebooks]

    def decode_window(self, codes: Tensor, state: State) -> Tensor:
        codes = codes.transpose(1, 2)  # [B, n, K']
        head = codes[..., : self.num_bands // 2]
        levels = torch.stack([head // NUM_LEVELS, head % NUM_LEVELS], dim=-1).flatten(-2)
        level = self._amplitude(F.pad(levels, (0, self.num_bands - levels.shape[-1])))
        signs = self._signs(head)
        spectrum = NOISE * signs
        first, start = 0, head.shape[-1]
        for (count, size, most), step in zip(LAYERS, self.steps.double(), strict=True):
            part = codes[..., start : start + count // size]
            digits = part[..., None] // self._places(size, most) % (2 * most + 1) - most
            value = digits.flatten(-2).double()
            value = value.sign() * value.abs() ** (1 / POWER) * step
            stop = first + value.shape[-1]
            if most == 1:
                value = torch.where(value == 0, FILL * signs[..., first:stop], value)
            spectrum[..., first:stop] = value
            first, start = first + count, start + part.shape[-1]
        halves = ((spectrum * level) @ self.basis.T).unflatten(-1, (2, HOP))  # [B, n, 2, hop]
        following = F.pad(halves[:, 1:, 0], (0, 0, 0, 1))
        return (halves[:, :, 1] + following).flatten(1).float()[:, None]

    def save(self, folder: Path) -> None:
        save_tables(self, folder, {})

    def _amplitude(self, levels: Tensor) -> Tensor:
        """[..., bands] -> the level of every coefficient [..., N]; that of level 0 is 0."""
        decibels = TOP_DB + (levels.double() - (NUM_LEVELS - 1)) * LEVEL_DB
        return torch.where(levels > 0, 10 ** (decibels / 20), 0.0)[..., self.band]

    def _places(self, size: int, most: int) -> Tensor:
        """Value of each digit of a code."""
        return (2 * most + 1) ** torch.arange(size, device=self.band.device)

    def _signs(self, head: Tensor) -> Tensor:
        """Signs of noise [B, n, N]: of the frame's own codes, so that a stream needs no count of frames."""
        places = torch.arange(1, head.shape[-1] + 1, device=head.device)
        seed = (head * places).sum(dim=-1, keepdim=True) * 7919 + torch.arange(HOP, device=head.device)
        return 1.0 - 2.0 * ((seed * 2654435761 % 2**32) >> 17 & 1).double()


def mdct_basis() -> Tensor:
    """[2 N, N] float64: window times cosines, orthonormal over overlapping frames (Princen and Bradley 1986)."""
    n, k = torch.arange(2 * HOP, dtype=torch.float64)[:, None], torch.arange(HOP, dtype=torch.float64)
    window = torch.sin(math.pi / (2 * HOP) * (n + 0.5))
    return window * math.sqrt(2 / HOP) * torch.cos(math.pi / HOP * (n + 0.5 + HOP / 2) * (k + 0.5))
