"""Llama 3's stretching of rotary wavelengths, for models that started from it."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of the rotary wavelengths (transformers' rope_type "llama3")."""

    factor: float = 1.0  # how much the longest wavelengths are stretched; 1: not at all
    low_freq_factor: float = 1.0  # wavelengths over original_positions / this are stretched wholly
    high_freq_factor: float = 4.0  # wavelengths under original_positions / this are not stretched
    original_positions: int = 8192  # positions that the model saw before it was stretched

    def __post_init__(self) -> None:
        if not self.factor > 0 or not self.low_freq_factor < self.high_freq_factor or self.original_positions < 1:
            raise ValueError(
                f"rope_scaling: factor {self.factor} and original_positions {self.original_positions} must be more "
                f"than 0, high_freq_factor {self.high_freq_factor} more than low_freq_factor {self.low_freq_factor}"
            )


def stretch(frequency: "Tensor", scaling: RopeScaling) -> "Tensor":
    """Llama 3's scaling of rotary frequencies: long wavelengths by `factor`, short ones not, those between in part."""
    turns = scaling.original_positions * frequency / (2 * math.pi)  # full turns over the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequency * (kept + (1 - kept) / scaling.factor)
