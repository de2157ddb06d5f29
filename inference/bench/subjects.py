"""The models that are measured: shapes with random weights, or checkpoints.

A subject is a recipe, so that another process can make the same. B batch, K codebooks, T frames.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...model.lm import SpeechLM
from ...model.presets import PRESETS, SHAPE_CSM_1B, SHAPE_S
from ...model.speech_lm_config import SpeechLMConfig
from ..config import WeightPrecision
from ..loading import load, model_folder, read_config
from ..precision import set_weights

SHAPES = {"S": SHAPE_S, "CSM-1B": SHAPE_CSM_1B} | PRESETS
CODES = {"CSM-1B": (32, 2051)}  # codebooks, and codes of each; of other shapes:
NUM_CODEBOOKS, CODEBOOK_SIZE = 8, 1024


@dataclass(frozen=True)
class Subject:
    name: str  # a shape, or a model as `load` takes it
    is_shape: bool

    @property
    def title(self) -> str:
        return f"shape {self.name} (random weights)" if self.is_shape else f"model {self.name}"

    @cached_property
    def config(self) -> SpeechLMConfig:
        """Raises what `load` raises."""
        if self.is_shape:
            return SpeechLMConfig(*CODES.get(self.name, (NUM_CODEBOOKS, CODEBOOK_SIZE)), *SHAPES[self.name])
        return read_config(model_folder(self.name) / "config.json")

    @property
    def frame_rate(self) -> float | None:
        """Frames per second of audio (Hz); None: a shape has no codec."""
        codec = self.config.codec
        return codec.frame_rate if codec.sample_rate else None

    def load(self, device: str, weights: WeightPrecision | None = None, rows: int = 1) -> SpeechLM:
        """Arguments, and what is raised, as of `load`."""
        if not self.is_shape:
            return load(self.name, device, weights, rows).model
        torch.manual_seed(0)
        with torch.device(device):
            model = SpeechLM(self.config).eval()
        if weights is not None:
            set_weights(model, weights, rows)
        return model

    def prompt(self, batch: int, num_frames: int, device: str) -> Tensor:
        """Random codes [B, K, T]: how long a frame takes does not depend on them."""
        size = batch, self.config.num_codebooks, num_frames
        draw = torch.Generator().manual_seed(0)
        return torch.randint(0, self.config.codec.codebook_size, size, generator=draw).to(device)
