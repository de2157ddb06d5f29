"""How models are used, as plain dataclasses; importing them needs neither torch nor transformers."""

from dataclasses import dataclass
from typing import Any, Literal

WeightPrecision = Literal["float32", "float16", "bfloat16", "int8"]
WEIGHTS = ("float32", "float16", "bfloat16", "int8")  # see precision.py


@dataclass(frozen=True)
class SamplingConfig:
    """How a code is drawn from its distribution.

    A setting with several numbers has one for each codebook, coarsest first; the last one holds for those after it.
    """

    # sampling temperature (0: greedy); as 0.9,0.7 for codebook 0 and for those after it, here and in the limits below
    temperature: tuple[float, ...] | float = 0.8
    text_temperature: float = 0.7  # sampling temperature of text, for models that predict it (0: greedy)
    top_k: tuple[int, ...] | int = 100  # draw from the K likeliest codes only (0: from all)
    # draw from as few of the likeliest codes as have this probability together (1: from all)
    top_p: tuple[float, ...] | float = 1.0
    min_p: tuple[float, ...] | float = 0.0  # draw from codes at least this share as likely as the likeliest (0: all)
    # draw codebook 0 again, from all codes, if the code fills more than this share of the last frames (1: never)
    repetition_share: float = 1.0
    repetition_frames: int = 10  # last frames in which --repetition-share is counted
    num_codebooks: int = 0  # draw this many leading codebooks only, and hear no others in the prompt (0: all)
    guidance: float = 1.0  # weight of text and voice: logits without + N x what these change (1: the model's own)
    stop_at_end: bool = False  # stop when the model ends the utterance, even before the duration is over
    max_prompt_s: float = 10.0  # use at most the last N seconds of the prompt

    def __post_init__(self) -> None:
        for name in ("temperature", "text_temperature"):
            for value in numbers(getattr(self, name), name):
                if not 0 <= value < float("inf"):
                    raise ValueError(f"{name} is {value}; it must be 0 (the likeliest) or more, and finite")
        if not self.max_prompt_s > 0:
            raise ValueError(f"max_prompt_s is {self.max_prompt_s}; it must be more than 0")
        for value in numbers(self.top_k, "top_k"):
            if value < 0:
                raise ValueError(f"top_k is {value}; it must be 0 (all codes) or more")
        for value in numbers(self.top_p, "top_p"):
            if not 0 < value <= 1:
                raise ValueError(f"top_p is {value}; it must be more than 0, and at most 1 (all codes)")
        for value in numbers(self.min_p, "min_p"):
            if not 0 <= value < 1:
                raise ValueError(f"min_p is {value}; it must be at least 0 (all codes), and less than 1")
        if not 0 <= self.repetition_share <= 1:
            raise ValueError(f"repetition_share is {self.repetition_share}; it must be 0 to 1 (never draw again)")
        if self.num_codebooks < 0:
            raise ValueError(f"num_codebooks is {self.num_codebooks}; it must be at least 1, or 0: all")
        if self.repetition_frames < 1:
            raise ValueError(f"repetition_frames is {self.repetition_frames}; it must be at least 1")
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance is {self.guidance}; it must be 0 or more, and finite (1: the model's own)")


def numbers(setting: Any, name: str) -> tuple[Any, ...]:
    """The numbers of a setting that may have one for each codebook. Raises ValueError for none."""
    values = tuple(setting) if isinstance(setting, tuple | list) else (setting,)
    if not values:
        raise ValueError(f"{name} has no number; give one, or one for each codebook")
    return values


# how a text is said: what is misheard least of the embedded recipe's model (train/recipes/embedded)
SAYING = SamplingConfig(temperature=0.3, guidance=3.0)


@dataclass(frozen=True)
class BeamConfig:
    """How a text is found for what is heard (beam_search.py)."""

    beam_size: int = 8  # texts that are kept at every step, of which the best is written (1: the likeliest step)
    # weight of the n-gram model of texts (the tokenizer's) beside the model's own ear (0: none)
    ngram_weight: float = 0.4
    token_bonus: float = 0.8  # nats for each token, against the n-gram model's liking for short texts

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise ValueError(f"beam_size is {self.beam_size}; it must be at least 1")
        for name in ("ngram_weight", "token_bonus"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more, and finite")


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
    num_codebooks: int = 0  # score this many leading codebooks, as if the codec had no others (0: all)
    # for a model with the text layout mixed or timed: score speech given its transcript, not as audio alone
    given_text: bool = False
    # part of a token store: all, or, as a training run split it, heldout (what its evaluations scored) or training
    split: Literal["all", "heldout", "training"] = "all"
    run: str = ""  # training run whose split that is; empty: the model's own

    def __post_init__(self) -> None:
        for name in ("frames_per_batch", "bootstrap_samples", "limit", "seed", "num_codebooks"):
            least = int(name in ("frames_per_batch", "bootstrap_samples"))
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.context_frames < 0 or self.context_frames == 1:
            raise ValueError(f"context_frames is {self.context_frames}; at least 2, or 0: the model's own")
        if self.scope not in ("all", "coarse", "fine"):
            raise ValueError(f"scope '{self.scope}' is unknown; choose all, coarse or fine")
        if self.split not in ("all", "heldout", "training"):
            raise ValueError(f"split '{self.split}' is unknown; choose all, heldout or training")


@dataclass(frozen=True)
class PairsConfig:
    """How pairs of recordings are scored (evaluate/pair_scores.py); the last two are for `hearing`, or `probes`."""

    suite: str = ""  # layout of DATA, a folder of pairs: swuggy, sblimp, storycloze or salmon
    window_s: float = 0.5  # seconds of the local score, from where two recordings part (0: their span)
    against: str = ""  # compare item by item with this folder, the --out of another run on the same pairs
    pairs: int = 200  # pairs of each probe of 'hearing'
    speech: str = ""  # folder for 'hearing' or 'probes' with a sub-folder of recordings for each voice (empty: our own)

    def __post_init__(self) -> None:
        if not 0 <= self.window_s < float("inf"):
            raise ValueError(f"window_s is {self.window_s}; it must be 0 (the span) or more, and finite")
        if self.pairs < 2:
            raise ValueError(f"pairs is {self.pairs}; it must be at least 2")
