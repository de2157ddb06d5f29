"""One small model trained on the codes of each codec: the same speech, the same held-out part, the same operations.

    OUT/CODEC/tokens, OUT/CODEC/run     the codes, and the training on them
    OUT/CODEC/measured.json             all that was measured of it

A part that is there is not made again, so that the comparison goes on where it was stopped, and codecs may join later.
K codebooks, T frames.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...data.audio import audio_header
from ...data.preparation import open_or_prepare
from ...data.sources import find_sources
from ...data.split import name_hash, split_heldout
from ...data.token_store import TokenStore
from ...inference.codec.report import codec_report
from ...inference.compress.codes import compress_codes, predicted_bits
from ...inference.config import EvaluateConfig
from ...inference.evaluate.baselines import CountBaselines
from ...inference.evaluate.continuations import continuation_report
from ...inference.evaluate.report import likelihood
from ...inference.evaluate.score import score_store
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

LEAST_STEPS = 20  # of a run that says anything
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
    positions_per_second: float  # of the backbone: frames, or with the pattern "flatten" codes
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
    continuations: dict[str, float]  # see `continued`


@dataclass(frozen=True)
class Speech:
    """The held-out speech that all codecs are measured on."""

    total_s: float  # of all speech
    scored: list[str]  # names of utterances, by hash
    recordings: list[Path]  # the files that they are from, by hash
    prompts: list[Path]  # those that are continued

    @property
    def identity(self) -> str:
        return hashlib.sha256("\n".join(self.scored).encode()).hexdigest()


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
            name: open_or_prepare(data, folders[name] / "tokens", codec, PIECES) for name, codec in codecs.items()
        }
        speech = held_out_speech(data, stores, config)
        write_config(out, TOKENIZERS, asdict(config) | {"heldout": speech.identity})
        plans = {name: Plan.of(name, codecs[name], store, folders[name], config) for name, store in stores.items()}
        return [measure(plan, speech, config) for plan in plans.values()], speech


def held_out_speech(data: Path, stores: Mapping[str, TokenStore], config: TokenizersConfig) -> Speech:
    """The held-out utterances of all stores, which must be the same; at most `heldout_minutes` of them, by hash.

    Raises ValueError if stores differ, or if there is too little speech.
    """
    splits = {}
    for name, store in stores.items():
        chosen = for_small_data(config.training(1), store).batch.split
        splits[name] = {store.names[i] for i in split_heldout(store, *chosen)[1]}
    (first, store), *others = stores.items()
    for name, other in others:
        differing = set(store.names) ^ set(other.names) or splits[first] ^ splits[name]
        if differing:
            raise ValueError(
                f"{data}: '{min(differing)}' is not the same to '{first}' and '{name}'; leave that file out"
            )
    seconds = {name: int(n) / store.codec.sample_rate for name, n in zip(store.names, store.num_samples, strict=True)}
    scored, total = [], 0.0
    for name in sorted(splits[first], key=name_hash):
        total += seconds[name]
        if len(scored) >= 2 and total > 60 * config.heldout_minutes:
            break
        scored.append(name)
    if len(scored) < 2:
        raise ValueError(f"{data}: holds too little speech; at least two recordings must be held out: add more audio")
    files = {source.name: source.audio for source in find_sources(data).sources if isinstance(source.audio, Path)}
    of_scored = dict.fromkeys(name if name in files else name.rpartition("#")[0] for name in scored)
    recordings = [files[name] for name in of_scored]
    long_enough = [file for file in recordings if audio_header(file)[1] >= config.prompt_s]
    if config.prompts and not long_enough:
        raise ValueError(
            f"{data}: no held-out recording lasts --prompt-s {config.prompt_s:g} s; give less, or more audio"
        )
    return Speech(sum(seconds.values()), scored, recordings, long_enough[: config.prompts])


@dataclass(frozen=True)
class Plan:
    """The run on the codes of one codec, as long as its budget lasts."""

    name: str
    codec: Codec
    store: TokenStore
    folder: Path
    config: TrainConfig
    frames_per_step: float  # without padding
    teraflops_per_step: float

    @staticmethod
    def of(name: str, codec: Codec, store: TokenStore, folder: Path, config: TokenizersConfig) -> "Plan":
        """Raises ValueError if the budget is too small, or the speech too short for a step."""
        one = for_small_data(config.training(1), store)
        with Trainer(new_model(store, one), codec, store, folder / "calibration", one, start="random") as scratch:
            frames, teraflops = frames_per_step(scratch), 3e-12 * operations_per_step(scratch)
            to_train = scratch.batches.num_frames
        steps = math.floor(config.budget / teraflops)
        if to_train < frames:
            step_s, seconds = (number / codec.frame_rate for number in (one.batch.frames_per_batch, to_train))
            raise ValueError(
                f"{seconds:.1f} s of speech to train on, and a step of '{name}' has {step_s:.1f} s; add more audio, "
                "or give fewer --batch.frames-per-batch"
            )
        if steps < LEAST_STEPS:
            raise ValueError(
                f"--budget {config.budget:g}: {steps} steps with '{name}', of {teraflops:.2g} TFLOP each; "
                f"give at least {LEAST_STEPS * teraflops:.2g}"
            )
        settings = for_small_data(config.training(steps), store)
        return Plan(name, codec, store, folder, settings, frames, teraflops)

    def run(self) -> SpeechGenerator:
        """Train, or go on, or only read what is finished."""
        model, out = new_model(self.store, self.config), self.folder / "run"
        best = train(model, self.codec, self.store, out, self.config, start="random")
        return SpeechGenerator(load_speech_lm(best).to(self.codec.device), self.codec, self.name)

    @property
    def minutes(self) -> float:
        """Minutes spent in the steps of the run, by the speed of each stretch of them."""
        lines = [json.loads(line) for line in (self.folder / "run" / METRICS).read_text().splitlines()]
        speeds = [line["frames_per_second"] for line in lines if "frames_per_second" in line]
        return self.config.steps * self.frames_per_step * sum(1 / speed for speed in speeds) / len(speeds) / 60


def measure(plan: Plan, speech: Speech, config: TokenizersConfig) -> CodecResult:
    """Train and measure; each part that was measured before is read."""
    codec, store = plan.codec, plan.store
    settings = {name: value for name, value in asdict(config).items() if name != "device"}
    identity = {"codec": codec.fingerprint, "data": store.data_hash, "heldout": speech.identity, "settings": settings}
    parts = Parts(plan.folder / MEASURED, json.loads(json.dumps(identity)))  # as a file returns it
    lm = plan.run()
    log.info(f"{plan.name}: trained; measuring")
    rows = {name: i for i, name in enumerate(store.names)}
    scored = [rows[name] for name in speech.scored]
    bits = parts("likelihood", lambda: likelihoods(lm, store, scored, plan.config))
    compressed = parts("compressed", lambda: compressed_ratio(plan, store, scored, config.compressed_s))
    heard = parts("round trip", lambda: round_trip(plan.name, codec, speech.recordings[: config.clips]))
    continuations = parts("continuations", lambda: continued(lm, speech, plan.folder / "continuations", config))
    flat = store.codec.num_codebooks if plan.config.model.pattern == "flatten" else 1
    return CodecResult(
        codec=plan.name,
        fingerprint=codec.fingerprint,
        sample_rate=codec.sample_rate,
        frame_rate=codec.frame_rate,
        num_codebooks=codec.num_codebooks,
        codebook_size=codec.codebook_size,
        positions_per_second=codec.frame_rate * flat,
        raw=codec.bitrate,
        **bits | {"interval": tuple(bits["interval"])},
        compressed_ratio=compressed,
        steps=plan.config.steps,
        trained_s=plan.config.steps * plan.frames_per_step / codec.frame_rate,
        minutes=parts("minutes", lambda: plan.minutes),
        teraflops=plan.config.steps * plan.teraflops_per_step,
        million_parameters=sum(parameter.numel() for parameter in lm.model.parameters()) / 1e6,
        threads=parts("threads", torch.get_num_threads),
        round_trip=heard,
        continuations=continuations,
    )


class Parts:
    """Parts of a result in a JSON file: each is measured once.

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
        known = {"settings": json.loads(json.dumps(asdict(TokenizersConfig())))}  # a setting that was not known
        if other := difference(filled(held, known), identity):
            raise ValueError(f"{path}: is of another comparison; give another --out, or the same settings ({other})")

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.found:
            self.found[name] = json_safe(make())
            write_whole(self.path, json.dumps({"identity": self.identity, "found": self.found}, indent=2) + "\n")
        return self.found[name]


