"""EnCodec (arXiv:2210.13438), in the three forms that exist.

- 24 kHz: causal, with an LSTM. State is carried (see causal.py), so a stream gives what the whole file gives.
- 48 kHz: stereo, and every window is normalised in itself, so a window is its own receptive field: windows as long as
  the network was trained on, which overlap by a frame on either side. Audio is given to both channels and their mean
  taken. Each window's loudness, which transformers returns aside, is codebook 0 here: codes alone give the audio back.
- Not causal and not normalised (MusicGen's 32 kHz): windows of 10 s that overlap by a second on either side; the LSTM
  has no receptive field that ends, so codes of longer audio are those of these windows, whatever the chunks.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .blocks import Blocks, State
from .causal import carried, carry_state
from .transformers_codec import PretrainedCodec

BLOCK_S = 2.0  # seconds of one call of the causal network: what a stream's encoder lags
WINDOW_S, CONTEXT_S = 10.0, 1.0  # of the network that is neither causal nor normalised
QUIETEST_DB, RANGE_DB = -120.0, 128.0  # what the V steps of codebook 0 span, where it is the loudness


class EncodecCodec(PretrainedCodec):
    model_type = "encodec"

    def __init__(self, model: Any, tensors: dict[str, Tensor], values: dict[str, Any]):
        super().__init__(model, tensors, values)
        config = model.config
        self.sample_rate, self.hop_length = config.sampling_rate, math.prod(config.upsampling_ratios)
        self.codebook_size = config.codebook_size
        self.has_loudness, self.loudness_db = bool(config.normalize), RANGE_DB / config.codebook_size
        self.num_codebooks = self.full_codebooks = config.num_quantizers + self.has_loudness
        self.min_codebooks = 1 + self.has_loudness
        causal = config.use_causal_conv and config.norm_type == "weight_norm" and config.trim_right_ratio == 1
        self.causal = causal and not self.has_loudness and config.chunk_length_s is None
        if self.causal:
            # the beginning is padded with its mirror image, so the first call must be longer than any layer's padding
            dilation = config.dilation_growth_rate ** (config.num_residual_layers - 1)
            first = max(config.kernel_size, config.last_kernel_size, config.residual_kernel_size * dilation)
            block = max(first, round(BLOCK_S * self.frame_rate))
            self.encoder_blocks, self.decoder_blocks = Blocks(block, block, first=first), Blocks(1, block, first=first)
            carry_state(self.model)
        else:
            self.encoder_blocks = self.decoder_blocks = self._windows(config)

    def _windows(self, config: Any) -> Blocks:
        if config.chunk_length_s is None:
            block, context = (max(1, round(seconds * self.frame_rate)) for seconds in (WINDOW_S, CONTEXT_S))
        else:  # no longer than chunk_stride: transformers would cut it
            context, block = 1, (config.chunk_stride or config.chunk_length) // self.hop_length - 2
        if block < 1:
            raise ValueError(f"chunk_length_s {config.chunk_length_s} is less than three frames")
        return Blocks(block, block, context, context)

    @property
    def bandwidth(self) -> float:
        """The least of the network's bandwidths (kb/s) that gives as many codebooks as are used."""
        config, wanted = self.model.config, self.num_codebooks - self.has_loudness
        per_codebook = math.log2(config.codebook_size) * config.frame_rate  # bits/s, as transformers reckons
        enough = (rate for rate in config.target_bandwidths if int(rate * 1000 // per_codebook) >= wanted)
        return next(enough, config.target_bandwidths[-1])

    def encode_window(self, audio: Tensor, state: State) -> Tensor:
        audio = audio.expand(-1, self.model.config.audio_channels, -1)
        with carried(state) if self.causal else torch.no_grad():
            found = self.model.encode(audio, bandwidth=self.bandwidth, return_dict=True)
        codes = found.audio_codes[0][:, : self.num_codebooks - self.has_loudness]
        if not self.has_loudness:
            return codes
        decibels = 20 * found.audio_scales[0].clamp_min(1e-9).log10()  # [1, 1]
        level = ((decibels - QUIETEST_DB) / self.loudness_db).round().clamp(0, self.codebook_size - 1).long()
        return torch.cat([level[..., None].expand(-1, -1, codes.shape[-1]), codes], dim=1)

    def decode_window(self, codes: Tensor, state: State) -> Tensor:
        with carried(state) if self.causal else torch.no_grad():
            found = self.model.decode(codes[None, :, self.has_loudness :], [None], return_dict=True)
        audio = found.audio_values.mean(dim=1, keepdim=True)
        if not self.has_loudness:
            return audio
        scale = 10 ** ((codes[:, :1].float() * self.loudness_db + QUIETEST_DB) / 20)
        return audio * scale.repeat_interleave(self.hop_length, dim=-1)

    def check_codes(self, codes: Tensor) -> None:
        super().check_codes(codes)
        if self.has_loudness and codes.shape[1] < 2:
            raise ValueError("codebook 0 is the loudness alone; this codec needs at least 2 codebooks")
