"""How models are used, as plain dataclasses; importing them needs neither torch nor transformers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingConfig:
    """How a code is drawn from its distribution."""

    temperature: float = 0.8  # of codebook 0; 0 takes the likeliest code
    depth_temperature: float = 0.8  # of the other codebooks
    text_temperature: float = 0.7  # of text, for models that predict it
    top_k: int = 100  # only the likeliest codes are drawn; 0: all of them
    stop_at_end: bool = False  # stop where the model says that the utterance ends, before the duration is over
    max_prompt_s: float = 10.0  # of a longer prompt only the end is continued

    def __post_init__(self) -> None:
        temperatures = self.temperature, self.depth_temperature, self.text_temperature
        if not all(0 <= value < float("inf") for value in temperatures):
            raise ValueError(f"temperatures must be finite and not negative, not {temperatures}")
        if not self.max_prompt_s > 0:
            raise ValueError(f"max_prompt_s must be more than 0, not {self.max_prompt_s}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all codes) or more, not {self.top_k}")


@dataclass(frozen=True)
class EvaluateConfig:
    """How likelihood is measured."""

    frames_per_batch: int = 4096
    context_frames: int = 0  # what a frame may look back on, in frames (see inference/windows.py); 0: the model's own
    scope: str = "all"  # which codebooks count in bits/s: all, coarse (codebook 0) or fine (the others)
    bootstrap_samples: int = 1000
    seed: int = 0  # of the bootstrap, and of continuations
    bf16: bool = False  # matrix products in bfloat16; log-probabilities stay in float32
    limit: int = 0  # score only the first so many utterances (by hash of the name); 0: all

    def __post_init__(self) -> None:
        if min(self.frames_per_batch, self.bootstrap_samples) < 1:
            raise ValueError("frames_per_batch and bootstrap_samples must be at least 1")
        if self.context_frames < 0 or self.context_frames == 1:
            raise ValueError(f"context_frames is {self.context_frames}; at least 2, or 0: the model's own")
        if self.scope not in ("all", "coarse", "fine"):
            raise ValueError(f"scope '{self.scope}' is unknown; choose all, coarse or fine")
        if self.limit < 0 or self.seed < 0:
            raise ValueError(f"limit ({self.limit}) and seed ({self.seed}) must not be negative")
