"""Frames as CUDA graphs: the codes of the CPU, and how long they take beside the bandwidth of the card."""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codeclm.inference import cuda_frame
from codeclm.inference.bench.engines import FRAME_STEP, Ours
from codeclm.inference.bench.first_sound import first_sound
from codeclm.inference.bench.limits import frame_cost
from codeclm.inference.bench.peers import make_peer
from codeclm.inference.bench.stopwatch import Stopwatch
from codeclm.inference.bench.subjects import Subject
from codeclm.inference.config import SamplingConfig, WeightPrecision
from codeclm.inference.engine import generate
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.grid import Request
from codeclm.inference.machine import read_rate
from codeclm.model.lm import SpeechLM
from codeclm.model.shapes import DepthConfig, TransformerConfig
from codeclm.model.speech_lm_config import SpeechLMConfig

from .harness import Reading, difference, num_different
from .setting import Setting

BACKBONE = TransformerConfig(dim=64, num_layers=2, num_heads=4, num_kv_heads=2, ff_dim=96)
MODELS = {
    "delays": SpeechLMConfig(4, 50, BACKBONE, pattern="delay"),
    "like CSM": SpeechLMConfig(
        4, 50, BACKBONE, DepthConfig(dim=48, ff_dim=96, conditioning="prefix", embeddings="shared"), end="zeros"
    ),
}
SETTINGS = SamplingConfig(temperature=(1.0, 0.9), top_k=30, top_p=0.95, stop_at_end=True)
PEER = "transformers CSM"


def as_cpu(setting: Setting) -> Iterator[Reading]:
    """The embedded model and small ones; few rows, and enough for tensor cores."""
    models = {"embedded": setting.model} | {name: small(config) for name, config in MODELS.items()}
    for name, model in models.items():
        there = setting.there(model)
        for batch in (2, 16) if name == "embedded" else (3,):
            prompt = torch.randint(0, 50, (model.num_codebooks, 6), generator=torch.Generator().manual_seed(1))
            request = Request(setting.amount("frames", 40, 4), prompt)
            found, expected = (last(one, request, batch) for one in (there, model))
            case = f"{name}, {batch} rows"
            yield Reading(
                f"{case}: codes drawn otherwise than by the CPU", num_different(found.codes, expected.codes), 0
            )
            yield Reading(f"{case}: nats recorded", difference(found.nll, expected.nll), 1e-3, "nats a code")
            if setting.is_cuda:
                yield Reading(f"{case}: frames without a graph", float(not cuda_frame.idle_graphs(there)), 0)


