"""Likelihood of held-out speech, as people have it: audio, a folder of it, or a token store."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...data.preparation import open_or_prepare
from ...data.token_store import TokenStore
from ..config import EvaluateConfig
from .adapter import Adapted, weights_hash
from .report import LikelihoodReport
from .run_split import check_split, run_part
from .score import evaluate

if TYPE_CHECKING:
    from ..generator import SpeechGenerator

Speech = str | Path | TokenStore


def evaluate_speech(
    lm: "SpeechGenerator | Adapted",
    data: Speech,
    baseline_data: Speech | None = None,
    config: EvaluateConfig = EvaluateConfig(),
    progress: bool = True,
) -> LikelihoodReport:
    """See `SpeechGenerator.evaluate`. Audio is tokenized in a temporary folder."""
    if isinstance(lm, Adapted):
        lm.check(config)
    with tempfile.TemporaryDirectory() as scratch:
        baselines = None
        if baseline_data is not None:  # the first to be read: what is wrong with it is told before anything is scored
            baselines = open_or_prepare(baseline_data, Path(scratch) / "baseline", lm.codec, progress=progress)
        check_split(config, data.folder if isinstance(data, TokenStore) else data, lm.name)
        store = open_or_prepare(data, Path(scratch) / "tokens", lm.codec, limit=config.limit, progress=progress)
        part = None if config.split == "all" else run_part(store, config, lm.name)
        if baselines is None and len(store) < 2:
            name = data.folder if isinstance(data, TokenStore) else data
            raise ValueError(
                f"{name}: one utterance is not enough for the baselines; add files, or baseline data (--baseline-data)"
            )
        report = evaluate(lm.model, store, weights_hash(lm), baselines, config, lm.tokenizer, progress, part)
    if baseline_data is None or isinstance(baseline_data, TokenStore):
        return report
    return replace(report, baselines_from=str(baseline_data))
