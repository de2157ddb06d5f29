"""How models are trained, as plain dataclasses; importing them needs neither torch nor transformers."""

import re
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from ..data.config import FormShares, HeldoutBy
from ..data.number_words import check_language
from ..data.phonemes import check_accent
from ..model.dial import batch_by_layers, check_layers, shape_by_layers
from ..model.presets import PRESETS, Preset
from ..model.shapes import BACKBONE, DEPTH, DepthConfig, Pattern, TextConfig, TextLayout, TransformerConfig

Schedule = Literal["wsd", "cosine"]  # how the learning rate goes on after its warm-up
Track = Literal["auto", "tensorboard", "wandb", "trackio", "none"]
OptimizerKind = Literal["adamw", "muon"]


def check_device(name: str) -> None:
    """Raise ValueError unless it is the name of a device, before anything heavy is imported to look for it."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"device '{name}' is unknown; choose one of auto, cpu, cuda, mps, or cuda:N")


def check_steps(**numbers: int) -> None:
    """Raise ValueError unless each is at least 1."""
    if min(numbers.values()) < 1:
        given = ", ".join(f"{name} {number}" for name, number in numbers.items())
        raise ValueError(f"{given}: each must be at least 1")


@dataclass(frozen=True)
class OptimizerConfig:
    """How a gradient becomes a step; the schedule is schedule.py's, the optimizer optim.py's."""

    learning_rate: float = 1e-3  # peak learning rate, after the warm-up
    kind: OptimizerKind = "adamw"  # adamw, or muon for the matrices of the blocks and AdamW for all else
    rate_width: int = 256  # the matrices of a wider model learn at the rate x N / its width (0: at the rate itself)
    schedule: Schedule = "wsd"  # wsd: the peak, and a decay at the end, so that a run can be extended; or a cosine
    decay_share: float = 0.2  # share of the steps, the last ones, in which "wsd" decays
    final_share: float = 0.05  # learning rate of the last step, as a share of the peak
    warmup_steps: int = 100  # steps of linear warm-up
    weight_decay: float = 0.1  # weight decay of matrices; embeddings and norms have none
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW's decay rates, for the averages of the gradient and of its square
    clip_norm: float = 1.0  # the gradient is clipped to this norm

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be more than 0, and finite")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must not be negative")
        if self.rate_width < 0:
            raise ValueError(
                f"rate_width is {self.rate_width}; it must be at least 1, or 0: the same rate at any width"
            )
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"decay_share is {self.decay_share}; it must be more than 0 and at most 1")


@dataclass(frozen=True)
class BatchConfig:
    """The data of one step; a batch is a pure function of (seed, step)."""

    frames_per_batch: int = 4096  # frames of a step, over all processes, padding included
    # frames that a process computes at a time, against running out of memory; 0: its whole share of a step
    frames_per_microbatch: int = 0
    max_frames: int = 512  # longest piece of an utterance, in frames; a row holds several shorter ones
    voice_power: float = 1.0  # below 1, voices with little speech are drawn more often (voice: first folder of a name)
    # share of the rows of which the model hears and learns a random number of leading codebooks only
    codebook_dropout: float = 0.0
    mix: tuple[float, ...] = ()  # share of each DATA in the batches, as 2 1; empty: by their length
    heldout_share: float = 0.02  # share of the speech, in seconds, held out to choose the best weights
    # hold out whole recordings, or all that a speaker says, or what lies in DATA's heldout/ (and train on its train/)
    heldout_by: HeldoutBy = "recording"
    heldout_seed: int = 0  # which recordings or speakers are held out, whatever the seed of the run
    heldout_frames: int = 100_000  # held-out frames scored at an evaluation, the first utterances by hash (0: all)
    text: FormShares = FormShares()

    def __post_init__(self) -> None:
        if min(self.frames_per_batch, self.max_frames) < 1:
            given = f"frames_per_batch {self.frames_per_batch}, max_frames {self.max_frames}"
            raise ValueError(f"{given}: each must be at least 1")
        if self.frames_per_microbatch < 0:
            raise ValueError(f"frames_per_microbatch is {self.frames_per_microbatch}; it must be at least 1, or 0: all")
        if not 0 <= self.codebook_dropout <= 1:
            raise ValueError(f"codebook_dropout is {self.codebook_dropout}; it must be from 0 to 1")
        if not all(0 < weight < float("inf") for weight in self.mix):
            raise ValueError(f"mix is {' '.join(map(str, self.mix))}; each weight must be more than 0, and finite")
        if not 0 < self.heldout_share < 1:
            raise ValueError(f"heldout_share is {self.heldout_share}; it must lie between 0 and 1")
        if self.heldout_frames < 0:
            raise ValueError(f"heldout_frames is {self.heldout_frames}; it must be at least 1, or 0: all")

    @property
    def split(self) -> tuple[float, int, HeldoutBy]:
        """Arguments of `split_heldout`."""
        return self.heldout_share, self.heldout_seed, self.heldout_by


@dataclass(frozen=True)
class TextOptions:
    """The text stream of a new model, if it has one; transcripts are the .txt files beside the audio."""

    layout: Literal["none", TextLayout] = "none"  # text before the audio, after it, or beside it; mixed: the first two
    # size of the sentencepiece tokenizer, which is trained on the training transcripts; 0: characters
    vocab_size: int = 2000
    lead_s: float = 0.08  # a token comes N seconds before its sound, where it is beside it ("timed") and is to be said
    lag_s: float = 0.4  # the same, N seconds after its sound, where it is written down
    # tokens that a text to be said runs ahead of its sound ("timed"): each step is told them all, and so need not find
    # its place in the text
    lookahead: int = 10
    numbers: str = ""  # language in which numbers are told in words, a code such as en; empty: digits stay digits
    # accent in which texts to be said are told as phonemes, en-us or en-gb (needs the extra "phonemes"); empty: as they
    # are written, which texts to be written down always are
    phonemes: str = ""

    def __post_init__(self) -> None:
        if self.numbers:
            check_language(self.numbers)
        if self.phonemes:
            check_accent(self.phonemes)
        if self.layout != "none":
            self.of_model(self.vocab_size, "")

    def of_model(self, vocab_size: int, tokenizer: str) -> TextConfig:
        """tokenizer: its fingerprint. Raises ValueError for what no model has."""
        assert self.layout != "none"
        ahead = self.lookahead if self.layout == "timed" else 0
        return TextConfig(
            vocab_size, layout=self.layout, tokenizer=tokenizer, lead_s=self.lead_s, lag_s=self.lag_s, lookahead=ahead,
            numbers=self.numbers, phonemes=self.phonemes,
        )  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a new SpeechLM; K and V come from the codec of the data."""

    preset: Preset = "default"  # sizes of backbone and depth decoder, from model/presets.py
    # blocks of the backbone: width, heads, depth decoder, learning rate and batch follow by rule (0: see the preset)
    layers: int = 0
    pattern: Pattern = "depth"  # how the codebooks of a frame are predicted
    backbone: TransformerConfig = BACKBONE  # shape of the temporal backbone, with the preset "default"
    depth: DepthConfig = DEPTH  # shape of the depth decoder (pattern "depth"), with the preset "default"
    text: TextOptions = TextOptions()
    delays: tuple[int, ...] = ()  # frames each codebook lags; empty: none, or 0, 1, 2, ... for the pattern "delay"
    # begin with embeddings that sum to variance 1, to which blocks add nothing yet: slower in the first minutes, but
    # text is learned with small batches
    unit_start: bool = False

    def __post_init__(self) -> None:
        if self.layers:
            check_layers(self.layers)
            if self.preset != "default":
                raise ValueError(f"layers and preset '{self.preset}' both choose the sizes; give one of them")

    @property
    def parts(self) -> tuple[TransformerConfig, DepthConfig]:
        """Backbone and depth decoder, whose group_size is a choice with any sizes."""
        if self.preset == "default" and not self.layers:
            return self.backbone, self.depth
        backbone, depth = shape_by_layers(self.layers) if self.layers else PRESETS[self.preset]
        return backbone, replace(depth, group_size=self.depth.group_size)


