"""How models are trained, as plain dataclasses; importing them needs neither torch nor transformers."""

from dataclasses import dataclass, field

from ..model.config import BACKBONE, DEPTH, SpectralConfig, TransformerConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine to `final_share` of the learning rate."""

    learning_rate: float = 1e-3
    final_share: float = 0.05
    warmup_steps: int = 100
    weight_decay: float = 0.1  # of matrices; embeddings and norms have none
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be more than 0, and finite")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must not be negative")


@dataclass(frozen=True)
class BatchConfig:
    """What one step sees; a batch is a pure function of (seed, step)."""

    frames_per_batch: int = 4096  # over all processes, padding included
    max_frames: int = 512  # longer utterances are cut
    voice_power: float = 1.0  # below 1, voices (first folder of the names) with little speech are seen more often
    heldout_share: float = 0.02  # of the utterances; kept out of training and used to choose the best weights

    def __post_init__(self) -> None:
        if min(self.frames_per_batch, self.max_frames) < 1:
            given = f"frames_per_batch {self.frames_per_batch}, max_frames {self.max_frames}"
            raise ValueError(f"{given}: each must be at least 1")
        if not 0 < self.heldout_share < 1:
            raise ValueError(f"heldout_share is {self.heldout_share}; it must lie between 0 and 1")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a new SpeechLM; K and V come from the data's codec."""

    backbone: TransformerConfig = BACKBONE
    depth: TransformerConfig = DEPTH
    delays: tuple[int, ...] = ()  # frames each codebook lags; empty: none lags


@dataclass(frozen=True)
class TrainConfig:
    """One training run, from nothing or from a model."""

    steps: int = 2000
    depth_fraction: float = 1.0  # share of the frames on which codebooks 1..K-1 are trained (unbiased)
    input_dropout: float = 0.0  # share of the codes that the model does not see as input: against learning by heart
    dropout: float = 0.0  # of what each block adds to the residual stream
    evaluate_every: int = 250  # steps between looks at the held-out utterances
    save_every: int = 250  # steps between checkpoints
    bf16: bool = True  # matrix products in bfloat16 where that is fast
    compile: bool = False  # fuse the blocks' operations: needs a C++ compiler and a minute or two at the start
    seed: int = 0
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        if min(self.steps, self.evaluate_every, self.save_every) < 1:
            given = f"steps {self.steps}, evaluate_every {self.evaluate_every}, save_every {self.save_every}"
            raise ValueError(f"{given}: each must be at least 1")
        if not 0 < self.depth_fraction <= 1:
            raise ValueError(f"depth_fraction is {self.depth_fraction}; it must be more than 0 and at most 1")
        if not 0 <= self.input_dropout < 1 or not 0 <= self.dropout < 1:
            given = f"input_dropout {self.input_dropout}, dropout {self.dropout}"
            raise ValueError(f"{given}: each must be at least 0 and less than 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to 2**32 - 1")


FINETUNE = TrainConfig(
    steps=320,
    input_dropout=0.1,
    evaluate_every=40,
    save_every=80,
    batch=BatchConfig(frames_per_batch=2048, heldout_share=0.1),
    optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=20),
)


@dataclass(frozen=True)
class CodecTrainConfig:
    """How the codec is trained. Losses are weighted sums of the terms of train/codec_losses.py."""

    steps: int = 4_200
    batch_size: int = 16
    crop_frames: int = 32  # codec frames a crop is long
    learning_rate: float = 6e-4  # at the top of the schedule; cosine to a twentieth
    warmup_steps: int = 300
    weight_decay: float = 0.01
    quantizer_dropout: float = 0.25  # share of rows that use a random number of codebooks
    adversarial_from: float = 0.6  # share of the steps after which the discriminators join
    adversarial_rows: int = 6  # rows of the batch that the discriminators see
    mel_weight: float = 45.0
    complex_weight: float = 3.0
    commitment_weight: float = 0.25  # the codebook term gets four times as much
    adversarial_weight: float = 1.0
    matching_weight: float = 2.0
    ema_decay: float = 0.999  # of the weights that are kept
    max_hours_per_voice: float = 2.0
    bf16: bool = True  # matrix products in bfloat16 where the processor has instructions for them
    save_every: int = 500
    seed: int = 0
    codec: SpectralConfig = field(default_factory=SpectralConfig)
