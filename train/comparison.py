"""Before and after a fine-tune: bits/s of both models on the new voice, on other voices, and on the base's.

OUT/comparison.json has the numbers; `table` shows them.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..data.preparation import open_or_prepare
from ..data.split import first_by_hash, originals, split_heldout
from ..data.token_store import TokenStore
from ..inference.config import EvaluateConfig
from ..inference.evaluate.score import score_store
from ..inference.generator import SpeechGenerator
from ..inference.loading import DEFAULT, EMBEDDED_MODEL, checkpoint_hash, load, model_folder
from ..model.files import write_whole
from .config import BatchConfig

COMPARISON = "comparison.json"
PROMPT = EMBEDDED_MODEL / "prompt.flac"


@dataclass(frozen=True)
class Compared:
    """A line of the table."""

    name: str
    minutes: float
    before: float  # bits/s
    after: float


def compare_speech(
    base: SpeechGenerator,
    best: Path,
    store: TokenStore,
    batch: BatchConfig,
    out: Path,
    others: Mapping[str, str | Path],
) -> list[Compared]:
    """Score both models on what the run held out, without copies, and on `others`; known numbers are only read.

    Of the embedded model the bundled prompt, a voice that it knows, is always among them.
    """
    held = np.intersect1d(split_heldout(store, *batch.split)[1], originals(store))
    held = first_by_hash(store, held, batch.heldout_frames)
    sets: dict[str, tuple[TokenStore, Sequence[int]]] = {"new voice, held out": (store, held)}
    given = {"bundled prompt": PROMPT} if base.name == DEFAULT else {}
    for name, data in (given | dict(others)).items():
        tokens = open_or_prepare(data, out / "compare" / re.sub(r"\W", "_", name), base.codec, progress=False)
        sets[name] = tokens, range(len(tokens))
    identity = {
        "before": base.fingerprint,
        "after": checkpoint_hash(model_folder(best)),
        "speech": {name: tokens.data_hash for name, (tokens, _) in sets.items()},
    }
    known = json.loads((out / COMPARISON).read_text()) if (out / COMPARISON).is_file() else {}
    if known.get("identity") == identity:
        return read(out)
    tuned = load(best, device=base.device)
    rows = [
        Compared(name, minutes(tokens, chosen), bits(base, tokens, chosen), bits(tuned, tokens, chosen))
        for name, (tokens, chosen) in sets.items()
    ]
    write_whole(out / COMPARISON, json.dumps({"identity": identity, "rows": [asdict(row) for row in rows]}, indent=2))
    return rows


def bits(lm: SpeechGenerator, store: TokenStore, chosen: Sequence[int]) -> float:
    """bits/s of some utterances, as `codeclm evaluate` has them."""
    scores = score_store(lm.model, store, EvaluateConfig(), chosen, False, lm.tokenizer)
    return store.codec.frame_rate * float(scores.nll.sum() / scores.num_frames.sum()) / math.log(2)


def minutes(store: TokenStore, chosen: Sequence[int]) -> float:
    return float(store.num_frames[list(chosen)].sum() / store.codec.frame_rate / 60)


def read(out: Path) -> list[Compared]:
    return [Compared(**row) for row in json.loads((out / COMPARISON).read_text())["rows"]]


def table(rows: Sequence[Compared]) -> str:
    width = max(len(row.name) for row in rows) + 2
    lines = [f"{'bits/s':{width}}{'minutes':>8}{'before':>9}{'after':>9}"]
    for row in rows:
        change = f"{row.after / row.before - 1:+.1%}"
        lines.append(f"{row.name:{width}}{row.minutes:8.1f}{row.before:9.1f}{row.after:9.1f}{change:>9}")
    return "\n".join(lines)
