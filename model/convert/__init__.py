"""Other people's checkpoints <-> SpeechLM: CSM and Moshi in transformers' format, and warm starts from text models.

csm.py and moshi.py each have `to_speech_lm` and `from_speech_lm`, on config.json values and tensors; checkpoint.py
knows the folders, text_lm.py the text models.
"""

from dataclasses import dataclass, field

from torch import Tensor

from ..speech_lm_config import SpeechLMConfig


@dataclass(frozen=True)
class Converted:
    """A SpeechLM's config and tensors; `unused` are tensors that no logit depends on, kept for the way back."""

    config: SpeechLMConfig
    weights: dict[str, Tensor]
    unused: dict[str, Tensor] = field(default_factory=dict)


__all__ = ["Converted"]
