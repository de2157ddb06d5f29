"""One small model trained on the codes of each codec: the same speech, the same held-out part, the same operations.

    OUT/CODEC/tokens, OUT/CODEC/run     the codes, and the training on them
    OUT/CODEC/measured.json             all that was measured of it

A part that is there is not made again: a comparison goes on where it was stopped, and codecs may join later.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ...data.preparation import open_or_prepare
from ...data.token_store import TokenStore
from ...inference.generator import SpeechGenerator
from ...inference.json_safe import json_safe
from ...inference.loading import load_speech_lm
from ...model.codecs import Codec
from ...model.files import write_whole
from ..calibration import frames_per_step, operations_per_step
from ..checkpoint import difference, filled
from ..config import TrainConfig
from ..loop import for_small_data, train
from ..new_model import new_model
from ..run_folder import METRICS, TOKENIZERS, claim, write_config
from ..runs import PIECES
from ..trainer import Trainer
from .config import TokenizersConfig, run_folders
from .measure import compressed_ratio, continued, likelihoods, round_trip
from .speech import Speech, held_out_speech

LEAST_STEPS = 20  # a run of fewer says nothing
MEASURED = "measured.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CodecResult:
    """One line of the table."""

    codec: str
    fingerprint: str
    sample_rate: int  # Hz
    frame_rate: float  # Hz
    num_codebooks: int
    codebook_size: int
    positions_per_second: float  # positions of the backbone: frames, or with the pattern "flatten" codes
    raw: float  # bits/s from here on: every code at its capacity, log2 of the codebook's size
    unigram: float
    bigram: float
    model: float
    interval: tuple[float, float]  # 95 %, of `model`, bootstrap over utterances
    compressed_ratio: float | None  # bits of a stretch that the model has compressed, over those that it predicts
    steps: int
    trained_s: float  # seconds of speech in all steps together
    minutes: float  # spent in them
    teraflops: float  # 10^12 operations in them
    million_parameters: float
    threads: int
    round_trip: dict[str, float | None]  # as ClipMeasures
    continuations: dict[str, float | None]  # see `continued`

    def quality(self, measure: str) -> float:
        """One of the round trip; NaN where it was not measured."""
        value = self.round_trip[measure]
        return math.nan if value is None else value


def compare_codecs(
    data: Path, codecs: Mapping[str, Codec], out: Path, config: TokenizersConfig
) -> tuple[list[CodecResult], Speech]:
    """Train and measure a model on each codec's codes of the speech in `data`, a folder of recordings.

    Raises ValueError if there is too little speech, if the budget is too small for one of the codecs, or if `out` is of
    other speech or settings.
    """
    with claim(out, TOKENIZERS):
        folders = run_folders(tuple(codecs), out)
        stores = {
            name: open_or_prepare(data, folder / "tokens", codecs[name], PIECES) for name, folder in folders.items()
        }
        speech = held_out_speech(data, stores, config)
        write_config(out, TOKENIZERS, asdict(config) | {"heldout": speech.identity})
        subjects = [Subject(name, codec, stores[name], folders[name], speech, config) for name, codec in codecs.items()]
        for subject in subjects:  # before hours of training
            subject.check_budget()
        return [subject.result() for subject in subjects], speech


class Subject:
    """One codec, the run on its codes, and what is known of them."""

    def __init__(
        self, name: str, codec: Codec, store: TokenStore, folder: Path, speech: Speech, config: TokenizersConfig
    ):
        self.name, self.codec, self.store, self.folder = name, codec, store, folder
        self.speech, self.config = speech, config
        identity = {"codec": codec.fingerprint, "data": store.data_hash, "heldout": speech.identity}
        self.part = Parts(folder / MEASURED, identity | {"settings": identity_of(config)})
        step = self.part("step", self.measure_step)
        self.frames_per_step, self.teraflops_per_step = step["frames"], step["teraflops"]
        self.steps = math.floor(config.budget / self.teraflops_per_step)

    def training(self, steps: int) -> TrainConfig:
        return for_small_data(self.config.training(steps), self.store)

    def measure_step(self) -> dict[str, float]:
        """Frames and operations of a step. Raises ValueError if the speech is too short for one."""
        one = self.training(1)
        model, out = new_model(self.store, one), self.folder / "calibration"
        with Trainer(model, self.codec, self.store, out, one, start="random") as scratch:
            if scratch.batches.num_frames < one.batch.frames_per_batch:
                frames = scratch.batches.num_frames, one.batch.frames_per_batch
                seconds, step_s = (number / self.codec.frame_rate for number in frames)
                raise ValueError(
                    f"{seconds:.1f} s of speech to train on, and a step of '{self.name}' has {step_s:.1f} s; "
                    "add more audio, or give fewer --batch.frames-per-batch"
                )
            return {"frames": frames_per_step(scratch), "teraflops": 3e-12 * operations_per_step(scratch)}

    def check_budget(self) -> None:
        """Raise ValueError if the budget is too small for a run that says anything."""
        step, least = self.teraflops_per_step, LEAST_STEPS * self.teraflops_per_step
        if self.steps < LEAST_STEPS:
            given = f"--budget {self.config.budget:g}: {self.steps} steps with '{self.name}', of {step:.2g} TFLOP each"
            raise ValueError(f"{given}; give at least {1.01 * least:.2g}")

    @cached_property
    def lm(self) -> SpeechGenerator:
        """The trained model; its run goes on where it stood."""
        settings = self.training(self.steps)
        model, out = new_model(self.store, settings), self.folder / "run"
        best = train(model, self.codec, self.store, out, settings, start="random")
        log.info(f"{self.name}: trained; measuring")
        return SpeechGenerator(load_speech_lm(best), self.codec, self.name).to(self.codec.device)

    def minutes(self) -> float:
        """Minutes spent in the steps of the run, by the speed of each stretch of them."""
        lines = [json.loads(line) for line in (self.folder / "run" / METRICS).read_text().splitlines()]
        speeds = [line["frames_per_second"] for line in lines if "frames_per_second" in line]
        return self.steps * self.frames_per_step * sum(1 / speed for speed in speeds) / len(speeds) / 60

    def result(self) -> CodecResult:
        """Train and measure; each part that was measured before is read."""
        part, config, codec, speech = self.part, self.config, self.codec, self.speech
        split = self.training(self.steps).batch.split
        rows = {name: i for i, name in enumerate(self.store.names)}
        scored = [rows[name] for name in speech.scored]
        parameters = part("million_parameters", lambda: sum(p.numel() for p in self.lm.model.parameters()) / 1e6)
        minutes, threads = part("minutes", self.minutes), part("threads", torch.get_num_threads)
        bits = part("likelihood", lambda: likelihoods(self.lm.model, self.store, scored, split))
        ratio = part("compressed", lambda: compressed_ratio(self.lm.model, self.store, scored, config.compressed_s))
        heard = part("round trip", lambda: round_trip(self.name, codec, speech.recordings[: config.clips]))
        said = part("continuations", lambda: continued(self.lm, speech, self.folder / "continuations", config))
        flat = codec.num_codebooks if config.model.pattern == "flatten" else 1
        return CodecResult(
            codec=self.name,
            fingerprint=codec.fingerprint,
            sample_rate=codec.sample_rate,
            frame_rate=codec.frame_rate,
            num_codebooks=codec.num_codebooks,
            codebook_size=codec.codebook_size,
            positions_per_second=codec.frame_rate * flat,
            raw=codec.bitrate,
            **bits | {"interval": tuple(bits["interval"])},
            compressed_ratio=ratio,
            steps=self.steps,
            trained_s=self.steps * self.frames_per_step / codec.frame_rate,
            minutes=minutes,
            teraflops=self.steps * self.teraflops_per_step,
            million_parameters=parameters,
            threads=threads,
            round_trip=heard,
            continuations=said,
        )


class Parts:
    """Parts of a result in a JSON file: each is made once.

    Raises ValueError where the file is not one of these, or of another codec, other speech or other settings.
    """

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.path, self.identity = path, identity
        self.found: dict[str, Any] = {}
        if not path.exists():
            return
        try:
            content = json.loads(path.read_text())
            held, self.found = dict(content["identity"]), dict(content["found"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: is not what codeclm tokenizers writes; give another --out") from None
        known = {"settings": identity_of(TokenizersConfig())}  # a setting that was not known has its default
        if other := difference(filled(held, known), self.identity):
            raise ValueError(f"{path}: is of another comparison; give another --out, or the same settings ({other})")

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.found:
            self.found[name] = json_safe(make())
            write_whole(self.path, json.dumps({"identity": self.identity, "found": self.found}, indent=2) + "\n")
        return self.found[name]


def identity_of(config: TokenizersConfig) -> dict[str, Any]:
    """The settings that results must share to stand in one table, as a file returns them."""
    settings = {name: value for name, value in asdict(config).items() if name != "device"}
    return json.loads(json.dumps(settings))
