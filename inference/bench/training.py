"""One training step, forward and backward, beside transformers' CSM at the same shape: seconds and activation memory.

    python -m codeclm.inference.bench.training

Random weights and codes, float32, no optimizer. The engines take turns, a step each; medians over the rounds, by the
time of the processor (all its threads), which other processes disturb less.
Activation memory is the most that autograd holds at a time: distinct storages, parameters left out. B rows, T frames.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor, nn

from ...model.lm import SpeechLM
from ...model.presets import SHAPE_S
from ...model.speech_lm_config import SpeechLMConfig
from ..text_table import text_table
from .peers import Csm

Step = Callable[[], Tensor]  # -> the loss


@dataclass(frozen=True)
class TrainingBench:
    """What is measured."""

    rows: int = 4  # rows of a step
    frames: int = 250  # frames of a row
    rounds: int = 5  # steps of each engine, after one that is not counted
    depth_fraction: float = 1 / 16  # share of the frames that train the depth decoder, in the last row of the table


@dataclass(frozen=True)
class Cost:
    name: str
    seconds: float
    activation_mb: float


def bench(config: SpeechLMConfig, settings: TrainingBench = TrainingBench()) -> list[Cost]:
    """CSM first, then our full step, then ours with a share of the frames."""
    torch.manual_seed(0)
    shape = settings.rows, config.num_codebooks, settings.frames
    codes = torch.randint(4, config.codebook_size, shape)  # from 4 on: codes 0 to 3 have a meaning for CSM
    model = SpeechLM(config).train()
    peer = Csm(config, codes)
    peer.model.train()

    def ours(depth_fraction: float) -> Step:
        return lambda: model(codes, depth_fraction=depth_fraction).loss

    def csm() -> Tensor:
        return peer.model(input_ids=peer.prompt, labels=peer.prompt, use_cache=False).loss

    share = f"codeclm, depth decoder on {settings.depth_fraction:.3g} of the frames"
    engines: list[tuple[str, nn.Module, Step]] = [
        (peer.name, peer.model, csm),
        ("codeclm", model, ours(1.0)),
        (share, model, ours(settings.depth_fraction)),
    ]
    held = [_held_mb(model, step) for _, model, step in engines]
    seconds = [[_seconds(model, step) for _, model, step in engines] for _ in range(settings.rounds)]
    medians = map(statistics.median, zip(*seconds, strict=True))
    return [Cost(name, s, mb) for (name, *_), s, mb in zip(engines, medians, held, strict=True)]


def table(costs: list[Cost]) -> str:
    """Ratios are to CSM, and of the last row to our full step."""
    first, full, _ = costs
    rows = [["forward and backward", "ms", "of CSM", "of the full step", "activations MB", "of CSM"]]
    for cost in costs:
        times = f"{cost.seconds / first.seconds:.2f}", f"{cost.seconds / full.seconds:.2f}"
        memory = f"{cost.activation_mb:.0f}", f"{cost.activation_mb / first.activation_mb:.2f}"
        rows.append([cost.name, f"{1000 * cost.seconds:.0f}", *times, *memory])
    return "\n".join(text_table(rows))


def _seconds(model: nn.Module, step: Step) -> float:
    model.zero_grad()
    started = time.process_time()
    step().backward()
    return time.process_time() - started


def _held_mb(model: nn.Module, step: Step) -> float:
    """Also the step that is not counted."""
    held = _Held({parameter.untyped_storage().data_ptr() for parameter in model.parameters()})
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda token: token.tensor):
        step().backward()
    return held.most / 1e6


class _Held:
    """Counts what autograd has saved and not yet let go."""

    def __init__(self, left_out: set[int]):
        self.left_out, self.tokens, self.now, self.most = left_out, Counter[int](), 0, 0

    def pack(self, tensor: Tensor) -> "_Token":
        return _Token(self, tensor)


class _Token:
    def __init__(self, held: _Held, tensor: Tensor):
        storage = tensor.untyped_storage()
        self.held, self.tensor, self.place, self.size = held, tensor, storage.data_ptr(), storage.nbytes()
        if self.place not in held.left_out:
            held.now += self.size * (held.tokens[self.place] == 0)
            held.tokens[self.place] += 1
            held.most = max(held.most, held.now)

    def __del__(self) -> None:
        if self.place not in self.held.left_out:
            self.held.tokens[self.place] -= 1
            self.held.now -= self.size * (self.held.tokens[self.place] == 0)


def main(settings: TrainingBench = TrainingBench()) -> None:
    """Measure a training step at shape S beside transformers' CSM."""
    backbone, depth = SHAPE_S
    print(table(bench(SpeechLMConfig(num_codebooks=8, codebook_size=1024, backbone=backbone, depth=depth), settings)))


if __name__ == "__main__":
    tyro.cli(main)
