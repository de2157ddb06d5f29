"""Likelihood of speech under a SpeechLM, in one definition: unweighted, every code scored, nothing else.

BOS is given; EOS is reported apart. What is scored, and at which price, is SpeechLM.forward's to say; what is made of
the nats is report.py. N utterances, B batch, K codebooks, T frames.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...data.grids import StoreGrids
from ...data.progress import progress_bar
from ...data.text_tokenizer import TextTokenizer
from ...data.token_store import TokenStore, name_hash
from ...model.delay_pattern import ABSENT
from ...model.lm import SpeechLM, SpeechLMOutput
from ..config import EvaluateConfig
from ..labelled import as_labelled
from ..windows import Window, describe, windows
from .baselines import CountBaselines
from .report import DEFINITION, LikelihoodReport, likelihood, num_counted


@dataclass(frozen=True)
class Scores:
    """Nats summed over frames; utterances in store order."""

    nll: np.ndarray  # [N, K]
    num_frames: np.ndarray  # [N]
    eos_nll: np.ndarray  # [N], 0 for an utterance whose recording goes on
    text_nll: np.ndarray  # [N], 0 without a text that is predicted
    num_tokens: np.ndarray  # [N] text tokens


@torch.inference_mode()
def score_store(
    model: SpeechLM,
    store: TokenStore,
    config: EvaluateConfig = EvaluateConfig(),
    indices: Sequence[int] | None = None,
    progress: bool = True,
    tokenizer: TextTokenizer | None = None,
) -> Scores:
    """Score utterances of a store (default all); how far a frame looks back is windows.py's rule.

    With the tokenizer of a model with text, an utterance that has a transcript is laid out as in training: its codes
    are then scored as those of speech with that text.

    Raises ValueError if the store's codec is not the model's, FloatingPointError if the model gives NaN.
    """
    store.require_model(model.config)
    chosen = list(range(len(store))) if indices is None else list(indices)
    row_of = {utterance: row for row, utterance in enumerate(chosen)}
    grids = StoreGrids(store, tokenizer, model.config.text.layout)
    nll, (eos_nll, text_nll, num_tokens) = np.zeros((len(chosen), model.num_codebooks)), np.zeros((3, len(chosen)))
    total = int(sum(grids.num_columns[chosen] + store.num_frames[chosen]))
    batches = _batches(model, grids, chosen, config)
    with progress_bar(total=total, unit="frame", desc="score", disable=not progress) as bar:
        for batch in batches:
            with as_labelled(model, config.bf16):
                output, text = score_batch(model, grids, batch)
            assert output.nll is not None and output.eos_nll is not None
            for row, (i, window) in enumerate(batch):
                new = slice(window.first - window.start, window.stop - window.start)
                nll[row_of[i]] += output.nll[row, :, new].double().sum(dim=-1).cpu().numpy()
                eos_nll[row_of[i]] += output.eos_nll[row].item()
                if output.text_nll is not None:
                    text_nll[row_of[i]] += output.text_nll[row, new].double().sum().item()
                    num_tokens[row_of[i]] += (text[row, new] != ABSENT).sum().item()
                bar.update(window.stop - window.first)
    return Scores(nll, store.num_frames[chosen], eos_nll, text_nll, num_tokens)


def score_batch(
    model: SpeechLM, grids: StoreGrids, batch: list[tuple[int, Window]]
) -> tuple[SpeechLMOutput, torch.Tensor]:
    """(utterance, window) of each row -> the model's output and the text [B, T]. Raises FloatingPointError for NaN."""
    longest = max(window.stop - window.start for _, window in batch)
    text = torch.full((len(batch), longest), ABSENT)
    codes = torch.full((len(batch), model.num_codebooks, longest), ABSENT)
    ends = torch.zeros_like(text, dtype=torch.bool)
    for row, (i, window) in enumerate(batch):
        row_text, row_codes = grids.columns(i, window.start, window.stop)
        codes[row, :, : row_codes.shape[1]] = torch.from_numpy(row_codes)
        text[row, : len(row_text)] = torch.from_numpy(row_text)
        if window.ends:
            ends[row, grids.last_audio_column(i) - window.start] = True
    device = model.device
    output = model(codes.to(device), ends.to(device), text=text.to(device) if model.text_size else None)
    if torch.isnan(output.nll).any():
        raise FloatingPointError("the model gave NaN: its weights are broken")
    return output, text


def context_frames(model: SpeechLM, config: EvaluateConfig) -> int:
    return config.context_frames or model.config.context_frames


def _batches(
    model: SpeechLM, grids: StoreGrids, chosen: Sequence[int], config: EvaluateConfig
) -> Iterator[list[tuple[int, Window]]]:
    """(utterance, window) in batches of similar length, padding included at most `frames_per_batch`, or one."""
    context, has_end, pieces = context_frames(model, config), model.config.end == "eos", []
    for i in chosen:
        last = grids.last_audio_column(i) if has_end and grids.store.ends(i) else None
        pieces += [(i, window) for window in windows(grids.length(i), context, last)]
    pieces.sort(key=lambda piece: piece[1].start - piece[1].stop)  # longest first
    batch: list[tuple[int, Window]] = []
    for piece in pieces:
        longest = batch[0][1].stop - batch[0][1].start if batch else 0
        if batch and (len(batch) + 1) * longest > config.frames_per_batch:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def evaluate(
    model: SpeechLM,
    store: TokenStore,
    checkpoint_hash: str,
    baseline_store: TokenStore | None = None,
    config: EvaluateConfig = EvaluateConfig(),
    tokenizer: TextTokenizer | None = None,
    progress: bool = True,
) -> LikelihoodReport:
    """Score a store with the model and with the two baselines.

    baseline_store: codes that the baselines are counted on, normally the training data's. Without it each half of the
    utterances is predicted from the other half.
    """
    indices = choose(store, config)
    scores = score_store(model, store, config, indices, progress, tokenizer)
    unigram, bigram = baseline_scores(store, indices, baseline_store)
    rate, info = store.codec.frame_rate, store.codec
    frames = int(scores.num_frames.sum())
    return LikelihoodReport(
        definition=DEFINITION,
        scope=config.scope,
        precision="bfloat16" if config.bf16 else str(model.dtype).removeprefix("torch."),
        context=describe(context_frames(model, config), rate),
        model=likelihood(scores.nll, scores.num_frames, rate, config),
        unigram=likelihood(unigram, scores.num_frames, rate, config),
        bigram=likelihood(bigram, scores.num_frames, rate, config),
        baselines_from=str(baseline_store.folder) if baseline_store else "the other half of the same utterances",
        raw_bits_per_second=rate * num_counted(info.num_codebooks, config.scope) * math.log2(info.codebook_size),
        eos_nats=float(scores.eos_nll.sum() / max(1, sum(map(store.ends, indices)))),
        num_tokens=int(scores.num_tokens.sum()),
        text_nats=float(scores.text_nll.sum() / max(1, scores.num_tokens.sum())),
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
    order = sorted(range(len(store)), key=lambda i: name_hash(store.names[i]))
    return sorted(order[: config.limit])


def baseline_scores(
    store: TokenStore, indices: Sequence[int], baseline_store: TokenStore | None
) -> tuple[np.ndarray, np.ndarray]:
    """nll [N, K] nats of the unigram and of the bigram baseline."""
    info = store.codec
    unigram = np.zeros((len(indices), info.num_codebooks))
    bigram = np.zeros_like(unigram)
    if baseline_store is not None:
        baseline_store.require_codec(info)
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
