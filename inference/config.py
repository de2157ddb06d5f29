"""How models are used, as plain dataclasses; importing them needs neither torch nor transformers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingConfig:
    """How a code is drawn from its distribution."""

    temperature: float = 0.8  # of codebook 0; 0 takes the likeliest code
    depth_temperature: float = 0.8  # of the other codebooks
    top_k: int = 100  # only the likeliest codes are drawn; 0: all of them
    stop_at_end: bool = False  # stop where the model says that the utterance ends, before the duration is over
    max_prompt_s: float = 10.0  # of a longer prompt only the end is continued

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf") or not 0 <= self.depth_temperature < float("inf"):
            raise ValueError(
                f"temperatures must be finite and not negative, not {self.temperature} and {self.depth_temperature}"
            )
        if not self.max_prompt_s > 0:
            raise ValueError(f"max_prompt_s must be more than 0, not {self.max_prompt_s}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all codes) or more, not {self.top_k}")


@dataclass(frozen=True)
class EvaluateConfig:
    """How likelihood is measured."""

    frames_per_batch: int = 4096
    max_frames: int = 2048  # a longer utterance is scored in pieces of this many frames, each from its own start
    bootstrap_samples: int = 1000
    seed: int = 0  # of the bootstrap, and of continuations
    limit: int = 0  # score only the first so many utterances (by hash of the name); 0: all

    def __post_init__(self) -> None:
        if min(self.frames_per_batch, self.max_frames, self.bootstrap_samples) < 1:
            raise ValueError("frames_per_batch, max_frames and bootstrap_samples must be at least 1")
        if self.limit < 0 or self.seed < 0:
            raise ValueError(f"limit ({self.limit}) and seed ({self.seed}) must not be negative")
