"""A teaching codec: every sample is a frame of one code, its level on the logarithmic 8-bit scale of G.711 (mu-law).

It shows what neural codecs are for: this is how many tokens a second of speech is without one. No network, no loss but
rounding, any sample rate; K = 1, V = 256, 8 bits a sample.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from ..strict import check_value
from .blocks import BlockCodec, Blocks, State
from .teaching import save_tables

MU = 255


class MuLawCodec(BlockCodec):
    bounds: Tensor

    def __init__(self, sample_rate: int = 8_000):
        super().__init__()
        if check_value(int, sample_rate, "sample_rate") < 1:
            raise ValueError(f"sample_rate {sample_rate} must be at least 1")
        self.name, self.sample_rate, self.hop_length = "mulaw", sample_rate, 1
        self.num_codebooks = self.full_codebooks = 1
        self.codebook_size = MU + 1
        self.levels = nn.Parameter(expand(torch.arange(MU + 1)), requires_grad=False)  # [V] what each code sounds like
        # comparing with bounds is exact, a logarithm is not: it could flip codes between shapes
        self.register_buffer("bounds", expand(torch.arange(MU) + 0.5), persistent=False)
        self.encoder_blocks = self.decoder_blocks = Blocks(1, 1 << 18)

    def encode_window(self, audio: Tensor, state: State) -> Tensor:
        return torch.bucketize(audio.contiguous(), self.bounds)

    def decode_window(self, codes: Tensor, state: State) -> Tensor:
        return self.levels[codes]

    def save(self, folder: Path) -> None:
        save_tables(self, folder, {"sample_rate": self.sample_rate})


def expand(codes: Tensor) -> Tensor:
    """Codes 0..255, also between two of them -> samples in -1..1."""
    y = 2 * codes.double() / MU - 1
    return (y.sign() * ((1 + MU) ** y.abs() - 1) / MU).float()
