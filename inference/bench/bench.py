"""How fast models generate, engine beside engine: `bench` gives a `BenchReport`.

Engines take turns, round after round, so that whatever else the machine does slows all of them alike. Figures of this
machine at this moment: nothing may depend on them, but for what is counted.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ...data.progress import progress_bar
from ...model.lm import SpeechLM
from ..config import WeightPrecision
from ..frame_step import is_supported
from ..json_safe import json_safe
from ..loading import load
from ..machine import MATRIX_SIZE, Machine, load_average, matmul_rate, processor_name, read_rate
from ..resources import NAN
from ..threads import torch_threads
from .counts import Counts, count
from .engines import FRAME_STEP, LAUNCHED, LINEARS, WALK, Engine, Linears, Ours
from .first_sound import Heard, first_sound
from .launches import count_launches
from .limits import FrameCost, Rates, frame_cost, limit_s
from .memory import peak_mb
from .peers import PEERS, make_peer, missing_peers
from .stopwatch import Stopwatch
from .subjects import Subject

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}  # a weight's


@dataclass(frozen=True)
class BenchConfig:
    batch: tuple[int, ...] = (1, 8)  # rows
    prompt_frames: int = 25
    frames: int = 100  # drawn in each round
    rounds: int = 3
    threads: int = 1  # torch threads
    device: str = "cpu"
    clock: str = "wall"  # or "cpu", see Stopwatch
    peers: bool = False  # a hand-written loop and other libraries, too
    memory: bool = True  # also measure memory, in processes of their own
    with_codec: bool = False  # also measure when the codec's first sound is there; for checkpoints
    weights: WeightPrecision = "float32"  # our models'

    def __post_init__(self) -> None:
        if self.device not in MATRIX_SIZE:
            raise ValueError(f"device '{self.device}' is unknown; choose one of {', '.join(MATRIX_SIZE)}")
        if self.device != "cpu" and self.clock == "cpu":
            raise ValueError("the processor's clock knows nothing of a GPU; leave out --clock cpu")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device 'cuda' is not there: torch sees no CUDA GPU; choose cpu")


@dataclass(frozen=True)
class Speed:
    """One engine at one batch."""

    engine: str
    prefill_ms: float  # from the call to the first frame, less a frame; NaN: it takes no prompt
    median_ms: float  # for a frame of every row
    p95_ms: float
    frames_per_second: float  # all rows together, by the median
    real_time: float  # times real time, of each row; NaN: a shape has no codec
    times_slower: float  # than the first engine
    times_floor: float  # the median over that of the matrix products alone
    limit_share: float  # the limit as a share of the median; NaN: the model is not ours
    operations: float  # a frame
    products: float  # a frame
    syncs: float  # a frame
    launches: float  # a frame; NaN on a CPU
    peak_mb: float  # NaN: not measured


@dataclass(frozen=True)
class Trial:
    """One model at one batch."""

    subject: str
    parameters: int
    batch: int
    cost: FrameCost
    rates: Rates
    limit_ms: float
    engines: list[Speed]


@dataclass(frozen=True)
class BenchReport:
    config: BenchConfig
    machine: Machine
    missing: dict[str, str]  # peers that are left out -> the package that each needs
    trials: list[Trial]
    heard: list[Heard]  # checkpoints, with their codecs

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what is not a finite number is None."""
        return json_safe(asdict(self))


def bench(subjects: Sequence[Subject], config: BenchConfig = BenchConfig()) -> BenchReport:
    """Measure models. Raises what `load` raises."""
    busy, device, peaks, trials = load_average(), torch.device(config.device), [0.0], []
    with torch_threads(config.threads):
        names = [name for name in PEERS if name not in missing_peers()] if config.peers else []
        steps = len(subjects) * len(config.batch) * config.rounds
        with progress_bar(total=steps, desc="measure", unit="round", delay=2) as bar:
            for subject in subjects:
                model = subject.load(config.device)
                for batch in config.batch:
                    runner = _Runner(subject, model, batch, names, config)
                    for _ in range(config.rounds):
                        peaks.append(matmul_rate(device))
                        runner.run()
                        bar.update()
                    trials.append(runner.trial(max(peaks)))
        heard = []
        for subject in subjects:
            if config.with_codec and not subject.is_shape:
                heard.append(
                    first_sound(load(subject.name, config.device, config.weights), config.frames, config.rounds)
                )
    machine = Machine(
        processor_name(config.device), os.cpu_count() or 1, config.threads, torch.__version__, config.device, busy,
        max(peaks) / 1e9,
    )  # fmt: skip
    return BenchReport(config, machine, missing_peers() if config.peers else {}, trials, heard)


