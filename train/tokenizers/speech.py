"""The held-out speech of a comparison: the same recordings for every codec."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...data.audio import audio_header
from ...data.sources import find_sources
from ...data.split import name_hash, split_heldout
from ...data.token_store import TokenStore
from ..loop import for_small_data
from .config import TokenizersConfig


@dataclass(frozen=True)
class Speech:
    """The held-out speech that all codecs are measured on."""

    total_s: float  # seconds of all speech
    scored: list[str]  # names of utterances, by hash
    recordings: list[Path]  # the files that they are from, by hash
    prompts: list[Path]  # those that are continued

    @property
    def identity(self) -> str:
        return hashlib.sha256("\n".join(self.scored).encode()).hexdigest()


def held_out_speech(data: Path, stores: Mapping[str, TokenStore], config: TokenizersConfig) -> Speech:
    """The held-out utterances of all stores, which must be the same; at most `heldout_minutes` of them, by hash.

    Raises ValueError if stores differ, or if there is too little speech.
    """
    splits = {}
    for name, store in stores.items():
        chosen = for_small_data(config.training(1), store).batch.split
        splits[name] = {store.names[i] for i in split_heldout(store, *chosen)[1]}
    (first, store), *others = stores.items()
    for name, other in others:
        differing = set(store.names) ^ set(other.names) or splits[first] ^ splits[name]
        if differing:
            said = f"only one of '{first}' and '{name}' has, or holds out, '{min(differing)}'"
            raise ValueError(f"{data}: {said}; leave that file out")
    seconds = {name: int(n) / store.codec.sample_rate for name, n in zip(store.names, store.num_samples, strict=True)}
    scored, total = [], 0.0
    for name in sorted(splits[first], key=name_hash):
        total += seconds[name]
        if len(scored) >= 2 and total > 60 * config.heldout_minutes:
            break
        scored.append(name)
    if len(scored) < 2:
        raise ValueError(f"{data}: holds too little speech; at least two recordings must be held out: add more audio")
    files = {source.name: source.audio for source in find_sources(data).sources if isinstance(source.audio, Path)}
    of_scored = dict.fromkeys(name if name in files else name.rpartition("#")[0] for name in scored)  # name#0, ...
    if not files.keys() >= of_scored.keys():
        raise ValueError(f"{data}: holds speech that is not in audio files of its own; give a folder of recordings")
    recordings = [files[name] for name in of_scored]
    long_enough = [file for file in recordings if audio_header(file)[1] >= config.prompt_s]
    if config.prompts and not long_enough:
        lasting = f"no held-out recording lasts {config.prompt_s:g} s"
        raise ValueError(f"{data}: {lasting}, as prompts must; give a smaller --prompt-s, or more audio")
    return Speech(sum(seconds.values()), scored, recordings, long_enough[: config.prompts])
