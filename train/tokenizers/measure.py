"""The numbers of one codec: its codes' likelihood, the proof of it, what its round trip keeps, how its model goes on.

Each is what a command of its own has: evaluate, codec compress, codec report, evaluate --continuations.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...data.config import HeldoutBy
from ...data.split import split_heldout
from ...data.token_store import TokenStore
from ...inference.codec.report import codec_report
from ...inference.compress.codes import compress_codes, predicted_bits
from ...inference.config import EvaluateConfig
from ...inference.evaluate.baselines import CountBaselines
from ...inference.evaluate.quality.estimate import Estimate
from ...inference.evaluate.quality.judges import installed_judges
from ...inference.evaluate.quality.material import CONTINUATION
from ...inference.evaluate.quality.run import Continuing, continuation_report
from ...inference.evaluate.report import likelihood
from ...inference.evaluate.score import score_store
from ...inference.generator import SpeechGenerator
from ...model.codecs import Codec
from ...model.lm import SpeechLM
from .config import TokenizersConfig
from .speech import Speech


def likelihoods(
    model: SpeechLM, store: TokenStore, scored: Sequence[int], split: tuple[float, int, HeldoutBy]
) -> dict[str, Any]:
    """bits/s of the model, and of baselines counted on the speech that it was trained on."""
    rate, how = store.codec.frame_rate, EvaluateConfig()
    scores = score_store(model, store, how, scored)
    training, _ = split_heldout(store, *split)
    info = store.codec
    counted = CountBaselines((store.codes(int(i)) for i in training), info.codebook_size, info.num_codebooks)
    nats = [counted.nll(store.codes(i)) for i in scored]
    unigram, bigram = (sum(row[which].sum() for row in nats) for which in (0, 1))
    to_bits = rate / math.log(2) / scores.num_frames.sum()
    found = likelihood(scores.nll, scores.num_frames, rate, how)
    return {
        "unigram": float(unigram * to_bits),
        "bigram": float(bigram * to_bits),
        "model": found.bits_per_second,
        "interval": found.interval,
    }


def compressed_ratio(model: SpeechLM, store: TokenStore, scored: Sequence[int], seconds: float) -> float | None:
    """Bits that `codec compress` makes of the first seconds of a held-out utterance, over those that are predicted."""
    if not seconds:
        return None
    num_frames = max(1, round(seconds * store.codec.frame_rate))
    utterance = next((i for i in scored if store.num_frames[i] >= num_frames), scored[0])
    codes = torch.tensor(store.codes(utterance)[:num_frames].T.astype("int64"))
    exact = copy.deepcopy(model).double().cpu()
    payload = compress_codes(exact, [codes], progress=True)[0]
    return 8 * len(payload) / predicted_bits(exact, codes)


def round_trip(name: str, codec: Codec, recordings: Sequence[Path]) -> dict[str, float]:
    """How close recordings stay to themselves: the means that `codec report` prints."""
    return asdict(codec_report(recordings, {name: codec}, anchors=False).codecs[0].mean)


def continued(lm: SpeechGenerator, speech: Speech, out: Path, config: TokenizersConfig) -> dict[str, float | None]:
    """Continue held-out recordings, kept in `out` -> shares that pass each check, or all, and the judges' means.

    Learned MOS and similarity to the voice of the prompt are None where their judges are not installed.
    """
    if not speech.prompts:
        return {}
    how = Continuing(config.prompt_s, config.duration_s, config.seed)
    report = continuation_report(lm, speech.prompts, how, installed_judges(asr=False), out)
    checks = [item.checks for item in report.continuations]
    shares = {name: sum(asdict(check)[name] for check in checks) / len(checks) for name in asdict(checks[0])}
    passed = sum(check.passed for check in checks) / len(checks)
    sound, voice = report.quality.sounding[CONTINUATION], report.quality.voices[CONTINUATION]
    judged = {"mos": mean(sound.mos), "similarity": mean(voice.own)}
    return {"prompts": len(checks), "passed": passed, **shares, **judged}


def mean(found: Estimate | None) -> float | None:
    return None if found is None else found.value