@dataclass(frozen=True)
class LossConfig:
    """Weights of the parts of the training loss; reported numbers are unweighted."""

    codebooks: tuple[float, ...] = ()  # weight of each codebook; empty: 1 for all
    text: float = 1.0  # weight of the text tokens
    # learn of a text to be said ("timed") only when its tokens are told, not which: nothing ever draws that
    time_only: bool = False
    # learn the codes of speech that is written down ("timed"), too; without them such speech costs less time
    written_codes: bool = True
    z_loss: float = 0.0  # weight of the squared log-normaliser, which keeps logits from drifting in long runs


@dataclass(frozen=True)
class LearningConfig:
    """How weights are learned, for a run of any length and a model of any shape."""

    device: str = "auto"  # auto (a GPU where there is one), cpu, cuda, cuda:N or mps
    depth_fraction: float = 1.0  # share of the frames that train the depth decoder (unbiased; less is faster)
    depth_chunk: int = 0  # frames of depth activations in memory at a time; 0: 128 on a CPU, on a GPU what it holds
    input_dropout: float = 0.0  # share of the input codes hidden from the model, against overfitting
    # share of the frames that the backbone does not hear, so that it minds the text beside them
    frame_dropout: float = 0.0
    dropout: float = 0.0  # dropout on the output of each attention and feed-forward part
    bf16: bool = True  # bfloat16 matrix products where the hardware is fast at them
    # compute the backbone's blocks again in the backward pass instead of keeping their activations: less memory, slower
    activation_checkpointing: bool = False
    # several processes have all weights each (ddp), or a part of them (fsdp): less memory, more traffic
    sharding: Literal["ddp", "fsdp"] = "ddp"
    compile: bool = False  # fuse the blocks' operations; needs a C++ compiler, and a minute or two at the start
    seed: int = 0  # random seed of weights, batches and dropout; same seed, same machine: same weights
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.depth_chunk < 0:
            raise ValueError(f"depth_chunk is {self.depth_chunk}; it must be at least 1, or 0: by the device")
        if not 0 < self.depth_fraction <= 1:
            raise ValueError(f"depth_fraction is {self.depth_fraction}; it must be more than 0 and at most 1")
        shares = {name: getattr(self, name) for name in ("input_dropout", "frame_dropout", "dropout")}
        if not all(0 <= share < 1 for share in shares.values()):
            given = ", ".join(f"{name} {share}" for name, share in shares.items())
            raise ValueError(f"{given}: each must be at least 0 and less than 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to 2**32 - 1")


