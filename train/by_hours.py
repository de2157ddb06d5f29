"""Settings of a fine-tune that depend on the amount of speech, chosen by its hours where nobody has chosen.

train/README.md has the table, and says which of it was measured.
"""

import logging
import math
from bisect import bisect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.audio import EXTENSIONS, audio_header
from ..data.preparation import duration
from ..data.split import originals
from ..data.store_index import HEADER
from ..data.token_store import TokenStore
from .finetune_config import FinetuneConfig, is_open

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preset:
    """Settings for this much speech."""

    hours: float
    steps: int
    frames_per_batch: int
    rate: float  # learning rate when all weights learn
    lora_rate: float
    copies: int
    input_dropout: float
    dropout: float
    heldout_share: float


PRESETS = (
    Preset(5 / 60, 120, 1024, 3e-4, 3e-3, 8, 0.1, 0.0, 0.1),
    Preset(1.0, 800, 4096, 3e-4, 3e-3, 4, 0.1, 0.0, 0.1),
    Preset(20.0, 4000, 4096, 3e-4, 2e-3, 1, 0.05, 0.0, 0.02),
    Preset(1000.0, 30_000, 8192, 3e-4, 1e-3, 1, 0.0, 0.0, 0.005),
)


def preset_for(hours: float) -> Preset:
    """Between two presets what lies between them on a logarithmic scale; below the first one and above the last, it."""
    after = bisect([preset.hours for preset in PRESETS], hours)
    if after in (0, len(PRESETS)):
        return PRESETS[0 if after == 0 else -1]
    one, other = PRESETS[after - 1 : after + 1]
    share = math.log(hours / one.hours) / math.log(other.hours / one.hours)

    def between(name: str) -> float:
        a, b = getattr(one, name), getattr(other, name)
        return a ** (1 - share) * b**share if a and b else a * (1 - share) + b * share

    whole: dict[str, Any] = {name: round(between(name)) for name in ("steps", "frames_per_batch", "copies")}
    shares = "rate", "lora_rate", "input_dropout", "dropout", "heldout_share"
    exact: dict[str, Any] = {name: float(f"{between(name):.2g}") for name in shares}
    return Preset(hours, **whole, **exact)


def by_hours(config: FinetuneConfig, hours: float) -> FinetuneConfig:
    """`config` with the settings that are still open (`is_open`), and a line that says which."""
    preset = preset_for(hours)
    rate = preset.lora_rate if config.lora.rank else preset.rate
    chosen: dict[str, object] = {}

    def choose(name: str, given: float, value: float) -> float:
        """What is given, if it is; else `value`, and a note."""
        if not is_open(given):
            return given
        chosen[name] = value
        return value

    steps = int(choose("steps", config.steps, preset.steps))
    batch, optimizer = config.batch, config.optimizer
    frames = int(choose("frames per batch", batch.frames_per_batch, preset.frames_per_batch))
    heldout = choose("held-out share", batch.heldout_share, preset.heldout_share)
    rate = choose("learning rate", optimizer.learning_rate, rate)
    config = replace(
        config,
        steps=steps,
        copies=int(choose("copies", config.copies, preset.copies)),
        input_dropout=choose("input dropout", config.input_dropout, preset.input_dropout),
        dropout=choose("dropout", config.dropout, preset.dropout),
        evaluate_every=max(1, steps // 6) if is_open(config.evaluate_every) else config.evaluate_every,
        save_every=max(1, steps // 3) if is_open(config.save_every) else config.save_every,
        batch=replace(batch, frames_per_batch=frames, heldout_share=heldout),
        optimizer=replace(optimizer, learning_rate=rate),
    )
    if chosen:
        listed = ", ".join(f"{name} {value:g}" for name, value in chosen.items())
        log.info(f"{duration(hours)} of speech: {listed}")
    return config


def hours_of(data: str | Path | TokenStore) -> float:
    """Hours of speech in audio, as its headers say, or in a token store, copies left out; 0 for what is neither."""
    if isinstance(data, TokenStore) or (Path(data) / HEADER).is_file():
        store = data if isinstance(data, TokenStore) else TokenStore(data)
        return int(store.num_samples[originals(store)].sum()) / store.codec.sample_rate / 3600
    path = Path(data)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS]
    return sum(audio_header(file)[1] for file in files) / 3600
