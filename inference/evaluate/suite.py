"""A suite of pairs, from recordings to a report: read, encode, score, keep. A run that was killed goes on in `out`."""

import logging
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ...data.preparation import open_or_prepare
from ...model.files import file_sha256, locked_folder
from ..config import EvaluateConfig, PairsConfig
from ..threads import torch_threads
from .adapter import Adapted, weights_hash
from .items import Item, open_run, read_items
from .margins import DEFINITION
from .pair_clips import prepare_pairs
from .pair_comparison import compare
from .pair_report import PairsReport, report
from .pair_scores import score_pairs
from .pairs import Pair, pairs_hash, read_pairs
from .score import precision_of
from .suites import read_suite

if TYPE_CHECKING:
    from ..generator import SpeechGenerator

HEARING = "hearing"  # the suite that is made here
WORK = "codeclm evaluate"

logger = logging.getLogger(__name__)


def evaluate_pairs(
    lm: "SpeechGenerator | Adapted",
    suite: Path,
    out: Path | None = None,
    baseline_data: Path | None = None,
    pairs_config: PairsConfig = PairsConfig(),
    config: EvaluateConfig = EvaluateConfig(),
    progress: bool = True,
) -> PairsReport:
    """Score `suite`: "hearing", a .jsonl file of pairs, or a benchmark's folder in the layout `pairs_config.suite`.

    out: keeps tokens, items and the recordings of "hearing"; what is there is not done again. None: a temporary folder.
    Raises ValueError or OSError for what cannot be read, and where `out` holds a run of other settings.
    """
    if isinstance(lm, Adapted):
        lm.check(config)
    with ExitStack() as stack:
        folder = out if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(locked_folder(folder, WORK))
        pairs, left_out = _read(suite, folder, pairs_config, config.seed, progress)
        header = {
            "definition": DEFINITION,
            "suite": pairs_config.suite or suite.stem,
            "pairs_hash": pairs_hash(pairs),
            "model": lm.name,
            "checkpoint_hash": weights_hash(lm),
            "codec_fingerprint": lm.codec.fingerprint,
            "precision": precision_of(lm.model, config),
            "context_frames": config.context_frames,
            "num_codebooks": config.num_codebooks,
            "window": f"{pairs_config.window_s:g} s" if pairs_config.window_s else "the span",
            "baseline_data": None if baseline_data is None else str(baseline_data),
            "seed": config.seed,
        }
        done = open_run(folder, header)
        baselines = None
        if baseline_data is not None:
            baselines = open_or_prepare(baseline_data, folder / "baseline", lm.codec, progress=progress)
        with torch_threads(1):  # as `codeclm prepare`: more of them can change codes
            store, skipped = prepare_pairs(pairs, folder / "tokens", lm.codec, progress)
        used = [pair for pair in pairs if pair.name not in skipped]
        done = {pair.name: done[pair.name] for pair in used if _is_of(done.get(pair.name), pair)}
        window_s = pairs_config.window_s
        items = score_pairs(lm.model, store, used, done, folder, window_s, baselines, config, progress)
        settings = header | {"data_hash": store.data_hash}
        other = pairs_config.against
        comparison = compare(items, read_items(Path(other)), other, config) if other else None
        return report(items, settings, skipped, left_out, out, comparison, config)


def _read(
    suite: Path, folder: Path, pairs_config: PairsConfig, seed: int, progress: bool
) -> tuple[Sequence[Pair], dict[str, str]]:
    """The pairs, and tasks that were left out with the reason."""
    if pairs_config.suite:
        return read_suite(suite, pairs_config.suite), {}
    if str(suite) != HEARING:
        return read_pairs(suite), {}
    from .hearing import make_pairs

    speech = Path(pairs_config.speech) if pairs_config.speech else None
    return make_pairs(folder, speech, pairs_config.pairs, seed, progress)


def _is_of(item: Item | None, pair: Pair) -> bool:
    """Whether an item was made from the recordings that are there now."""
    return item is not None and item.sha256 == [file_sha256(path) for path in (pair.better, pair.worse)]
