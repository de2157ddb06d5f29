"""What a user of transformers alone would call: the whole clip at once, no state. To compare the codecs' speed with."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...model.codecs import Codec
from ...model.codecs.encodec import EncodecCodec
from ...model.codecs.transformers_codec import PretrainedCodec

Calls = tuple[Callable[[Tensor], Any], Callable[[Any], Any]]  # encode(audio [B, 1, S]), and decode of its result


def library_calls(codec: Codec) -> Calls | None:
    """transformers' encode and decode of the codec's network, with as many codebooks; None for a codec of ours."""
    if not isinstance(codec, PretrainedCodec):
        return None
    model, num_codebooks = codec.model, codec.num_codebooks
    if isinstance(codec, EncodecCodec):
        channels = model.config.audio_channels
        return (
            lambda audio: model.encode(audio.expand(-1, channels, -1), bandwidth=codec.bandwidth),
            lambda found: model.decode(found.audio_codes, found.audio_scales),
        )
    if codec.model_type == "mimi":
        return (
            lambda audio: model.encode(audio, num_quantizers=num_codebooks),
            lambda found: model.decode(found.audio_codes),
        )
    return (
        lambda audio: model.encode(audio, n_quantizers=num_codebooks),
        lambda found: model.decode(audio_codes=found.audio_codes),
    )