def likelihoods(lm: SpeechGenerator, store: TokenStore, scored: Sequence[int], config: TrainConfig) -> dict[str, Any]:
    """bits/s of the model, and of baselines counted on the speech that it was trained on."""
    rate, how = store.codec.frame_rate, EvaluateConfig()
    scores = score_store(lm.model, store, how, scored)
    training, _ = split_heldout(store, *config.batch.split)
    info = store.codec
    counted = CountBaselines((store.codes(int(i)) for i in training), info.codebook_size, info.num_codebooks)
    nats = [counted.nll(store.codes(i)) for i in scored]
    unigram, bigram = (sum(row[which].sum() for row in nats) for which in (0, 1))
    to_bits = rate / math.log(2) / scores.num_frames.sum()
    found = likelihood(scores.nll, scores.num_frames, rate, how)
    return {
        "unigram": float(unigram * to_bits),
        "bigram": float(bigram * to_bits),
        "model": found.bits_per_second,
        "interval": found.interval,
    }


def compressed_ratio(plan: Plan, store: TokenStore, scored: Sequence[int], seconds: float) -> float | None:
    """Bits that `codec compress` makes of the first seconds of a held-out utterance, over those that are predicted."""
    if not seconds:
        return None
    num_frames = max(1, round(seconds * store.codec.frame_rate))
    utterance = next((i for i in scored if store.num_frames[i] >= num_frames), scored[0])
    codes = torch.tensor(store.codes(utterance)[:num_frames].T.astype("int64"))
    model = load_speech_lm(plan.folder / "run" / "model").double()
    payload = compress_codes(model, [codes], progress=True)[0]
    return 8 * len(payload) / predicted_bits(model, codes)


def round_trip(name: str, codec: Codec, recordings: Sequence[Path]) -> dict[str, float]:
    """How close recordings stay to themselves: the means that `codec report` prints."""
    return asdict(codec_report(recordings, {name: codec}, anchors=False).codecs[0].mean)


def continued(lm: SpeechGenerator, speech: Speech, out: Path, config: TokenizersConfig) -> dict[str, float]:
    """Continue held-out recordings, kept in `out` -> the share that passes each check, and all of them."""
    if not speech.prompts:
        return {}
    report = continuation_report(lm, speech.prompts, config.prompt_s, config.duration_s, config.seed, False, out)
    checks = [item.checks for item in report.continuations]
    shares = {name: sum(asdict(check)[name] for check in checks) / len(checks) for name in asdict(checks[0])}
    return {"prompts": len(checks), "passed": sum(check.passed for check in checks) / len(checks)} | shares
