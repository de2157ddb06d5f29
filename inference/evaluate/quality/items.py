"""A prompt with all that was judged of what follows it, and its line in a run's folder."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ....model.files import readable
from ...json_safe import json_safe
from ...sound.measures import SpeechMeasures
from ..continuations import Checks, Continuation
from ..run_lines import begin_run, not_an_item, read_lines, rewrite_lines
from .judges import Judged

HEADER, ITEMS = "continuations.json", "items.jsonl"


@dataclass(frozen=True)
class Quarter:
    """A quarter of a sound. Similarity is that to the prompt's voice; None: too short, or no judge."""

    measures: SpeechMeasures
    similarity: float | None
    bits_per_second: float | None


@dataclass(frozen=True)
class Item:
    file: str
    sha256: str  # the recording's
    voice: str  # the speaker by the name of the recording's folder
    wav: str  # name of the continuation's file
    language: str | None  # that whisper hears in the prompt
    text: str | None  # the words of the whole recording, where they are known
    heard: dict[str, str]  # the words of the whole recording and of its round trip, where their text is known
    continued: Continuation
    prompt: Judged  # as it was recorded
    sounds: dict[str, Judged]  # kind -> sound
    quarters: dict[str, list[Quarter]]  # kind -> four

    def line(self, with_voices: bool = True) -> dict[str, Any]:
        """For JSON. with_voices: with the embeddings of voices."""
        values = json_safe(asdict(self))
        if not with_voices:
            for judged in (values["prompt"], *values["sounds"].values()):
                del judged["voice"]
        return values


def open_run(folder: Path, settings: dict[str, Any]) -> dict[str, Item]:
    """Begin a run in `folder`, or go on with one -> the items that are there, by file.

    Raises ValueError where the folder holds a run with other settings.
    """
    if not begin_run(folder / HEADER, folder / ITEMS, settings):
        return {}
    items = []
    for number, values in read_lines(folder / ITEMS):
        try:
            items.append(_item(values))
        except (TypeError, KeyError, AttributeError):
            raise not_an_item(folder / ITEMS, number) from None
    rewrite_lines(folder / ITEMS, (item.line() for item in items))
    return {item.file: item for item in items if (folder / readable(item.wav)).is_file()}


def _item(values: Mapping[str, Any]) -> Item:
    continued = values["continued"]
    measured = {side: _measures(continued[side]) for side in ("prompt", "continuation")}
    return Item(**{
        **values,
        "continued": Continuation(**{**continued, **measured, "checks": Checks(**continued["checks"])}),
        "prompt": _judged(values["prompt"]),
        "sounds": {kind: _judged(sound) for kind, sound in values["sounds"].items()},
        "quarters": {
            kind: [Quarter(**{**part, "measures": _measures(part["measures"])}) for part in parts]
            for kind, parts in values["quarters"].items()
        },
    })  # fmt: skip


def _judged(values: dict[str, Any]) -> Judged:
    return Judged(**{**values, "measures": _measures(values["measures"])})


def _measures(values: dict[str, Any]) -> SpeechMeasures:
    level = values["loudness_dbfs"]
    return SpeechMeasures(**{**values, "loudness_dbfs": float("-inf") if level is None else level})
