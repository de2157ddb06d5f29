"""How audio becomes tokens, as a plain dataclass; importing it needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_type_hints

from ..model.strict import check_names, check_value

Config = TypeVar("Config")
HeldoutBy = Literal["recording", "speaker"]  # what is held out as a whole


@dataclass(frozen=True)
class PrepareConfig:
    """How audio is cut and grouped. All but `num_workers` decide what the store holds."""

    files_per_shard: int = 256  # audio files per shard; a finished shard is never encoded again
    max_utterance_s: float = 600.0  # cut longer files into pieces of at most N seconds: name#0, name#1, ...
    # other codes for the same speech keep a model from overfitting to a small corpus; not for evaluation
    copies: int = 1  # variants of each utterance, shifted by a fraction of a frame and slightly louder or softer
    num_workers: int = 1  # worker processes, one thread each

    def __post_init__(self) -> None:
        for name in ("files_per_shard", "copies", "num_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 1 <= self.max_utterance_s < float("inf"):
            raise ValueError(f"max_utterance_s is {self.max_utterance_s}; it must be at least 1 second, and finite")


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """`config`, a dataclass, with these settings; a dict for a part of it changes settings of that part.

    Raises ValueError in one line: a setting unknown (the nearest known one is named), not of its type, or out of range.
    """
    hints = get_type_hints(type(config))
    check_names(settings, hints)
    changed = {}
    for name, value in settings.items():
        part = getattr(config, name)
        is_part = is_dataclass(part) and isinstance(value, Mapping)
        changed[name] = with_settings(part, value) if is_part else check_value(hints[name], value, name)
    return replace(config, **changed)  # pyright: ignore[reportArgumentType]
