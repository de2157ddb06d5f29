"""How models are used, as plain dataclasses; importing them needs neither torch nor transformers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingConfig:
    """How a code is drawn from its distribution."""

    temperature: float = 0.8  # sampling temperature of codebook 0 (0: greedy)
    depth_temperature: float = 0.8  # sampling temperature of the other codebooks (0: greedy)
    text_temperature: float = 0.7  # sampling temperature of text, for models that predict it (0: greedy)
    top_k: int = 100  # draw from the K likeliest codes only (0: from all)
    top_p: float = 1.0  # draw from as few of the likeliest codes as have this probability together (1: from all)
    min_p: float = 0.0  # draw from codes at least this share as likely as the likeliest (0: from all)
    stop_at_end: bool = False  # stop when the model ends the utterance, even before the duration is over
    max_prompt_s: float = 10.0  # use at most the last N seconds of the prompt

    def __post_init__(self) -> None:
        for name in ("temperature", "depth_temperature", "text_temperature"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 (the likeliest) or more, and finite")
        if not self.max_prompt_s > 0:
            raise ValueError(f"max_prompt_s is {self.max_prompt_s}; it must be more than 0")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (all codes) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be more than 0, and at most 1 (all codes)")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p is {self.min_p}; it must be at least 0 (all codes), and less than 1")


@dataclass(frozen=True)
class EvaluateConfig:
    """How likelihood is measured."""

    frames_per_batch: int = 4096  # frames scored at once, padding included; fewer need less memory
    context_frames: int = 0  # frames that a frame may look back on (inference/windows.py); 0: as the model was trained
    scope: str = "all"  # codebooks counted in bits/s: all, coarse (codebook 0) or fine (the others)
    bootstrap_samples: int = 1000  # bootstrap draws behind the 95 % interval
    seed: int = 0  # random seed of the bootstrap and of continuations
    bf16: bool = False  # bfloat16 matrix products; log-probabilities stay in float32
    limit: int = 0  # score only N utterances, the first by hash of their names (0: all)

    def __post_init__(self) -> None:
        for name, least in (("frames_per_batch", 1), ("bootstrap_samples", 1), ("limit", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.context_frames < 0 or self.context_frames == 1:
            raise ValueError(f"context_frames is {self.context_frames}; at least 2, or 0: the model's own")
        if self.scope not in ("all", "coarse", "fine"):
            raise ValueError(f"scope '{self.scope}' is unknown; choose all, coarse or fine")
