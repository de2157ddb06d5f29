"""What a page of recordings shows; importing it needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReportConfig:
    """What the page shows beside the recordings."""

    continuations: int = 2  # continuations of each recording, with seeds from --seed on
    prompt_s: float = 3.0  # seconds of a recording that are continued
    duration: float = 6.0  # seconds of a continuation
    seed: int = 0  # random seed of the first continuation
    limit_s: float = 60.0  # a longer recording is shown up to here
    files: int = 5  # recordings of a folder, evenly spread over its files
    asr: bool = False  # transcribe with whisper-base (extra 'asr')
