"""Likelihood of speech under a SpeechLM, in one definition: unweighted, every code scored, nothing else.

    nll_k = -sum_t ln p(code[k, t] | everything before it), natural log, over all T frames
    perplexity_k = exp(nll_k / T)        bits/s = frame_rate / ln 2 * sum_k nll_k / T

BOS is given; EOS is reported apart. N utterances, B batch, K codebooks, T frames.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ..data.progress import progress_bar
from ..data.shards import TokenStore, file_sha256
from ..model.delay_pattern import ABSENT
from ..model.lm import SpeechLM
from .baselines import CountBaselines
from .config import EvaluateConfig

DEFINITION = "codeclm-bits-1: frame_rate / ln 2 * sum_k nll_k / T; every code, unweighted; BOS given, EOS left out"


@dataclass(frozen=True)
class Likelihood:
    """One model's numbers on one set of utterances."""

    bits_per_second: float
    interval: tuple[float, float]  # 95 %, bootstrap over utterances
    bits_per_frame: float
    perplexity: list[float]  # of each codebook, coarsest first
    coarse_bits_per_second: float  # of codebook 0 alone


@dataclass(frozen=True)
class LikelihoodReport:
    """What `codeclm evaluate` prints and writes."""

    definition: str
    context: str
    model: Likelihood
    unigram: Likelihood
    bigram: Likelihood
    baselines_from: str
    raw_bits_per_second: float  # frame_rate * K * log2 V
    eos_nats: float  # mean per utterance
    num_utterances: int
    num_frames: int
    duration_s: float
    codec: str
    codec_fingerprint: str
    data_hash: str
    checkpoint_hash: str

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def table(self) -> str:
        """For the terminal: bits/s, its interval, and perplexities of the model and the baselines."""
        lines = [
            f"{self.num_utterances} utterances, {self.duration_s / 60:.1f} min, {self.num_frames} frames, "
            f"codec {self.codec} {self.codec_fingerprint[:12]}, data {self.data_hash[:12]}, "
            f"checkpoint {self.checkpoint_hash[:12]}",
            "",
            f"{'':10}{'bits/s':>9}{'95 % interval':>20}{'bits/frame':>12}{'coarse bits/s':>15}"
            "   perplexity of each codebook",
        ]
        for name, row in (("model", self.model), ("bigram", self.bigram), ("unigram", self.unigram)):
            interval = f"{row.interval[0]:.1f} .. {row.interval[1]:.1f}"
            perplexity = " ".join(f"{value:.1f}" for value in row.perplexity)
            lines.append(
                f"{name:10}{row.bits_per_second:9.1f}{interval:>20}{row.bits_per_frame:12.2f}"
                f"{row.coarse_bits_per_second:15.1f}   {perplexity}"
            )
        saved = 1 - self.model.bits_per_second / self.bigram.bits_per_second
        compared = f"{abs(saved):.1%} {'fewer' if saved >= 0 else 'more'} bits than the bigram"
        smaller = self.raw_bits_per_second / self.model.bits_per_second
        lines += [
            f"{'raw codes':10}{self.raw_bits_per_second:9.1f}",
            "",
            f"the model needs {compared}; the raw codes need {smaller:.2f} times the model's",
            f"EOS: {self.eos_nats:.2f} nats per utterance, not counted above",
            f"definition: {self.definition}",
            f"context: {self.context}; baselines counted on {self.baselines_from}",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Scores:
    """nll [N, K] nats summed over frames, num_frames [N], eos_nll [N] nats; utterances in store order."""

    nll: np.ndarray
    num_frames: np.ndarray
    eos_nll: np.ndarray


@torch.inference_mode()
def score_store(
    model: SpeechLM,
    store: TokenStore,
    config: EvaluateConfig = EvaluateConfig(),
    indices: Sequence[int] | None = None,
    progress: bool = True,
) -> Scores:
    """Score utterances of a store (default all).

    One longer than config.max_frames is scored in consecutive pieces, each of which starts from BOS; EOS counts after
    its last piece. Raises ValueError if the store's codec is not the model's.
    """
    reference = model.config.codec_reference
    store.require_codec(reference.fingerprint, reference.name)
    chosen = list(range(len(store))) if indices is None else list(indices)
    row_of = {utterance: row for row, utterance in enumerate(chosen)}
    nll = np.zeros((len(chosen), model.num_codebooks))
    eos_nll = np.zeros(len(chosen))
    total = int(store.num_frames[chosen].sum())
    with progress_bar(total=total, unit="frame", desc="score", disable=not progress) as bar:
        for pieces in _batches(store, chosen, config):
            longest = max(stop - start for _, start, stop in pieces)
            codes = torch.full((len(pieces), model.num_codebooks, longest), ABSENT, dtype=torch.long)
            for row, (i, start, stop) in enumerate(pieces):
                codes[row, :, : stop - start] = torch.from_numpy(store.codes(i, start, stop).T.astype(np.int64))
            ends = torch.tensor([stop == store.num_frames[i] for i, _, stop in pieces])
            output = model(codes.to(model.device), ends=ends.to(model.device))
            for row, (i, start, stop) in enumerate(pieces):
                nll[row_of[i]] += output.nll[row].double().sum(dim=-1).cpu().numpy()
                eos_nll[row_of[i]] += output.eos_nll[row].item()
                bar.update(stop - start)
    return Scores(nll, store.num_frames[chosen], eos_nll)


def _batches(store: TokenStore, chosen: Sequence[int], config: EvaluateConfig) -> Iterator[list[tuple[int, int, int]]]:
    pieces = [
        (i, start, min(start + config.max_frames, int(store.num_frames[i])))
        for i in chosen
        for start in range(0, int(store.num_frames[i]), config.max_frames)
    ]
    pieces.sort(key=lambda piece: piece[1] - piece[2])  # longest first
    batch: list[tuple[int, int, int]] = []
    for piece in pieces:
        longest = batch[0][2] - batch[0][1] if batch else 0
        if batch and (len(batch) + 1) * longest > config.frames_per_batch:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def likelihood(nll: np.ndarray, num_frames: np.ndarray, frame_rate: float, config: EvaluateConfig) -> Likelihood:
    """nll [N, K] nats and num_frames [N] -> the numbers, with a 95 % bootstrap interval over utterances."""
    to_bits = frame_rate / math.log(2)
    frames = num_frames.sum()
    mean = nll.sum(axis=0) / frames
    rng = np.random.default_rng(config.seed)
    draws = rng.integers(0, len(nll), (config.bootstrap_samples, len(nll)))
    resampled = to_bits * nll.sum(axis=1)[draws].sum(axis=1) / num_frames[draws].sum(axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Likelihood(
        bits_per_second=float(to_bits * mean.sum()),
        interval=(float(low), float(high)),
        bits_per_frame=float(mean.sum() / math.log(2)),
        perplexity=[float(value) for value in np.exp(mean)],
        coarse_bits_per_second=float(to_bits * mean[0]),
    )


def evaluate(
    model: SpeechLM,
    store: TokenStore,
    checkpoint_hash: str,
    baseline_store: TokenStore | None = None,
    config: EvaluateConfig = EvaluateConfig(),
) -> LikelihoodReport:
    """Score a store with the model and with the two baselines.

    baseline_store: codes that the baselines are counted on, normally the training data's. Without it each half of the
    utterances is predicted from the other half.
    """
    indices = choose(store, config)
    scores = score_store(model, store, config, indices)
    unigram, bigram = baseline_scores(store, indices, baseline_store)
    rate, info = store.codec.frame_rate, store.codec
    frames = int(scores.num_frames.sum())
    return LikelihoodReport(
        definition=DEFINITION,
        context=f"each utterance from its start, in pieces of at most {config.max_frames} frames",
        model=likelihood(scores.nll, scores.num_frames, rate, config),
        unigram=likelihood(unigram, scores.num_frames, rate, config),
        bigram=likelihood(bigram, scores.num_frames, rate, config),
        baselines_from=str(baseline_store.folder) if baseline_store else "the other half of the same utterances",
        raw_bits_per_second=rate * info.num_codebooks * math.log2(info.codebook_size),
        eos_nats=float(scores.eos_nll.mean()),
        num_utterances=len(indices),
        num_frames=frames,
        duration_s=frames / rate,
        codec=info.name,
        codec_fingerprint=info.fingerprint,
        data_hash=store.data_hash,
        checkpoint_hash=checkpoint_hash,
    )


def choose(store: TokenStore, config: EvaluateConfig) -> list[int]:
    """All utterances, or config.limit of them by the hash of their names."""
    if not config.limit:
        return list(range(len(store)))
    order = sorted(range(len(store)), key=lambda i: hashlib.sha256(store.names[i].encode()).digest())
    return sorted(order[: config.limit])


def baseline_scores(
    store: TokenStore, indices: Sequence[int], baseline_store: TokenStore | None
) -> tuple[np.ndarray, np.ndarray]:
    """nll [N, K] nats of the unigram and of the bigram baseline."""
    info = store.codec
    unigram = np.zeros((len(indices), info.num_codebooks))
    bigram = np.zeros_like(unigram)
    if baseline_store is not None:
        baseline_store.require_codec(info.fingerprint, info.name)
        everything = (baseline_store.codes(i) for i in range(len(baseline_store)))
        models = [CountBaselines(everything, info.codebook_size, info.num_codebooks)] * 2
    elif len(indices) < 2:
        raise ValueError(f"{store.folder}: one utterance is not enough for the baselines; give --baseline-data")
    else:
        models = [
            CountBaselines((store.codes(i) for i in indices[half::2]), info.codebook_size, info.num_codebooks)
            for half in (1, 0)
        ]
    for row, i in enumerate(indices):
        unigram[row], bigram[row] = models[row % 2].nll(store.codes(i))
    return unigram, bigram


def checkpoint_hash(folder: Path) -> str:
    """sha256 of a model folder's weights."""
    return file_sha256(folder / "model.safetensors")
