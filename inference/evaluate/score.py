"""Likelihood of speech under a SpeechLM, in one definition: unweighted, every code scored, nothing else.

BOS is given; EOS is reported apart. What is scored, and at which price, is SpeechLM.forward's to say; what is made of
the nats is report.py. N utterances, B batch, K codebooks, T frames.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ...data.grids import StoreGrids
from ...data.progress import progress_bar
from ...data.rows import Piece, can_be_packed, pack, stack
from ...data.split import name_hash
from ...data.text_times import TextTimes
from ...data.text_tokenizer import TextTokenizer
from ...data.token_store import TokenStore
from ...model.check_inputs import check_leading
from ...model.delay_pattern import ABSENT
from ...model.lm import SpeechLM, SpeechLMOutput
from ...model.shapes import TAGGED
from ..config import EvaluateConfig
from ..labelled import as_labelled
from ..precision import weights_of
from ..windows import Window, describe, window_frames, windows
from .adapter import Adapted
from .baselines import CountBaselines
from .report import DEFINITION, OTHER_HALF, LikelihoodReport, likelihood, num_counted, saved_interval

Stretch = tuple[int, Window]  # of an utterance


@dataclass(frozen=True)
class Scores:
    """Nats summed over frames; utterances in store order."""

    nll: np.ndarray  # [N, K], of the leading codebooks that are scored
    num_frames: np.ndarray  # [N]
    eos_nll: np.ndarray  # [N], 0 for an utterance whose recording goes on
    text_nll: np.ndarray  # [N], 0 without a text that is predicted
    num_tokens: np.ndarray  # [N] text tokens


@torch.inference_mode()
def score_store(
    model: SpeechLM | Adapted,
    store: TokenStore,
    config: EvaluateConfig = EvaluateConfig(),
    indices: Sequence[int] | None = None,
    progress: bool = True,
    tokenizer: TextTokenizer | None = None,
) -> Scores:
    """Score utterances of a store (default all); how far a frame looks back is windows.py's rule.

    With the tokenizer of a model with text, an utterance that has a transcript is laid out as in training: its codes
    are then scored as those of speech with that text. A "mixed" model scores them as those of audio alone and then its
    text, where that fits into its context; with `config.given_text` as speech with that text.

    Raises ValueError if the store's codec is not the model's, or it has no texts to give; FloatingPointError if the
    model gives NaN.
    """
    chosen = list(range(len(store))) if indices is None else list(indices)
    if isinstance(model, Adapted):
        whole = [(i, Window(0, 0, int(store.num_frames[i]))) for i in chosen]
        nats = np.stack([each.sum(axis=1) for each in model.frame_nll(store, whole, config, progress)])
        none = np.zeros(len(chosen))
        return Scores(nats, store.num_frames[chosen], none, none, none)
    store.require_model(model.config)
    row_of = {utterance: row for row, utterance in enumerate(chosen)}
    grids = grids_of(model, store, config, chosen, tokenizer)
    num_codebooks = check_leading(config.num_codebooks, model.num_codebooks)
    nll, (eos_nll, text_nll, num_tokens) = np.zeros((len(chosen), num_codebooks)), np.zeros((3, len(chosen)))
    total = int(sum(grids.num_columns[chosen] + store.num_frames[chosen]))
    stretches = stretches_of(model, grids, chosen, config)
    with progress_bar(total=total, unit="frame", desc="score", disable=not progress) as bar:
        for (i, window), scored in score_stretches(model, grids, stretches, config):
            row = row_of[i]
            nll[row] += scored.nll.double().sum(dim=-1).cpu().numpy()
            eos_nll[row] += scored.eos_nll
            if scored.text_nll is not None:
                text_nll[row] += scored.text_nll.double().sum().item()
                num_tokens[row] += scored.num_tokens
            bar.update(window.stop - window.first)
    return Scores(nll, store.num_frames[chosen], eos_nll, text_nll, num_tokens)


def grids_of(
    model: SpeechLM, store: TokenStore, config: EvaluateConfig, chosen: list[int], tokenizer: TextTokenizer | None
) -> StoreGrids:
    """Utterances as they are scored.

    Raises ValueError for `given_text` where the model has other layouts, FileNotFoundError where it needs times that a
    store does not have.
    """
    layout = model.config.text.layout if model.text_size else "none"
    if config.given_text and layout not in TAGGED:
        raise ValueError(f"given_text: is for models with the text layout 'mixed' or 'timed'; this one has '{layout}'")
    if layout not in TAGGED:
        return StoreGrids(store, tokenizer, model.config.text, indices=chosen)
    if layout == "timed" and not config.given_text:
        return StoreGrids(store, indices=chosen)  # audio alone, of a store that need not know when its texts are said
    if layout == "timed":
        TextTimes(store)  # without times the texts would be left out
    grids = StoreGrids(store, tokenizer, model.config.text, context_frames(model, config), chosen)
    return grids.all_first() if config.given_text else grids


class Scored(NamedTuple):
    """What a model gives to the columns that one window predicts."""

    nll: torch.Tensor  # [K, T] nats of the leading codebooks that are scored
    eos_nll: float
    text_nll: torch.Tensor | None  # [T]
    num_tokens: int


def score_stretches(
    model: SpeechLM, grids: StoreGrids, stretches: list[Stretch], config: EvaluateConfig
) -> Iterator[tuple[Stretch, Scored]]:
    """Score windows of utterances, in an order that makes batches of them. Raises FloatingPointError for NaN."""
    num_codebooks = check_leading(config.num_codebooks, model.num_codebooks)
    for batch in _batches(model, stretches, config):
        with as_labelled(model, config.bf16):
            output, text = score_rows(model, grids, batch, num_codebooks)
        assert output.nll is not None and output.eos_nll is not None
        eos = output.eos_nll.view(len(batch), -1)
        for row, number, new in predicted(batch):
            text_nll = None if output.text_nll is None else output.text_nll[row, new]
            num_tokens = 0 if text_nll is None else int((text[row, new] != ABSENT).sum())
            scored = Scored(output.nll[row, :num_codebooks, new], eos[row, number].item(), text_nll, num_tokens)
            yield batch[row][number], scored


@torch.inference_mode()
def frame_nll(
    model: SpeechLM | Adapted, store: TokenStore, stretches: list[Stretch], config: EvaluateConfig = EvaluateConfig()
) -> list[np.ndarray]:
    """Windows of utterances -> nats [K, T] of the frames that each predicts, in the order given.

    A window that starts within an utterance knows nothing of what comes before it. Texts are left out. Raises as
    `score_store` does.
    """
    if isinstance(model, Adapted):
        return model.frame_nll(store, stretches, config)
    store.require_model(model.config)
    found: dict[Stretch, np.ndarray] = {}
    for stretch, scored in score_stretches(model, StoreGrids(store, indices=[]), stretches, config):
        found[stretch] = scored.nll.double().cpu().numpy()
    return [found[stretch] for stretch in stretches]


@torch.inference_mode()
def codes_nll(model: SpeechLM, codes: torch.Tensor) -> np.ndarray:
    """Codes [K, T] of one recording, without a text -> nats [K, T], as `score_store` counts them; no store is needed.

    Raises FloatingPointError if the model gives NaN.
    """
    found = []
    for window in windows(codes.shape[1], window_frames(model.config)):
        with as_labelled(model):
            nll = model(codes[None, :, window.start : window.stop]).nll
        found.append(nll[0, :, window.first - window.start :].double().cpu().numpy())
    joined = np.concatenate(found, axis=1)
    if np.isnan(joined).any():
        raise FloatingPointError("the model gave NaN: its weights are broken")
    return joined


def score_rows(
    model: SpeechLM, grids: StoreGrids, batch: list[list[Stretch]], num_codebooks: int
) -> tuple[SpeechLMOutput, torch.Tensor]:
    """The windows of each row -> the model's output and the text [B, T]; codebooks from num_codebooks on are ABSENT.

    Raises FloatingPointError for NaN.
    """

    def piece(i: int, window: Window) -> Piece:
        end = grids.last_audio_column(i) - window.start if window.ends else None
        text, codes = grids.columns(i, window.start, window.stop)
        return Piece(text, codes, end, grids.given(text))

    pieces = [[piece(*stretch) for stretch in row] for row in batch]
    rows = stack(pieces, model.num_codebooks, max(map(row_length, batch)))
    rows.codes[:, num_codebooks:] = ABSENT
    inputs = rows.to(model.device)
    text = inputs.text if model.text_size else None
    output = model(inputs.codes, inputs.ends, text=text, documents=inputs.documents, given=inputs.given)
    if torch.isnan(output.nll).any():
        raise FloatingPointError("the model gave NaN: its weights are broken")
    return output, rows.text if rows.given is None else rows.text.masked_fill(rows.given, ABSENT)


def predicted(batch: list[list[Stretch]]) -> Iterator[tuple[int, int, slice]]:
    """(row, number in the row, columns of the row that are predicted) of each window."""
    for row, stretches in enumerate(batch):
        start = 0
        for number, (_, window) in enumerate(stretches):
            stop = start + window.stop - window.start
            yield row, number, slice(start + window.first - window.start, stop)
            start = stop


def context_frames(model: SpeechLM, config: EvaluateConfig) -> int:
    return config.context_frames or window_frames(model.config)


def stretches_of(
    model: SpeechLM | Adapted, grids: StoreGrids, chosen: Sequence[int], config: EvaluateConfig
) -> list[Stretch]:
    """The windows that predict every column of these utterances once; a model behind an adapter has one for each."""
    if isinstance(model, Adapted):
        return [(i, Window(0, 0, grids.length(i))) for i in chosen]
    context, has_end, stretches = context_frames(model, config), model.config.end == "eos", []
    for i in chosen:
        last = grids.last_audio_column(i) if has_end and grids.store.ends(i) else None
        stretches += [(i, window) for window in windows(grids.length(i), context, last)]
    return stretches


def _batches(model: SpeechLM, stretches: list[Stretch], config: EvaluateConfig) -> Iterator[list[list[Stretch]]]:
    """Rows of windows in batches of at most `frames_per_batch` columns, padding included, or one row.

    Rows are as long as the longest window, and filled up with shorter ones; where the model cannot have that
    (rows.py's `can_be_packed`), each is one window, padded to the longest of its batch.
    """
    lengths = [columns_of(stretch) for stretch in stretches]
    row_columns = max((length for length in lengths if length <= config.frames_per_batch), default=0)
    numbers = pack(lengths, row_columns if can_be_packed(model.config) else 0)  # 0: no window has room beside it
    rows = [[stretches[number] for number in row] for row in numbers]
    rows.sort(key=row_length, reverse=True)
    batch: list[list[Stretch]] = []
    for row in rows:
        if batch and (len(batch) + 1) * row_length(batch[0]) > config.frames_per_batch:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def columns_of(stretch: Stretch) -> int:
    return stretch[1].stop - stretch[1].start


def row_length(row: list[Stretch]) -> int:
    return sum(map(columns_of, row))


def evaluate(
    model: SpeechLM | Adapted,
    store: TokenStore,
    checkpoint_hash: str,
    baseline_store: TokenStore | None = None,
    config: EvaluateConfig = EvaluateConfig(),
    tokenizer: TextTokenizer | None = None,
    progress: bool = True,
    part: Sequence[int] | None = None,
) -> LikelihoodReport:
    """Score a store, or these utterances of it, with the model and with the two baselines.

    baseline_store: codes that the baselines are counted on, normally the training data's. Without it each half of the
    utterances is predicted from the other half.
    """
    indices = choose(store, config, part)
    scores = score_store(model, store, config, indices, progress, tokenizer)
    num_codebooks = scores.nll.shape[1]
    unigram, bigram = (nll[:, :num_codebooks] for nll in baseline_scores(store, indices, baseline_store))
    rate, info = store.codec.frame_rate, store.codec
    frames = int(scores.num_frames.sum())
    return LikelihoodReport(
        definition=DEFINITION,
        scope=config.scope,
        num_codebooks=num_codebooks,
        precision=precision_of(model, config),
        context=context_of(model, config, rate),
        model=likelihood(scores.nll, scores.num_frames, rate, config),
        unigram=likelihood(unigram, scores.num_frames, rate, config),
        bigram=likelihood(bigram, scores.num_frames, rate, config),
        saved_interval=saved_interval(scores.nll, bigram, config),
        baselines_from=str(baseline_store.folder) if baseline_store else OTHER_HALF,
        raw_bits_per_second=rate * num_counted(num_codebooks, config.scope) * math.log2(info.codebook_size),
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


def context_of(model: SpeechLM | Adapted, config: EvaluateConfig, frame_rate: float) -> str:
    """What a frame is predicted from, in words."""
    if isinstance(model, Adapted):
        return "the adapter's"
    before = describe(context_frames(model, config), frame_rate)
    return f"its transcript, then {before}" if config.given_text else before


def precision_of(model: SpeechLM | Adapted, config: EvaluateConfig) -> str:
    """In words. Raises ValueError for two at once."""
    if isinstance(model, Adapted):
        return "the adapter's precision"
    weights = weights_of(model)
    if config.bf16 and weights is not None:
        raise ValueError(f"bf16: of no use beside weights '{weights}'; give one of the two")
    if weights in (None, "float32"):
        return "bfloat16" if config.bf16 else str(model.dtype).removeprefix("torch.")
    return f"{weights} weights"


def choose(store: TokenStore, config: EvaluateConfig, part: Sequence[int] | None = None) -> list[int]:
    """All utterances (or this part of them), or config.limit of them by the hash of their names."""
    among = list(range(len(store)) if part is None else part)
    if not config.limit:
        return among
    order = sorted(among, key=lambda i: name_hash(store.names[i]))
    # the interval depends on their order, which is that of their names, whenever they came into the store
    return sorted(order[: config.limit], key=lambda i: store.names[i])


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