class _Runner:
    """One model at one batch, and what has been measured so far."""

    def __init__(self, subject: Subject, model: SpeechLM, batch: int, peers: Sequence[str], config: BenchConfig):
        self.subject, self.model, self.batch, self.config = subject, model, batch, config
        prompt = subject.prompt(batch, config.prompt_frames, config.device)
        self.engines: list[Engine] = [Ours(model, prompt, WALK)]
        if is_supported(model):
            fused = subject.load(config.device, config.weights, batch)
            names = (FRAME_STEP, LAUNCHED) if config.device == "cuda" else (FRAME_STEP,)
            self.engines[:0] = [Ours(fused, prompt, name) for name in names]
        self.engines += [make_peer(name, model.config, prompt) for name in peers]
        self.counts = {engine.name: count(engine) for engine in self.engines}  # warms them up, too
        self.launches: dict[str, float] = {}
        if config.device == "cuda":
            self.launches = {engine.name: count_launches(engine) for engine in self.engines}
        counted = LAUNCHED if LAUNCHED in self.counts else self.engines[0].name  # a graph hides its products
        floor = Linears(self.counts[counted].calls)
        self.engines.append(floor)
        self.counts[floor.name] = Counts(len(floor.calls), len(floor.calls), 0, [])
        self.first: dict[str, list[float]] = {engine.name: [] for engine in self.engines}
        self.later: dict[str, list[float]] = {engine.name: [] for engine in self.engines}
        self.weight_bytes = BYTES[config.weights]
        self.memory_rate = self.depth_rate = 0.0  # bytes/s, of all that a frame reads, and of the depth decoder
        self.cost = frame_cost(model.config, batch, config.prompt_frames + config.frames / 2)

    def run(self) -> None:
        """One round."""
        self.measure_rates()
        for engine in self.engines:
            watch = Stopwatch(torch.device(self.config.device), self.config.clock)
            engine.run(self.config.frames, watch.mark)
            first, *later = watch.laps()
            self.first[engine.name].append(first)
            self.later[engine.name].extend(later)

    def measure_rates(self) -> None:
        """The fastest of all rounds."""
        device, depth = torch.device(self.config.device), self.cost.distinct_depth_weights
        everything = read_rate(device, self.weight_bytes * (self.cost.backbone_weights + depth))
        self.memory_rate = max(self.memory_rate, everything)
        self.depth_rate = max(self.depth_rate, read_rate(device, self.weight_bytes * depth) if depth else everything)

    def trial(self, peak: float) -> Trial:
        """peak: FLOP/s."""
        rates, parameters = Rates(peak, self.memory_rate, self.depth_rate), self.model.num_parameters()
        limit = limit_s(self.cost, rates, self.weight_bytes)
        speeds = [self.speed(engine.name, limit) for engine in self.engines]
        return Trial(self.subject.title, parameters, self.batch, self.cost, rates, 1000 * limit, speeds)

    def speed(self, name: str, limit: float) -> Speed:
        counts, config, rate = self.counts[name], self.config, self.subject.frame_rate
        medians = {name: float(np.median(laps)) for name, laps in self.later.items()}
        median, ours = medians[name], name in (FRAME_STEP, LAUNCHED, WALK, LINEARS)
        return Speed(
            engine=name,
            prefill_ms=NAN if name == LINEARS else 1000 * (float(np.median(self.first[name])) - median),
            median_ms=1000 * median,
            p95_ms=1000 * float(np.percentile(self.later[name], 95)),
            frames_per_second=self.batch / median,
            real_time=1 / median / rate if rate else NAN,
            times_slower=median / medians[self.engines[0].name],
            times_floor=median / medians[LINEARS],
            limit_share=limit / median if ours else NAN,
            operations=counts.operations,
            products=counts.products,
            syncs=counts.syncs,
            launches=self.launches.get(name, NAN),
            peak_mb=self.peak_mb(name) if config.memory and name != LINEARS else NAN,
        )

    def peak_mb(self, name: str) -> float:
        config = self.config
        sizes = self.batch, config.prompt_frames, config.frames
        return peak_mb(name, self.subject, *sizes, config.device, config.weights)
