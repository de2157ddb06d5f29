"""How audio becomes tokens, as a plain dataclass; importing it needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_type_hints

from ..model.strict import check_names, check_value

Config = TypeVar("Config")
HeldoutBy = Literal["recording", "speaker", "folder"]  # what is held out as a whole


@dataclass(frozen=True)
class PrepareConfig:
    """How audio is found, cut and grouped. All but `num_workers` and `batch_s` decide what the store holds."""

    shard_mb: float = 128.0  # megabytes of audio per shard; a finished shard is never encoded again
    files_per_shard: int = 1024  # at most this many audio files per shard
    max_utterance_s: float = 600.0  # cut longer files into pieces of at most N seconds: name#0, name#1, ...
    # other codes for the same speech keep a model from overfitting to a small corpus; not for evaluation
    copies: int = 1  # variants of each utterance, shifted by a fraction of a frame and slightly louder or softer
    num_workers: int = 1  # worker processes, one thread each; 0: one for each core where there is enough to do
    batch_s: float | None = None  # seconds encoded at once, neighbours in length; default: 0 (one by one), 240 on a GPU
    split: str | None = None  # which part of a Hugging Face dataset; default: train, or the only one
    subset: str | None = None  # which subset of a dataset of the hub, where it has several
    streaming: bool = False  # read the parquet files of a dataset of the hub where they are; nothing is downloaded

    def __post_init__(self) -> None:
        for name, least in (("files_per_shard", 1), ("copies", 1), ("num_workers", 0), ("batch_s", 0)):
            if (value := getattr(self, name)) is not None and not least <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be at least {least}, and finite")
        if not 0 < self.shard_mb < float("inf"):
            raise ValueError(f"shard_mb is {self.shard_mb}; it must be more than 0, and finite")
        if not 1 <= self.max_utterance_s < float("inf"):
            raise ValueError(f"max_utterance_s is {self.max_utterance_s}; it must be at least 1 second, and finite")


@dataclass(frozen=True)
class FormShares:
    """Shares of the utterances in the forms that a model of a tagged text layout learns; the rest is audio alone.

    They are drawn anew in every epoch; no text is put where it is not right (data/forms.py).
    """

    say: float = 0.35  # share of the utterances that come after their text
    say_voice: float = 0.25  # the same, after speech of another recording of the voice: a voice prompt
    write: float = 0.25  # share of the utterances whose text comes after them: transcription
    voice_s: float = 10.0  # a voice prompt has at most N seconds, 1 at least
    own_voice: str = ""  # a speaker: texts without a voice prompt are said in this voice alone (empty: in any)

    def __post_init__(self) -> None:
        shares = self.say, self.say_voice, self.write
        if not all(share >= 0 for share in shares) or not sum(shares) <= 1 + 1e-9:
            given = f"say {self.say}, say_voice {self.say_voice}, write {self.write}"
            raise ValueError(f"{given}: each must be at least 0, and all together at most 1")
        if not 1 <= self.voice_s < float("inf"):
            raise ValueError(f"voice_s is {self.voice_s}; it must be at least 1 second, and finite")


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