def small(config: SpeechLMConfig) -> SpeechLM:
    torch.manual_seed(0)
    model = SpeechLM(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def last(model: SpeechLM, request: Request, batch: int) -> Any:
    *_, state = generate(model, request, range(batch), SETTINGS)
    return state


Case = tuple[str, WeightPrecision, tuple[int, ...]]
ON_CUDA: list[Case] = [
    ("S", "float32", (1, 8, 64)), ("S", "bfloat16", (1, 8, 64)), ("base", "bfloat16", (1, 8)),
    ("CSM-1B", "bfloat16", (1,)),
]  # fmt: skip
ON_CPU: list[Case] = [("tiny", "float32", (1,))]


def compile_case(device: str, shape: str, weights: WeightPrecision, batch: int) -> None:
    """Draw some frames: the kernels are then in Triton's cache on the disk."""
    subject = Subject(shape, True)
    Ours(subject.load(device, weights), subject.prompt(batch, 25, device), FRAME_STEP).run(3, lambda: None)


def compile_all(device: str, cases: Sequence[Case]) -> None:
    """Each case in a process of its own, all at once: one after another they would take minutes."""
    command = [sys.executable, str(Path(__file__).parent), "--device", device, "--compile"]
    each = [[shape, weights, str(batch)] for shape, weights, batches in cases for batch in batches]
    processes = [subprocess.Popen(command + case, stderr=subprocess.PIPE, text=True) for case in each]
    for case, process in zip(each, processes, strict=True):
        _, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{' '.join(case)}: {errors[-500:]}")


def speed(setting: Setting) -> Iterator[Reading]:
    """Wall-clock time of a frame of all rows, as `generate` yields them, and of a replay alone."""
    cases = ON_CUDA if setting.is_cuda else ON_CPU
    compile_all(setting.device.type, cases)
    rate = read_rate(setting.device, setting.amount("read", 4 << 30, 1 << 24))
    yield Reading("reading of memory", rate / 1e9, unit="GB/s")
    for shape, weights, batches in cases:
        subject = Subject(shape, True)
        model = subject.load(setting.device.type, weights)
        for batch in batches:
            yield from speed_of(setting, subject, model, batch, rate, 2 if weights == "bfloat16" else 4)
        del model
        torch.cuda.empty_cache()


def speed_of(
    setting: Setting, subject: Subject, model: SpeechLM, batch: int, rate: float, size: int
) -> Iterator[Reading]:
    """rate: bytes/s. size: bytes of a weight."""
    name, drawn = (
        f"{subject.name}, {'bfloat16' if size == 2 else 'float32'}, {batch} rows",
        setting.amount("drawn", 60, 3),
    )
    prompt = subject.prompt(batch, 25, setting.device.type)
    engine = Ours(model, prompt, FRAME_STEP)
    started = time.perf_counter()
    engine.run(3, lambda: None)
    yield Reading(f"{name}: first run, with compiling", time.perf_counter() - started, unit="s")
    firsts, laps = [], []
    for _ in range(2):
        watch = Stopwatch(setting.device, "wall")
        engine.run(drawn, watch.mark)
        first, *later = watch.laps()
        firsts.append(first)
        laps += later
    cost = frame_cost(model.config, batch, 25 + drawn / 2)
    limit = (size * cost.weights + 4 * cost.cached_values) / rate
    median = statistics.median(laps)
    note = f"{batch / median:.0f} frames/s; {limit / median:.0%} of the limit {1e3 * limit:.3f} ms, reading all once"
    yield Reading(f"{name}: a frame", 1e3 * median, unit="ms", note=note)
    yield Reading(f"{name}: first frame after the call", 1e3 * statistics.median(firsts), unit="ms")
    if setting.is_cuda:
        (graphs,) = cuda_frame.idle_graphs(model).values()
        alone = replayed(graphs[-1].graph)
        note = f"{limit / alone:.0%} of the limit"
        yield Reading(f"{name}: a replay of the graph", 1e3 * alone, unit="ms", note=note)
        cuda_frame.idle_graphs(model).clear()


def replayed(graph: Any, count: int = 50) -> float:
    """Seconds, by events."""
    times = []
    for _ in range(count):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        times.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in times) / 1e3


def first_audible(setting: Setting) -> Iterator[Reading]:
    """The embedded model with its codec, after a prompt of 3 s that is encoded beforehand."""
    lm = SpeechGenerator(setting.there(setting.model), setting.there(setting.codec), "there")
    heard = first_sound(lm, setting.amount("drawn", 100, 4), 2, encoded(setting, lm))
    yield Reading("first sample", heard.first_ms, unit="ms")
    yield Reading("first audible sample, median", heard.audible_ms, unit="ms")
    yield Reading("first audible sample, 95 %", heard.audible_p95_ms, unit="ms")
    yield Reading("model and codec", heard.real_time, unit="times real time")


def encoded(setting: Setting, lm: SpeechGenerator) -> Tensor:
    return lm.codec.encode(setting.speech.to(lm.codec.device))[0]


def peer(setting: Setting) -> Iterator[Reading]:
    """transformers' CSM with a static cache, which its `generate` compiles, in turn with ours."""
    subject, batch = Subject("S" if setting.is_cuda else "tiny", True), 1
    prompt = subject.prompt(batch, 25, setting.device.type)
    ours = Ours(subject.load(setting.device.type, "float32"), prompt, FRAME_STEP)
    engines = {"ours": ours, PEER: make_peer(PEER, subject.config, prompt)}
    drawn, medians = setting.amount("drawn", 50, 3), {}
    laps: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        engine.run(drawn, lambda: None)
    for _ in range(setting.amount("rounds", 3, 1)):
        for name, engine in engines.items():
            watch = Stopwatch(setting.device, "wall")
            engine.run(drawn, watch.mark)
            laps[name] += watch.laps()[1:]
    for name, taken in laps.items():
        medians[name] = statistics.median(taken)
        yield Reading(f"shape {subject.name}, {batch} row: {name}", 1e3 * medians[name], unit="ms a frame")
    yield Reading(f"{PEER}: times as long as ours", medians[PEER] / medians["ours"])
