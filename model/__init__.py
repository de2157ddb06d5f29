"""What codeclm computes: codecs, the temporal backbone and depth decoder, delays."""

from typing import TYPE_CHECKING, Any

from .codec_reference import CodecReference
from .codec_shapes import SpectralConfig
from .shapes import TransformerConfig

if TYPE_CHECKING:
    from .codecs import Codec, load_codec
    from .lm import SpeechLM, SpeechLMOutput
    from .speech_lm_config import SpeechLMConfig

__all__ = [
    "Codec",
    "CodecReference",
    "SpectralConfig",
    "SpeechLM",
    "SpeechLMConfig",
    "SpeechLMOutput",
    "TransformerConfig",
    "load_codec",
]


def __getattr__(name: str) -> Any:
    """Import torch and transformers only when a network is asked for: `codeclm --help` needs neither."""
    if name in ("Codec", "load_codec"):
        from . import codecs as module
    elif name in ("SpeechLM", "SpeechLMConfig", "SpeechLMOutput"):
        from . import lm as module
    else:
        raise AttributeError(f"module 'codeclm.model' has no attribute '{name}'")
    return getattr(module, name)
