"""Mimi (arXiv:2410.00037): causal, 12.5 frames/s, the first codebook semantic.

transformers streams its encoder, but not its decoder, whose convolutions forget; here both carry their state (see
causal.py) and their attention caches, which hold no more than the sliding window.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .blocks import Blocks, State
from .causal import carried, carry_state
from .transformers_codec import PretrainedCodec

BLOCK_S = 2.0  # seconds of one call: what a stream's encoder lags


class MimiCodec(PretrainedCodec):
    model_type = "mimi"

    def __init__(self, model: Any, tensors: dict[str, Tensor], values: dict[str, Any]):
        super().__init__(model, tensors, values)
        config = model.config
        if config.audio_channels != 1 or not config.use_causal_conv or config.trim_right_ratio != 1:
            raise ValueError("this Mimi is not mono and causal, which is the only kind that can be used")
        self.sample_rate, self.hop_length = config.sampling_rate, round(config.sampling_rate / config.frame_rate)
        self.num_codebooks = self.full_codebooks = config.num_quantizers
        self.min_codebooks = config.num_semantic_quantizers
        self.codebook_size = config.codebook_size
        block = max(1, round(BLOCK_S * self.frame_rate))
        self.encoder_blocks, self.decoder_blocks = Blocks(block, block), Blocks(1, block)
        carry_state(self.model)

    def encode_window(self, audio: Tensor, state: State) -> Tensor:
        with carried(state):
            found = self.model.encode(
                audio, num_quantizers=self.num_codebooks, encoder_past_key_values=self._cache(state), return_dict=True
            )
        return found.audio_codes

    def decode_window(self, codes: Tensor, state: State) -> Tensor:
        with carried(state):
            found = self.model.decode(codes, decoder_past_key_values=self._cache(state), return_dict=True)
        return found.audio_values

    def _cache(self, state: State) -> Any:
        """The attention cache of this stream."""
        from transformers import DynamicCache

        if "cache" not in state:
            state["cache"] = DynamicCache(config=self.model.config)
        return state["cache"]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "MimiCodec":
        super()._apply(fn, recurse)
        for module in self.model.modules():
            if getattr(module, "_embed", None) is not None:
                module._embed = None  # computed once by transformers, and left behind when the codec moves
        return self
