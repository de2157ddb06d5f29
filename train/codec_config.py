"""How the codec is trained, as a plain dataclass."""

from dataclasses import dataclass, field

from ..model.codec_shapes import SpectralConfig
from .config import check_device, check_steps


@dataclass(frozen=True)
class CodecTrainConfig:
    """How the codec is trained. Losses are weighted sums of the terms of train/codec_losses.py and its neighbours."""

    steps: int = 8_000  # optimizer steps of the whole run
    start_from: str = ""  # codec whose weights and codebooks the run starts from, such as spectral; empty: random ones
    device: str = "auto"  # auto (a GPU where there is one), cpu, cuda, cuda:N or mps
    batch_size: int = 10  # crops per step, over all processes
    crop_frames: int = 32  # length of a crop, in codec frames
    learning_rate: float = 1e-3  # peak learning rate, after the warm-up
    warmup_steps: int = 100  # steps of linear warm-up
    decay_from: float = 0.5  # share of the steps after which the learning rate decays, along a cosine, to a twentieth
    weight_decay: float = 0.01  # weight decay of AdamW
    quantize_from: float = 0.06  # share of the steps after which the codebooks are initialised by k-means and used
    quantizer_dropout: float = 0.25  # share of rows trained with a random number of codebooks
    adversarial_from: float = 0.8  # share of the steps after which the discriminators join
    adversarial_rows: int = 4  # rows of the batch given to the discriminators
    discriminator_windows: tuple[int, ...] = (240, 512, 1024)  # STFT windows of the discriminators, in samples
    discriminator_periods: tuple[int, ...] = ()  # samples per period: 2 3 5 7 11 is usual, and too slow for a CPU
    mel_weight: float = 45.0  # weight of the distance between log-mel spectrograms
    difference_weight: float = 3.0  # weight of the difference in loudness
    added_weight: float = 3.0  # weight of loudness that the codec adds
    envelope_weight: float = 15.0  # weight of the distance between spectral envelopes
    level_weight: float = 5.0  # weight of the distance between levels
    pitch_weight: float = 60.0  # weight of the distance between pitches
    commitment_weight: float = 1.0  # weight of the distance between latents and their quantized values
    adversarial_weight: float = 1.0  # weight of the discriminators' verdict
    matching_weight: float = 2.0  # weight of the distance between the discriminators' features
    teacher: str = ""  # HuBERT or WavLM (hub id or folder) whose features codebook 0 learns; empty: none
    teacher_weight: float = 5.0  # weight of the teacher's features
    balance: bool = False  # treat the weights of the audio losses as shares of the gradient instead of factors
    balanced_norm: float = 10.0  # norm of the gradient that --balance shares out
    ema_decay: float = 0.999  # decay of the running average of the weights, which is the result
    max_hours_per_voice: float = 2.0  # hours of speech used per voice at most
    # voices used at most, chosen by their names alone: more of them are the same ones and others (0: all)
    max_voices: int = 0
    bf16: bool = True  # bfloat16 matrix products where the processor has instructions for them
    heldout: str = ""  # folder of held-out audio to measure and to render; empty: none
    evaluate_every: int = 500  # steps between evaluations on --heldout
    log_every: int = 50  # steps between lines of metrics.jsonl
    save_every: int = 500  # steps between checkpoints
    save_minutes: float = 5.0  # minutes between checkpoints, where that comes sooner
    seed: int = 0  # random seed of weights and crops; same seed, same machine: same codec
    codec: SpectralConfig = field(default_factory=SpectralConfig)

    def __post_init__(self) -> None:
        check_device(self.device)
        check_steps(steps=self.steps, batch_size=self.batch_size, crop_frames=self.crop_frames)
        check_steps(evaluate_every=self.evaluate_every, log_every=self.log_every, save_every=self.save_every)
        check_steps(warmup_steps=self.warmup_steps)
        if not self.save_minutes > 0 or not 0 < self.learning_rate < float("inf"):
            given = f"save_minutes is {self.save_minutes}, learning_rate {self.learning_rate}"
            raise ValueError(f"{given}: each must be more than 0")
        if self.max_voices < 0:
            raise ValueError(f"max_voices is {self.max_voices}; it must be at least 1, or 0: all")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to 2**32 - 1")
