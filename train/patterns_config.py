"""How patterns are compared, as a plain dataclass."""

import re
from dataclasses import dataclass, replace

from ..model.shapes import PATTERNS
from .config import BatchConfig, LearningConfig, ModelConfig, OptimizerConfig, TrainConfig, whole_run

GROUPED = r"depth-[1-9]\d*"  # the name, in comparisons, of pattern "depth" with groups of codebooks


@dataclass(frozen=True)
class PatternsConfig(LearningConfig):
    """How the patterns are compared."""

    minutes: float = 3.0  # minutes of training per pattern
    # patterns to compare, the first one's run sets the FLOP budget; depth-2: two codebooks in a pass of the decoder
    patterns: tuple[str, ...] = PATTERNS
    generated_frames: int = 50  # frames generated to time each pattern
    model: ModelConfig = ModelConfig(preset="tiny")
    batch: BatchConfig = BatchConfig(frames_per_batch=1024, max_frames=128, heldout_share=0.1)
    # as it always was, so that patterns that join later stand beside the earlier ones
    optimizer: OptimizerConfig = OptimizerConfig(warmup_steps=50, schedule="cosine", rate_width=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.minutes < float("inf") or self.generated_frames < 1:
            raise ValueError(f"minutes ({self.minutes}) must be more than 0, generated_frames at least 1")
        unknown = sorted(name for name in self.patterns if name not in PATTERNS and not re.fullmatch(GROUPED, name))
        if unknown or not self.patterns:
            choices = f"{', '.join(PATTERNS)}, or depth-2, depth-3, .. for groups of codebooks"
            raise ValueError(f"patterns {unknown or 'are missing'}; choose from {choices}")
        model = self.model
        if model.pattern != "depth" or model.depth.group_size > 1 or model.text.layout != "none":
            given = "model.pattern, model.depth.group_size and model.text"
            raise ValueError(f"{given} do nothing here: the patterns are compared, without text")

    def training(self, pattern: str, steps: int) -> TrainConfig:
        """The run of one pattern, looked at and saved at its end."""
        kind, _, group_size = pattern.partition("-")
        depth = replace(self.model.depth, group_size=int(group_size or 1))
        return whole_run(self, replace(self.model, pattern=kind, depth=depth), steps)  # pyright: ignore[reportArgumentType]
