"""DAC (arXiv:2306.06546): convolutions that look both ways, with a receptive field that ends.

Audio is coded in windows that overlap by that receptive field, so that every code is the one of the whole file. The
first and the last window end where the audio does, with the network's own padding.
"""

import math
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .blocks import Blocks, State
from .transformers_codec import PretrainedCodec

WINDOW_S, WINDOW_SAMPLES = 2.0, 32_000  # new audio in a window, at most: a stream lags by it, and it bounds memory
RESIDUAL = 3 * (1 + 3 + 9)  # samples to either side of a block's three residual units: kernel 7, dilations 1, 3, 9


class DacCodec(PretrainedCodec):
    model_type = "dac"

    def __init__(self, model: Any, tensors: dict[str, Tensor], values: dict[str, Any]):
        super().__init__(model, tensors, values)
        config = model.config
        self.sample_rate, self.hop_length = config.sampling_rate, math.prod(config.downsampling_ratios)
        self.num_codebooks = self.full_codebooks = config.n_codebooks
        self.codebook_size = config.codebook_size
        before, after = encoder_reach(config.downsampling_ratios), decoder_reach(config.downsampling_ratios)
        frames = max(1, round(min(WINDOW_S * self.frame_rate, WINDOW_SAMPLES / self.hop_length)))
        self.encoder_blocks = Blocks(frames, frames, before, before)
        self.decoder_blocks = Blocks(frames, frames, after, after)
        for module in model.modules():
            if type(module).__name__ == "Snake1d":
                module.forward = partial(snake, module)

    def encode_window(self, audio: Tensor, state: State) -> Tensor:
        return self.model.encode(audio, n_quantizers=self.num_codebooks, return_dict=True).audio_codes

    def decode_window(self, codes: Tensor, state: State) -> Tensor:
        audio = self.model.decode(audio_codes=codes, return_dict=True).audio_values
        # a transposed convolution of odd stride gives a sample less: the end is filled up
        return F.pad(audio, (0, codes.shape[-1] * self.hop_length - audio.shape[-1]))[:, None]


def snake(module: Any, x: Tensor) -> Tensor:
    """x + sin(alpha x)^2 / alpha, [B, C, N]: Snake1d's own to the bit, in one new tensor instead of four."""
    return (module.alpha * x).sin_().square_().mul_((module.alpha + 1e-9).reciprocal()).add_(x)


def encoder_reach(ratios: list[int] | tuple[int, ...]) -> int:
    """Frames to either side that a frame of codes depends on."""
    samples, jump = 3, 1  # jump: samples between two steps of a layer
    for ratio in ratios:
        samples += (RESIDUAL + 2 * ratio) * jump
        jump *= ratio
    return math.ceil((samples + jump) / jump) + 1


def decoder_reach(ratios: list[int] | tuple[int, ...]) -> int:
    """Frames to either side that a frame's audio depends on."""
    frames, rate = 3.0, 1  # rate: steps of a layer in a frame
    for ratio in reversed(ratios):
        frames += 2 / rate
        rate *= ratio
        frames += RESIDUAL / rate
    return math.ceil(frames + 3 / rate) + 1
