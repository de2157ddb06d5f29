"""Tiny models with random weights that cover every pair of options that go together."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...model.codec_reference import CodecReference
from ...model.lm import SpeechLM
from ...model.shapes import PATTERNS, DepthConfig, TextConfig, TransformerConfig
from ...model.speech_lm_config import SpeechLMConfig

Choice = dict[str, Any]  # option -> value

# the first value is the plain one
OPTIONS: dict[str, tuple[Any, ...]] = {
    "pattern": PATTERNS,
    "delays": ((0, 0, 0), (0, 1, 1), (0, 1, 2), (1, 1, 3)),
    "group_size": (1, 2),
    "weight_sets": ("shared", "own", "schedule"),
    "conditioning": ("add", "prefix"),
    "first_codebook": ("backbone", "depth"),
    "embeddings": ("own", "wide", "shared"),
    "sees_text": (False, True),
    "text": ("none", "predicted", "tied", "given"),
    "gaps": ("absent", "bos"),
    "bos": (True, False),
    "end": ("eos", "zeros", "never"),
    "user_codebooks": (0, 2),
    "qk_norm": (False, True),
    "qkv_bias": (False, True),
    "sliding_window": (0, 3),
    "num_kv_heads": (4, 2),
    "rope": (True, False),  # the depth decoder's
    "final_norm": (True, False),
}
TEXTS = {
    "none": TextConfig(),
    "predicted": TextConfig(5),
    "tied": TextConfig(5, tied=True),
    "given": TextConfig(5, predicted=False),
    "told ahead": TextConfig(5, layout="timed", lookahead=2),
}
PLAIN = {option: values[0] for option, values in OPTIONS.items()}
DEPTH_OPTIONS = (
    *("weight_sets", "group_size", "conditioning", "first_codebook", "embeddings", "sees_text"),
    *("rope", "final_norm"),
)
# models with fewer codebooks, with several groups of them, the last one whole or not, one that the frame step takes
# with a sliding window, and some that are told the last tokens of a text again
OTHERS: tuple[Choice, ...] = (
    {"delays": (0,)},
    {"delays": (1,), "pattern": "delay"},
    {"delays": (0,), "pattern": "flatten"},
    {"delays": (0, 0)},
    {"delays": (0, 1), "conditioning": "prefix", "weight_sets": "own"},
    {"delays": (0, 0, 0, 0), "group_size": 2},
    {"delays": (0, 1, 1, 2, 2), "group_size": 2, "weight_sets": "own", "first_codebook": "depth", "gaps": "bos"},
    {"delays": (0, 0, 0, 0, 0), "group_size": 3, "conditioning": "prefix", "embeddings": "shared"},
    {"delays": (0, 1, 1), "sliding_window": 3},
    {"text": "told ahead"},
    {"text": "told ahead", "pattern": "delay", "delays": (0, 1, 2), "sliding_window": 3},
    {"text": "told ahead", "bos": False},
)


@dataclass(frozen=True)
class TinyModel:
    name: str  # the options that are not plain
    config: SpeechLMConfig

    def make(self, seed: int = 0) -> SpeechLM:
        """The model with weights far from zero, so that every part of it matters."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            model = SpeechLM(self.config)
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return model.eval()


def tiny_models() -> list[TinyModel]:
    """The models of `codeclm verify --every-option`: the same ones in every run."""
    return [tiny_model(PLAIN | choice) for choice in [*pairwise(), *OTHERS]]


def tiny_model(choice: Choice) -> TinyModel:
    words = [choice["pattern"], "delays " + ",".join(map(str, choice["delays"]))]
    words += [f"{option} {value}" for option, value in list(choice.items())[2:] if value != PLAIN[option]]
    return TinyModel("; ".join(words), config_of(choice))


def config_of(choice: Choice) -> SpeechLMConfig:
    """Raises ValueError for options that do not go together."""
    num_codebooks = len(choice["delays"])
    shared: Choice = {"num_layers": 2, "num_heads": 4} | {
        option: choice[option] for option in ("num_kv_heads", "qk_norm", "qkv_bias")
    }
    decoder = DepthConfig(dim=16, ff_dim=16, **shared, **{option: choice[option] for option in DEPTH_OPTIONS[1:]})
    positions = decoder.num_positions(num_codebooks)
    schedule = (0, 1, 1) if positions == 3 else (0,) * positions
    sets = {"shared": (), "own": tuple(range(positions)), "schedule": schedule}
    kind = choice["text"]
    # "flatten" has as many positions in a step as this: a window of fewer would hide a given text from every code
    window = choice["sliding_window"] * (num_codebooks + 1 if choice["pattern"] == "flatten" else 1)
    return SpeechLMConfig(
        num_codebooks,
        3,
        TransformerConfig(dim=16, ff_dim=24, sliding_window=window, **shared),
        replace(decoder, weight_sets=sets[choice["weight_sets"]]),
        list(choice["delays"]),
        CodecReference("none", "0" * 64, 8000, 80),
        choice["pattern"],
        TEXTS[kind],
        choice["user_codebooks"],
        choice["bos"],
        choice["end"],
        choice["gaps"],
    )


# --- every pair of options, in few models ---


def is_legal(choice: Choice) -> bool:
    """Whether options go together, and all matter; those that are not chosen yet do not count."""
    if choice.get("pattern", "depth") != "depth" and any(
        value != PLAIN[option] for option, value in choice.items() if option in DEPTH_OPTIONS
    ):
        return False  # options of the depth decoder, which other patterns do not have
    try:
        config_of(PLAIN | {"text": "predicted"} | choice)  # some options need a text
    except ValueError:
        return False
    return True


def pairwise() -> Iterator[Choice]:
    """Choices of all options in which every legal pair of values occurs, found greedily."""
    left = {
        frozenset(pair)
        for (a, many), (b, others) in itertools.combinations(OPTIONS.items(), 2)
        for pair in itertools.product(((a, value) for value in many), ((b, value) for value in others))
        if is_legal(dict(pair))
    }
    while left:
        choice = dict(min(left, key=lambda pair: sorted(map(str, pair))))
        for option, values in OPTIONS.items():
            if option not in choice:
                legal = [choice | {option: value} for value in values if is_legal(choice | {option: value})]
                choice = max(legal, key=lambda grown: len(pairs_of(grown) & left))
        left -= pairs_of(choice)
        yield choice


def pairs_of(choice: Choice) -> set[frozenset]:
    return {frozenset(pair) for pair in itertools.combinations(choice.items(), 2)}
