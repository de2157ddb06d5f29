"""A passage of a recording with its words, as text that people, players and programs read."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

TextFormat = Literal["text", "srt", "vtt", "jsonl"]


@dataclass(frozen=True)
class Passage:
    start_s: float
    end_s: float
    text: str


def lines(passages: Iterable[Passage], kind: TextFormat) -> Iterator[str]:
    """A line or more for each passage, as soon as it is there: plain text, SubRip, WebVTT, or JSON."""
    if kind == "vtt":
        yield "WEBVTT\n"
    for number, passage in enumerate(passages, 1):
        yield ONE[kind](number, passage)


def srt(number: int, passage: Passage) -> str:
    times = " --> ".join(clock(seconds, ",") for seconds in (passage.start_s, passage.end_s))
    return f"{number}\n{times}\n{passage.text}\n"


def vtt(number: int, passage: Passage) -> str:
    times = " --> ".join(clock(seconds, ".") for seconds in (passage.start_s, passage.end_s))
    return f"{times}\n{passage.text}\n"


def clock(seconds: float, point: str) -> str:
    """75.5 -> "00:01:15.500"."""
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{point}{thousandths:03d}"


ONE: dict[TextFormat, Callable[[int, Passage], str]] = {
    "text": lambda number, passage: passage.text,
    "srt": srt,
    "vtt": vtt,
    "jsonl": lambda number, passage: json.dumps(asdict(passage), ensure_ascii=False),
}
