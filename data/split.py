"""Which utterances are held out, and how often each voice is heard. N utterances of a token store."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .token_store import TokenStore


def split_heldout(
    names: Sequence[str], share: float, seed: int, where: str | Path = "the data"
) -> tuple[list[int], list[int]]:
    """Utterance names -> (indices for training, indices held out), `share` of the names held out.

    A name's side depends on the name and the seed only, so that it stays when files are added; pieces of one file
    (`name#0`, `name#1`) and copies (`name~0`, `name~1`) go together. With few utterances at least one is held out and
    one is not. Raises ValueError, naming `where` they are, if there is only one, however many copies of it.
    """
    if not 0 < share < 1:
        raise ValueError(f"the held-out share is {share}; it must lie between 0 and 1")
    files = recordings(names)
    fractions = [_fraction(file, seed) for file in files]
    if len(set(files)) < 2:
        raise ValueError(
            f"{where}: one utterance ('{files[0]}') is not enough to train on and to hold out; add more audio"
        )
    # however few there are, the first by hash is held out and the last is not
    limit = min(max(share, min(fractions) + 1e-12), max(fractions))
    heldout = [fraction < limit for fraction in fractions]
    return [i for i, held in enumerate(heldout) if not held], [i for i, held in enumerate(heldout) if held]


def first_by_hash(store: TokenStore, indices: Sequence[int], num_frames: int) -> list[int]:
    """The first of these utterances by hash of their names, at most `num_frames` together (0: all), in store order.

    Never none. Which they are depends on the others only where these come first.
    """
    if not num_frames:
        return list(indices)
    order = sorted(indices, key=lambda i: name_hash(store.names[i]))
    count = int(np.searchsorted(np.cumsum(store.num_frames[order]), num_frames, "right"))
    return sorted(order[: max(1, count)])


def recordings(names: Sequence[str]) -> list[str]:
    """What of each utterance's name is kept together: its file; with a single file, which piece of it."""
    files = [re.sub(r"(#\d+)?(~\d+)?$", "", name) for name in names]
    return files if len(set(files)) > 1 else [re.sub(r"~\d+$", "", name) for name in names]


def balance_voices(store: TokenStore, indices: Sequence[int], power: float) -> list[int]:
    """Repeat utterances so that each voice's share of the frames goes with about its length to the `power`.

    A voice is the first folder of the names. power 1 changes nothing; at 0 all voices weigh the same. Whole numbers of
    repetitions only, so that an epoch still shows every frame equally often within a voice.
    """
    if not 0 <= power <= 1:
        raise ValueError(f"the power of voices is {power}; it must lie between 0 and 1")
    voices: dict[str, list[int]] = {}
    for i in indices:
        voices.setdefault(store.names[i].rpartition("/")[0].split("/")[0], []).append(i)
    frames = {voice: int(store.num_frames[members].sum()) for voice, members in voices.items()}
    most = max(frames.values(), default=1)
    return [
        i for voice, members in voices.items() for i in members * round((most / max(frames[voice], 1)) ** (1 - power))
    ]


def _fraction(name: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def name_hash(name: str) -> bytes:
    """Puts utterances in an order that has nothing to do with their names, and is always the same."""
    return hashlib.sha256(name.encode()).digest()
