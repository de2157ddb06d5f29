"""A training run, looked at: its curve, and, where its speech is at hand, what it held out and what it learned."""

import math
from collections.abc import Sequence
from pathlib import Path

from ...data.split import split_heldout
from ...data.token_store import TokenStore
from ...model.strict import read_object
from ..argument_checks import STORE
from ..loading import load
from .alignment import examine_alignment
from .codes import examine_bounds
from .curve import Curve, examine_curve
from .data import held_out_leaks
from .findings import Examination, count
from .speech import Speech

COMPARISON = "comparison.json"  # what `codeclm finetune` writes: bits/s before and after
FORGOTTEN = 1.05  # times the bits/s of before
NEAR_COUNTING = 0.98  # share of the unigram's bits: nothing but frequencies was learned
ENOUGH_STEPS = 200


def examine_run(folder: Path, given: Sequence[Speech] = ()) -> Examination:
    """given: speech that was named beside it, which may be what it learns from; else its own tokens/ are looked for.

    Raises ValueError or FileNotFoundError for what is no run of a language model.
    """
    curve = Curve.read(folder)
    seen = Examination(folder, "training run")
    examine_curve(curve, seen)
    judge_forgetting(folder, seen)
    speech = speech_of(folder, curve, given)
    if speech is None:
        seen.lines.append(("speech", "not at hand; name the store it was trained on beside it, to look at both"))
        return seen
    defaults = {"heldout_share": 0.02, "heldout_seed": 0, "heldout_by": "recording"}
    share, seed, by = (curve.setting("batch", name, default=value) for name, value in defaults.items())
    heldout = split_heldout(speech.store, share, seed, by)[1].tolist()
    held_out_leaks(speech, heldout, seen)
    judge_level(curve, speech, seen)
    if any((folder / "model").glob("*.safetensors")):
        try:
            lm = load(folder)
        except (ValueError, OSError, ImportError) as error:
            seen.error("weights", str(error), "train again, or copy the folder again")
        else:
            examine_alignment(lm.model, speech.store, heldout, seen)
    return seen


def judge_forgetting(folder: Path, seen: Examination) -> None:
    """What a fine-tune did to other voices, where it was asked to compare."""
    path = folder / COMPARISON
    rows = read_object(path).get("rows", []) if path.is_file() else []
    worse = {row["name"]: row["after"] / row["before"] - 1 for row in rows if row["after"] > FORGOTTEN * row["before"]}
    if worse:
        found = f"{count(len(worse), 'voice')} of before cost more bits/s now"
        advice = "hear the base's speech again (--replay), learn adapters (--lora.rank), or take fewer steps"
        seen.warn("forgetting", found, advice, [f"{name} {rise:+.1%}" for name, rise in worse.items()])


def speech_of(folder: Path, curve: Curve, given: Sequence[Speech]) -> Speech | None:
    """The speech that a run learns from: by its hash."""
    wanted = curve.setting("data")
    for speech in given:
        if speech.store.data_hash == wanted:
            return speech
    if not (folder / "tokens" / STORE).is_file():
        return None
    store = TokenStore(folder / "tokens")
    return Speech(store.folder, store) if store.data_hash == wanted else None


def judge_level(curve: Curve, speech: Speech, seen: Examination) -> None:
    """Beside what counting needs."""
    examine_bounds(speech, seen)
    unigram, bigram = (seen.facts.get(f"{name}_bits_per_second", math.nan) for name in ("unigram", "bigram"))
    if not len(curve.heldout) or curve.last_step < ENOUGH_STEPS or not math.isfinite(unigram):
        return
    best = min(curve.heldout)
    if best > NEAR_COUNTING * unigram:
        found = f"after {curve.last_step} steps held-out speech costs {best:.1f} bits/s, where counting single codes "
        found += f"needs {unigram:.1f}"
        advice = (
            "no context is used: labels out of step, codes and audio that do not belong together, or far too few steps"
        )
        seen.warn("misaligned", found, advice)
    elif best > bigram:
        found = f"held-out speech costs {best:.1f} bits/s, where counting pairs of codes needs {bigram:.1f}"
        seen.note("under-trained", found, "more steps, more speech, or a model that is not so small")
