"""What a training run costs, computed from its settings before it is run: frames, parameters, operations, hours.

    python -m codeclm.train.recipes.plan --hours 5770 --cards 4090 L4 --model.layers 12 --depth-fraction 0.125

It takes the flags of `codeclm train`. Nothing is measured: the hours are those of model/cost.py's operations, three
times the forward pass, at a share (MFU) of a card's nominal rate for bfloat16 (train/meter.py).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import arg

from ...inference.options import Options
from ...inference.screen import say_error
from ..config import TrainConfig

if TYPE_CHECKING:
    from ...model.speech_lm_config import SpeechLMConfig

# measured for shape S on an H200 (tests/gpu/reports/2026-11-26-h200-1.md), and a goal
MFU = (0.09, 0.3)
STATE_BYTES = 16  # a parameter in float32, its gradient and AdamW's two averages


@dataclass(frozen=True)
class Plan:
    """The parts of the cost that do not depend on the hardware."""

    epochs: float
    corpus_frames: float
    trained_frames: float
    num_codebooks: int
    parameters: int
    flops_per_frame: float  # forward and backward

    def hours(self, flops_per_second: float) -> float:
        return self.trained_frames * self.flops_per_frame / flops_per_second / 3600


def plan(hours: float, model: "SpeechLMConfig", frame_rate: float, config: TrainConfig) -> Plan:
    """The cost of a run on `hours` of speech. Rows are counted as full, so attention costs the most it can."""
    import torch

    from ...model.cost import forward_flops_per_frame
    from ...model.lm import SpeechLM

    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in SpeechLM(model).parameters())
    corpus = hours * 3600 * frame_rate
    trained = config.steps * config.batch.frames_per_batch
    flops = 3 * forward_flops_per_frame(model, config.batch.max_frames, config.depth_fraction)
    return Plan(trained / corpus, corpus, trained, model.num_codebooks, parameters, flops)


def table(found: Plan, config: TrainConfig, cards: tuple[str, ...], gpus: int, shares: tuple[float, ...]) -> str:
    """Markdown: a sentence for the run, and a row for each card."""
    from ..meter import NOMINAL

    unknown = [card for card in cards if card not in NOMINAL]
    if unknown:
        raise ValueError(f"--cards {' '.join(unknown)}: unknown; choose from {', '.join(NOMINAL)}")
    state = STATE_BYTES * found.parameters / (gpus if config.sharding == "fsdp" else 1)
    lines = [
        f"{found.parameters / 1e6:.0f} M parameters, {found.flops_per_frame / 1e9:.2f} GFLOP a frame; "
        f"{config.steps} steps of {config.batch.frames_per_batch} frames: {found.trained_frames / 1e6:.0f} M frames, "
        f"{found.trained_frames * found.num_codebooks / 1e9:.1f} G codes, {found.epochs:.1f} epochs of "
        f"{found.corpus_frames / 1e6:.0f} M frames; weights, gradients and AdamW {state / 1e9:.1f} GB a GPU, "
        "activations beside them. Computed, not run.",
        "",
        "| GPUs | nominal rate of one | " + " | ".join(f"hours at {share:.0%} MFU" for share in shares) + " |",
        "|---|---|" + "---|" * len(shares),
    ]
    for card in cards:
        spent = " | ".join(f"{found.hours(gpus * NOMINAL[card] * share):.1f}" for share in shares)
        lines.append(f"| {gpus} x {card} | {NOMINAL[card] / 1e12:.0f} TFLOP/s | {spent} |")
    return "\n".join(lines)


def main(
    hours: Annotated[float, arg(help="hours of speech in the corpus")],
    cards: Annotated[tuple[str, ...], arg(help="GPUs to compare, by a part of their name")] = ("H100",),
    gpus: Annotated[int, arg(help="how many of them work together")] = 1,
    mfu: Annotated[tuple[float, ...], arg(help="shares of the nominal rate")] = MFU,
    codebooks: Annotated[int, arg(help="codebooks of the codec; the defaults are those of mimi:8")] = 8,
    codebook_size: Annotated[int, arg(help="codes in a codebook")] = 2048,
    frame_rate: Annotated[float, arg(help="frames in a second of speech")] = 12.5,
    config: Annotated[TrainConfig, Options] = TrainConfig(),
) -> None:
    """Print what `codeclm train` with these settings would cost."""
    from ...model.speech_lm_config import SpeechLMConfig

    if min(hours, gpus, frame_rate, *mfu) <= 0:
        raise ValueError("--hours, --gpus, --frame-rate and --mfu must be more than 0")
    backbone, depth = config.model.parts
    model = SpeechLMConfig(codebooks, codebook_size, backbone, depth, pattern=config.model.pattern)
    print(table(plan(hours, model, frame_rate, config), config, cards, gpus, mfu))


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except ValueError as error:
        say_error(error)
        raise SystemExit(2) from None
