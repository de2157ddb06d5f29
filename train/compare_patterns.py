"""The four patterns on the same speech: trained for the same time, and for the same floating-point operations.

One run for each pattern and budget in OUT/PATTERN-time and OUT/PATTERN-flops, all with the same data, batches,
optimizer and held-out utterances; a run that is finished is not repeated. The operations are those of the first
pattern's run by time.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..data.split import split_heldout
from ..data.token_store import TokenStore
from ..inference.config import EvaluateConfig, SamplingConfig
from ..inference.engine import generate
from ..inference.evaluate.report import likelihood
from ..inference.evaluate.score import score_store
from ..inference.grid import Request
from ..inference.loading import load_speech_lm
from ..model.codecs import Codec
from ..model.device import resolve_device
from ..model.files import write_whole
from ..model.lm import SpeechLM
from .calibration import frames_per_step, operations_per_step, seconds_per_step
from .checkpoint import difference, filled
from .interruption import Interruption
from .loop import train
from .new_model import new_model
from .patterns_config import PatternsConfig
from .run_folder import CONFIG, PATTERNS, claim, write_config
from .trainer import Trainer

RESULTS = "results.json"


@dataclass(frozen=True)
class PatternResult:
    """One line of the table."""

    pattern: str
    budget: str  # "time" or "flops"
    bits_per_second: float  # on the held-out speech
    interval: tuple[float, float]  # 95 %, bootstrap over utterances
    training_frames_per_second: float
    generated_frames_per_second: float  # one row at a time
    steps: int
    minutes: float  # spent in training, evaluation left out
    petaflops: float  # 1e15 operations in training
    million_parameters: float
    threads: int


def compare_patterns(store: TokenStore, codec: Codec, out: Path, config: PatternsConfig) -> list[PatternResult]:
    """Train and measure every pattern under both budgets; results are kept in OUT/results.json.

    Raises ValueError if those are of other data or settings.
    """
    with claim(out, PATTERNS), Interruption() as interruption:
        identity = comparison_identity(store, codec, config)
        results = read_results(out / RESULTS, identity)
        write_config(out, PATTERNS, asdict(config) | {"data": store.data_hash, "codec": codec.fingerprint})
        done = {(row.pattern, row.budget) for row in results}
        for budget in ("time", "flops"):
            for pattern in config.patterns:
                if (pattern, budget) in done:
                    continue
                first = next((row for row in results if row.pattern == config.patterns[0]), None)
                if first is not None and (budget, pattern) == (
                    "flops",
                    first.pattern,
                ):  # its run by time set the budget
                    results.append(replace(first, budget="flops"))
                else:
                    petaflops = 0.0 if first is None else first.petaflops
                    results.append(measure(store, codec, out, config, pattern, budget, petaflops))
                content = {"identity": identity, "results": [asdict(row) for row in results]}
                write_whole(out / RESULTS, json.dumps(content, indent=2) + "\n")
                interruption.check()
    return results


def comparison_identity(store: TokenStore, codec: Codec, config: PatternsConfig) -> dict[str, Any]:
    """What results must share to stand in one table. More patterns may join; the first sets the budget."""
    settings = asdict(config)
    minutes, patterns = settings.pop("minutes"), settings.pop("patterns")
    identity = {
        "data": store.data_hash,
        "codec": codec.fingerprint,
        "minutes": minutes,
        "first pattern": patterns[0],
        "settings": settings | {"device": resolve_device(config.device).type},
    }
    return json.loads(json.dumps(identity))  # as a file returns it


def read_results(path: Path, identity: dict[str, Any]) -> list[PatternResult]:
    """The results in `path`; none where there is no such file. Raises ValueError if their identity is another."""
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
        held = dict(content["identity"])
        results = [PatternResult(**{**row, "interval": tuple(row["interval"])}) for row in content["results"]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: is not what codeclm patterns writes; give another --out") from None
    known = json.loads(json.dumps(asdict(PatternsConfig())))  # a setting that was not known has its default
    del known["minutes"], known["patterns"]
    for key, value in identity.items():
        other = difference(filled(held.get(key), known if key == "settings" else {}), value)
        if other:
            choice = f"give another --out, or the same {key}"
            raise ValueError(f"{path}: is of another {key}; {choice} ({other})")
    return results


def measure(
    store: TokenStore, codec: Codec, out: Path, config: PatternsConfig, pattern: str, budget: str, petaflops: float
) -> PatternResult:
    """Train one pattern under one budget, then score and generate with its best weights."""
    settings = config.training(pattern, steps=1)
    with Trainer(new_model(store, settings), codec, store, out / "calibration", settings, start="random") as scratch:
        per_step = 3e-15 * operations_per_step(scratch)
        fits = config.minutes * 60 / seconds_per_step(scratch) if budget == "time" else petaflops / per_step
    run = out / f"{pattern}-{budget}"
    steps = steps_of_run(run) or max(2, round(fits))
    settings = config.training(pattern, steps)
    model = load_speech_lm(train(new_model(store, settings), codec, store, run, settings, start="random"))
    speed = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    frames_per_second = [line["frames_per_second"] for line in speed if "frames_per_second" in line][-1]
    _, heldout = split_heldout(store, *settings.batch.split)
    scores = score_store(model, store, EvaluateConfig(), heldout.tolist())
    found = likelihood(scores.nll, scores.num_frames, store.codec.frame_rate, EvaluateConfig())
    mean_frames = frames_per_step(scratch)
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


def steps_of_run(run: Path) -> int:
    """The steps of a run that was begun: its clock was read then. 0 for one that was not."""
    return json.loads((run / CONFIG).read_text())["steps"] if (run / CONFIG).is_file() else 0


def generation_speed(model: SpeechLM, num_frames: int) -> float:
    """Frames per second of one row, from nothing, without the codec."""
    for _ in generate(model, Request(4), [0], SamplingConfig()):
        pass
    started = time.monotonic()
    for _ in generate(model, Request(num_frames), [0], SamplingConfig()):
        pass
    return num_frames / (time.monotonic() - started)


def table(results: list[PatternResult], config: PatternsConfig) -> str:
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
