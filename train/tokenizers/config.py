"""How codecs are compared as tokenizers, as a plain dataclass; importing it needs neither torch nor transformers."""

from dataclasses import dataclass
from pathlib import Path

from ...model.shapes import DepthConfig, TransformerConfig
from ..config import BatchConfig, LearningConfig, ModelConfig, OptimizerConfig, TrainConfig, check_steps, whole_run

BACKBONE = TransformerConfig(dim=128, num_layers=4, num_heads=4, num_kv_heads=4, ff_dim=384)
DEPTH = DepthConfig(dim=96, num_layers=2, num_heads=4, num_kv_heads=4, ff_dim=256)

# training looks at little held-out speech: what is reported is scored after it
BATCH = BatchConfig(frames_per_batch=512, max_frames=256, heldout_frames=4096)


@dataclass(frozen=True)
class TokenizersConfig(LearningConfig):
    """One model, trained on the codes of each codec."""

    budget: float = 10.0  # 10^12 floating-point operations of training for each codec
    heldout_minutes: float = 2.0  # minutes of held-out speech that are scored, the first recordings by hash
    clips: int = 20  # held-out recordings that are sent through each codec, to measure what comes back
    prompts: int = 4  # held-out recordings that each model continues (0: none)
    prompt_s: float = 2.0  # seconds of each that are the prompt
    duration_s: float = 2.0  # seconds of each continuation
    compressed_s: float = 2.0  # seconds of held-out speech that each model compresses, to check its bits (0: none)
    depth_fraction: float = 0.3  # share of the frames that train the depth decoder (unbiased; less is faster)
    model: ModelConfig = ModelConfig(backbone=BACKBONE, depth=DEPTH)
    batch: BatchConfig = BATCH
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-3, warmup_steps=50, schedule="cosine")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("budget", "heldout_minutes", "prompt_s", "duration_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0, and finite")
        if not 0 <= self.compressed_s < float("inf") or self.prompts < 0:
            given = f"compressed_s is {self.compressed_s}, prompts {self.prompts}"
            raise ValueError(f"{given}: each must be at least 0, and finite")
        check_steps(clips=self.clips)
        if self.model.text.layout != "none":
            raise ValueError("model.text does nothing here: the codecs are compared without text")
        if self.model.delays:
            raise ValueError("model.delays does nothing here: codecs differ in their number of codebooks")

    def training(self, steps: int) -> TrainConfig:
        """The run on the codes of one codec."""
        return whole_run(self, self.model, steps, canary=0)


def run_folders(codecs: tuple[str, ...], out: Path) -> dict[str, Path]:
    """The folder in `out` of each codec, whose name may be a path. Raises ValueError if two would have the same."""
    folders = {}
    for name in codecs:
        folder = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip(".-")
        if name in folders or out / folder in folders.values():
            raise ValueError(f"--codec: two codecs would both have the folder '{folder}'; name each once")
        folders[name] = out / folder
    return folders
