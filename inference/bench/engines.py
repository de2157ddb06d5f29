"""Ways to generate that are timed alike: each draws frames after a prompt and tells when one is complete.

B batch, K codebooks, T prompt frames.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ...model.lm import SpeechLM
from ..config import SamplingConfig, WeightPrecision
from ..engine import generate
from ..grid import Request
from .peers import make_peer
from .subjects import Subject

if TYPE_CHECKING:
    from .product import Call

FRAME_STEP, LAUNCHED, WALK, LINEARS = "frame step", "step without a graph", "walk", "linears only"


class Engine(Protocol):
    name: str

    def run(self, num_frames: int, mark: Callable[[], None]) -> None:
        """Take the prompt, draw `num_frames` frames, and call `mark` after each."""
        ...


class Ours:
    """codeclm's own generation, by the fused frame step or by the walk that it must equal."""

    def __init__(self, model: SpeechLM, prompt: Tensor, name: str):
        """prompt: [B, K, T]. name: FRAME_STEP, on a GPU LAUNCHED (its kernels one by one), or WALK."""
        self.name, self.model, self.prompt = name, model, prompt

    def run(self, num_frames: int, mark: Callable[[], None]) -> None:
        num_codes = self.model.config.codec.codebook_size
        request = Request(num_frames, self.prompt, num_codes=num_codes)
        fused, graphs = self.name != WALK, self.name == FRAME_STEP
        for _ in generate(self.model, request, range(len(self.prompt)), SamplingConfig(), fused, graphs=graphs):
            mark()


class Linears:
    """The floor: the matrix products of a frame in the same order, with the same weights, and nothing else."""

    name = LINEARS

    def __init__(self, calls: "Sequence[Call]"):
        self.calls = calls

    @torch.inference_mode()
    def run(self, num_frames: int, mark: Callable[[], None]) -> None:
        for _ in range(num_frames):
            for call in self.calls:
                call.again()
            mark()


def make_engine(
    name: str, subject: Subject, batch: int, prompt_frames: int, device: str, weights: WeightPrecision = "float32"
) -> Engine:
    """Ours or a peer's, by name, with a model of its own. weights: of the frame step, not of the walk."""
    prompt = subject.prompt(batch, prompt_frames, device)
    if name in (FRAME_STEP, LAUNCHED, WALK):
        return Ours(subject.load(device, weights if name != WALK else None, batch), prompt, name)
    return make_peer(name, subject.config, prompt)
