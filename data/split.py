"""Which utterances are held out, and how often each voice is heard. N utterances of a token store, G groups of them."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from .config import HeldoutBy
from .token_store import TokenStore
from .utterance_table import GOLDEN, mixed, text_hash

TRAIN, HELDOUT = "train/", "heldout/"  # folders of DATA


def split_heldout(
    store: TokenStore, share: float, seed: int, by: HeldoutBy = "recording"
) -> tuple[np.ndarray, np.ndarray]:
    """Utterances for training and utterances held out, which have about `share` of the frames; both in store order.

    Pieces and copies of a recording go together, and so does, by "speaker", all that one says. The side depends on the
    name of the recording or speaker, and on the seed, so that it stays when files are added; only where there are so
    few that more than twice the share, or less than half of it, would be held out, are others chosen. At least one is
    held out and one is not. Raises ValueError if there is only one.

    By "folder" it is decided by whoever made DATA: names that begin with train/ are trained on, those with heldout/ are
    held out, whatever the share and the seed; others are neither. Raises ValueError if there are none of either.
    """
    if not 0 < share < 1:
        raise ValueError(f"the held-out share is {share}; it must lie between 0 and 1")
    if by == "folder":
        return _in_folder(store, TRAIN), _in_folder(store, HELDOUT)
    groups, group_of = np.unique(_groups(store, by), return_inverse=True)  # [G], [N]
    if len(groups) < 2:
        kind, name = ("speaker", store.speaker(0)) if by == "speaker" else ("utterance", "".join(store.names[:1]))
        found = f"one {kind} ('{name}') is not enough to train on and to hold out"
        raise ValueError(f"{store.folder}: {found}; add more audio")
    frames = np.bincount(group_of, store.num_frames)  # [G]
    heldout = _held_out(_fractions(groups, seed), frames / frames.sum(), share)[group_of]
    return np.flatnonzero(~heldout), np.flatnonzero(heldout)


def _held_out(fractions: np.ndarray, shares: np.ndarray, share: float) -> np.ndarray:
    """Hashes [G] in 0..1 and shares of the frames [G] -> which groups are held out [G] bool."""
    heldout = fractions < share
    found = shares[heldout].sum()
    if share / 2 <= found <= 2 * share and not heldout.all():
        return heldout
    order = np.lexsort((fractions, shares > share))  # by hash; those that are too much by themselves come last
    count = 1 + np.argmin(np.abs(np.cumsum(shares[order])[:-1] - share))
    heldout[:] = False
    heldout[order[:count]] = True
    return heldout


def _in_folder(store: TokenStore, folder: str) -> np.ndarray:
    """The utterances whose names begin with it."""
    found = np.flatnonzero([name.startswith(folder) for name in store.names])
    if not len(found):
        raise ValueError(f"{store.folder}: no name begins with {folder}; prepare DATA with {TRAIN} and {HELDOUT} in it")
    return found


def _groups(store: TokenStore, by: HeldoutBy) -> np.ndarray:
    """A hash [N] that is equal for utterances that must be on the same side."""
    if by == "recording":
        return recordings(store)
    speakers = store.table["speaker"].dictionary_encode()
    if speakers.null_count == len(speakers):
        raise ValueError(
            f"{store.folder}: does not say who speaks; hold out by recording, or prepare it from a source with speakers"
        )
    known = np.array([text_hash(name) for name in speakers.dictionary.to_pylist()], np.uint64)
    return np.where(speakers.is_valid(), known[speakers.indices.fill_null(0)], store.recordings)


def recordings(store: TokenStore) -> np.ndarray:
    """A hash [N] of the recording of each utterance; where all are pieces of a single one, of its piece."""
    if np.ptp(store.recordings):
        return store.recordings
    return np.array([text_hash(re.sub(r"~\d+$", "", name)) for name in store.names], np.uint64)


def _fractions(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Hashes [G] -> numbers from 0 to 1 that are others for every seed (two rounds of SplitMix64)."""
    return _mixed(hashes ^ _mixed(np.array([seed], np.uint64))) / 2.0**64


def _mixed(x: np.ndarray) -> np.ndarray:
    return mixed(x + GOLDEN)


def originals(store: TokenStore) -> np.ndarray:
    """The utterances that are no shifted copy (`NAME~c`) of another."""
    import pyarrow.compute

    pc: Any = pyarrow.compute  # its functions are made when it is imported: no checker knows them
    copies = pc.match_substring_regex(store.table["name"], r"~[1-9]\d*$")
    return np.flatnonzero(~copies.to_numpy(zero_copy_only=False))


def first_by_hash(store: TokenStore, indices: Sequence[int] | np.ndarray, num_frames: int) -> list[int]:
    """The first of these utterances by hash of their names, at most `num_frames` together (0: all), in store order.

    Never none. Which they are depends on the others only where these come first.
    """
    if not num_frames:
        return [int(i) for i in indices]
    order = sorted(map(int, indices), key=lambda i: name_hash(store.names[i]))
    count = int(np.searchsorted(np.cumsum(store.num_frames[order]), num_frames, "right"))
    return sorted(order[: max(1, count)])


def voices_of(store: TokenStore) -> list[str]:
    """The voice of each utterance: the speaker, or, where the store does not say who speaks, the first folder of the
    name; empty without either."""
    folders = (name.rpartition("/")[0].split("/")[0] for name in store.names)
    return [speaker or folder for speaker, folder in zip(store.table["speaker"].to_pylist(), folders, strict=True)]


def balance_voices(store: TokenStore, indices: Sequence[int] | np.ndarray, power: float) -> np.ndarray:
    """Repeat utterances so that each voice's share of the frames goes with about its length to the `power`.

    A voice is as `voices_of` has it. power 1 changes nothing; at 0 all voices weigh the same. Whole numbers of
    repetitions only, so that an epoch still shows every frame equally often within a voice.
    """
    if not 0 <= power <= 1:
        raise ValueError(f"the power of voices is {power}; it must lie between 0 and 1")
    names = voices_of(store)
    voices: dict[str, list[int]] = {}
    for i in map(int, indices):
        voices.setdefault(names[i], []).append(i)
    frames = {voice: int(store.num_frames[members].sum()) for voice, members in voices.items()}
    most = max(frames.values(), default=1)
    repeats = {voice: round((most / max(frames[voice], 1)) ** (1 - power)) for voice in voices}
    return np.concatenate([np.tile(np.array(members), repeats[voice]) for voice, members in voices.items()])


def name_hash(name: str) -> bytes:
    """Puts utterances in an order that has nothing to do with their names, and is always the same."""
    return hashlib.sha256(name.encode()).digest()