@dataclass(frozen=True)
class RunConfig(LearningConfig):
    """One training run of an existing model."""

    steps: int = 2000  # optimizer steps of the whole run
    evaluate_every: int = 250  # steps between evaluations on the held-out utterances
    save_every: int = 250  # steps between checkpoints
    save_minutes: float = 5.0  # minutes between checkpoints, where that comes sooner
    patience: int = 0  # stop after this many evaluations without a better one (0: never)
    ema_decay: float = 0.0  # decay of the running average of the weights, which is then the result (0: none; 0.999)
    check: bool = False  # look for what goes wrong in most runs that go wrong, and do not run
    skip_bad: bool = False  # leave out a batch whose loss is not finite, instead of stopping
    canary: int = 8  # held-out prompts that are continued at evaluations, to measure and to hear them (0: none)
    canary_share: float = 0.05  # share of the time of training that they may take (1: at every evaluation)
    track: Track = "auto"  # where curves are drawn: auto is TensorBoard where installed; wandb and trackio stay local

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(steps=self.steps, evaluate_every=self.evaluate_every, save_every=self.save_every)
        if self.canary < 0 or not 0 <= self.canary_share <= 1:
            given = f"canary is {self.canary}, canary_share {self.canary_share}"
            raise ValueError(f"{given}: canary must be at least 0, canary_share from 0 to 1")
        if self.patience < 0 or not 0 <= self.ema_decay < 1:
            given = f"patience is {self.patience}, ema_decay {self.ema_decay}"
            raise ValueError(f"{given}: patience must be at least 0, ema_decay at least 0 and less than 1")
        if not self.save_minutes > 0:
            raise ValueError(f"save_minutes is {self.save_minutes}; it must be more than 0")


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """One training run of a new model."""

    model: ModelConfig = ModelConfig()

    def __post_init__(self) -> None:
        """With `layers`, batch and learning rate are those of the rule, unless they are given."""
        super().__post_init__()
        if not self.model.layers:
            return
        frames, rate = batch_by_layers(self.model.layers)
        if self.batch.frames_per_batch == BatchConfig.frames_per_batch:
            object.__setattr__(self, "batch", replace(self.batch, frames_per_batch=frames))
        if self.optimizer.learning_rate == OptimizerConfig.learning_rate:
            object.__setattr__(self, "optimizer", replace(self.optimizer, learning_rate=rate))


def whole_run(config: LearningConfig, model: ModelConfig, steps: int, **settings: Any) -> TrainConfig:
    """A run of a comparison, looked at and saved at its end."""
    shared = {field.name: getattr(config, field.name) for field in fields(LearningConfig)}
    shared["optimizer"] = replace(config.optimizer, warmup_steps=min(config.optimizer.warmup_steps, steps // 4))
    return TrainConfig(**shared | settings, model=model, steps=steps, evaluate_every=steps, save_every=steps)
