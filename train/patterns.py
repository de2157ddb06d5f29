"""The four patterns on the same speech: trained for the same time, and for the same floating-point operations.

One run for each pattern and budget in OUT/PATTERN-time and OUT/PATTERN-flops, all with the same data, batches,
optimizer and held-out utterances; a run that is finished is not repeated. The operations are those of the first
pattern's run by time.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..data.dataset import split_heldout
from ..data.shards import TokenStore, atomic_file
from ..inference.config import EvaluateConfig, SamplingConfig
from ..inference.engine import Request, generate
from ..inference.likelihood import likelihood
from ..inference.loading import load_speech_lm
from ..inference.score import score_store
from ..model.codecs import Codec
from ..model.cost import forward_flops_per_frame
from ..model.lm import SpeechLM
from .config import PatternsConfig, TrainConfig
from .loop import Trainer, new_model, train

CALIBRATION_STEPS = 6  # whose time says how many fit the budget; two more warm up


@dataclass(frozen=True)
class PatternResult:
    """One line of the table."""

    pattern: str
    budget: str  # "time" or "flops"
    bits_per_second: float  # of the held-out speech
    interval: tuple[float, float]  # 95 %, bootstrap over utterances
    training_frames_per_second: float
    generated_frames_per_second: float  # one row at a time
    steps: int
    minutes: float  # of training, without evaluation
    petaflops: float  # 1e15 operations in training
    million_parameters: float
    threads: int


def compare_patterns(store: TokenStore, codec: Codec, out: Path, config: PatternsConfig) -> list[PatternResult]:
    """Train and measure every pattern under both budgets; results are kept in OUT/results.json."""
    path = out / "results.json"
    results = [PatternResult(**row) for row in json.loads(path.read_text())] if path.exists() else []
    done = {(row.pattern, row.budget) for row in results}
    petaflops = next((row.petaflops for row in results), 0.0)
    for budget in ("time", "flops"):
        for pattern in config.patterns:
            if (pattern, budget) in done:
                continue
            if budget == "flops" and pattern == config.patterns[0]:  # its run by time set the budget
                first = next(row for row in results if row.pattern == pattern)
                results.append(replace(first, budget="flops"))
            else:
                results.append(measure(store, codec, out, config, pattern, budget, petaflops))
            petaflops = petaflops or results[0].petaflops
            out.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                file.write(json.dumps([asdict(row) for row in results], indent=2).encode() + b"\n")
    return results


def measure(
    store: TokenStore, codec: Codec, out: Path, config: PatternsConfig, pattern: str, budget: str, petaflops: float
) -> PatternResult:
    """Train one pattern under one budget, then score and generate with its best weights."""
    settings = replace(config.train, model=replace(config.train.model, pattern=pattern))  # pyright: ignore
    scratch = Trainer(new_model(store, settings), codec, store, out / "calibration", settings)
    per_step = 3e-15 * operations_per_step(scratch)
    fits = config.minutes * 60 / seconds_per_step(scratch) if budget == "time" else petaflops / per_step
    steps = max(2, round(fits))
    run = out / f"{pattern}-{budget}"
    warmup = min(settings.optimizer.warmup_steps, steps // 4)
    settings = replace(
        settings,
        steps=steps,
        evaluate_every=steps,
        save_every=steps,
        optimizer=replace(settings.optimizer, warmup_steps=warmup),
    )
    model = load_speech_lm(train(new_model(store, settings), codec, store, run, settings))
    speed = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    frames_per_second = [line["frames_per_second"] for line in speed if "frames_per_second" in line][-1]
    _, heldout = split_heldout(store.names, settings.batch.heldout_share, settings.seed, store.folder)
    scores = score_store(model, store, EvaluateConfig(), heldout)
    found = likelihood(scores.nll, scores.num_frames, store.codec.frame_rate, EvaluateConfig())
    frames = sum(int((batch >= 0).sum()) for batch in (scratch.batches[i] for i in range(CALIBRATION_STEPS)))
    mean_frames = frames / store.codec.num_codebooks / CALIBRATION_STEPS
    return PatternResult(
        pattern=pattern,
        budget=budget,
        bits_per_second=found.bits_per_second,
        interval=found.interval,
        training_frames_per_second=frames_per_second,
        generated_frames_per_second=generation_speed(model, config.generated_frames),
        steps=steps,
        minutes=steps * mean_frames / frames_per_second / 60,
        petaflops=steps * per_step,
        million_parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        threads=torch.get_num_threads(),
    )


def operations_per_step(trainer: Trainer) -> float:
    """Forward operations of a batch, the mean over some."""
    total = 0.0
    for step in range(CALIBRATION_STEPS):
        codes = trainer.batches[step]
        per_frame = forward_flops_per_frame(trainer.raw_model.config, codes.shape[2], trainer.config.depth_fraction)
        total += per_frame * codes.shape[0] * codes.shape[2]
    return total / CALIBRATION_STEPS


def seconds_per_step(trainer: Trainer) -> float:
    """Wall time of a training step; spoils the trainer's weights."""
    trainer.raw_model.train()
    for _ in range(2):
        trainer.train_step()
    started = time.monotonic()
    for _ in range(CALIBRATION_STEPS):
        trainer.train_step()
    return (time.monotonic() - started) / CALIBRATION_STEPS


def generation_speed(model: SpeechLM, num_frames: int) -> float:
    """Frames per second of one row, from nothing, without the codec."""
    for _ in generate(model, Request(4), [0], SamplingConfig()):
        pass
    started = time.monotonic()
    for _ in generate(model, Request(num_frames), [0], SamplingConfig()):
        pass
    return num_frames / (time.monotonic() - started)


def table(results: list[PatternResult], config: TrainConfig) -> str:
    """For the terminal."""
    lines = [
        f"preset {config.model.preset}, {config.batch.frames_per_batch} frames per batch, "
        f"threads: {results[0].threads}, bf16 where fast: {config.bf16}",
        "",
        f"{'pattern':10}{'budget':8}{'bits/s':>9}{'95 % interval':>18}{'train frames/s':>16}{'generate frames/s':>19}"
        f"{'steps':>8}{'minutes':>9}{'TFLOP':>8}{'M param':>9}",
    ]
    for row in results:
        interval = f"{row.interval[0]:.1f} .. {row.interval[1]:.1f}"
        lines.append(
            f"{row.pattern:10}{row.budget:8}{row.bits_per_second:9.1f}{interval:>18}"
            f"{row.training_frames_per_second:16.0f}{row.generated_frames_per_second:19.1f}{row.steps:8}"
            f"{row.minutes:9.1f}{1000 * row.petaflops:8.1f}{row.million_parameters:9.1f}"
        )
    return "\n".join(lines)
