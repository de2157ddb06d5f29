"""Nats of pairs of recordings, under the model and under counts of codes.

The model's are those of score.py, frame by frame. The bigram is counted on other pairs, on their better and worse
recordings alike: a pair that it gets right shows a cue that needs no hearing. T frames, K codebooks.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ...data.grids import StoreGrids
from ...data.progress import progress_bar
from ...data.token_store import TokenStore
from ...model.lm import SpeechLM
from ..config import EvaluateConfig
from ..windows import Window
from .adapter import Adapted
from .baselines import CountBaselines
from .items import Item, Nats, append_items
from .pair_clips import CHUNK, read_clips, window_of
from .pairs import Pair
from .score import Stretch, frame_nll, stretches_of

Frames = tuple[int, int] | None  # start and stop of the local score


def score_pairs(
    model: SpeechLM | Adapted,
    store: TokenStore,
    pairs: Sequence[Pair],
    done: dict[str, Item],
    folder: Path,
    window_s: float,
    baseline_store: TokenStore | None = None,
    config: EvaluateConfig = EvaluateConfig(),
    progress: bool = True,
) -> list[Item]:
    """Score the pairs that are not `done`, appending each to items.jsonl in `folder` -> all items, in order."""
    row_of = {name: row for row, name in enumerate(store.names)}
    rows = {pair.name: (row_of[f"{pair.name}/better"], row_of[f"{pair.name}/worse"]) for pair in pairs}
    tasks: dict[str, list[Pair]] = {}
    for pair in pairs:
        tasks.setdefault(pair.task, []).append(pair)
    found = {pair.name: done[pair.name] for pair in pairs if pair.name in done}
    with progress_bar(total=len(pairs), initial=len(found), unit="pair", desc="score", disable=not progress) as bar:
        for asked in tasks.values():
            if all(pair.name in found for pair in asked):
                continue
            bigrams = _bigrams(store, [rows[pair.name] for pair in asked], baseline_store)
            for first in range(0, len(asked), CHUNK):
                # a run that goes on makes the batches of one that was never stopped, and so the same numbers
                chunk = asked[first : first + CHUNK]
                new = [pair.name for pair in chunk if pair.name not in found]
                if new:
                    counts = bigrams[first : first + CHUNK]
                    items = _items(model, store, chunk, [rows[pair.name] for pair in chunk], window_s, counts, config)
                    items = [item for item in items if item.name in new]
                    append_items(folder, items)
                    found |= {item.name: item for item in items}
                    bar.update(len(items))
    return [found[pair.name] for pair in pairs]


def _items(
    model: SpeechLM | Adapted,
    store: TokenStore,
    chunk: Sequence[Pair],
    rows: Sequence[tuple[int, int]],
    window_s: float,
    bigrams: Sequence[CountBaselines | None],
    config: EvaluateConfig,
) -> Iterator[Item]:
    """Score a few pairs in batches of their own."""
    clips = [read_clips(pair, store.codec.sample_rate) for pair in chunk]
    rate = store.codec.frame_rate
    local = []
    for (better, worse), pair in zip(rows, clips, strict=True):
        num_frames = int(min(store.num_frames[better], store.num_frames[worse]))
        window = None if pair.span_s is None else window_of(pair.span_s, window_s, rate, num_frames)
        local.append(None if window is None or window[0] >= window[1] else window)
    nats = model_nats(model, store, rows, local, config)
    for pair, both, frames, (better, worse), own, counts in zip(chunk, clips, local, rows, nats, bigrams, strict=True):
        codes = [store.codes(i)[:, : len(own.whole[0])] for i in (better, worse)]
        yield Item(
            name=pair.name,
            task=pair.task,
            sha256=list(both.sha256),
            seconds=[len(audio) / store.codec.sample_rate for audio in both.audio],
            window=None if frames is None else list(frames),
            level_step_db=None if (levels := both.levels(store.codec.sample_rate)) is None else list(levels),
            model=own,
            bigram=None if counts is None else bigram_nats(counts, codes, frames),
        )


def model_nats(
    model: SpeechLM | Adapted,
    store: TokenStore,
    rows: Sequence[tuple[int, int]],
    local: Sequence[Frames],
    config: EvaluateConfig = EvaluateConfig(),
) -> list[Nats]:
    """Utterances of the better and worse recordings, and the frames of their local scores -> nats of each pair."""
    whole = {i: stretches_of(model, StoreGrids(store, indices=[]), [i], config) for pair in rows for i in pair}
    alone: dict[int, Stretch] = {}
    for pair, frames in zip(rows, local, strict=True):
        if frames is not None:  # a window of its own begins with BOS
            alone |= {i: (i, Window(frames[0], frames[0], frames[1])) for i in pair}
    stretches = [stretch for parts in whole.values() for stretch in parts] + list(alone.values())
    scored = dict(zip(stretches, frame_nll(model, store, stretches, config), strict=True))
    found = []
    for pair, frames in zip(rows, local, strict=True):
        nll = [np.concatenate([scored[stretch] for stretch in whole[i]], axis=1) for i in pair]  # [K, T] each
        found.append(
            Nats(
                whole=[each.sum(axis=1).tolist() for each in nll],
                local=None if frames is None else [each[:, slice(*frames)].sum(axis=1).tolist() for each in nll],
                alone=None if frames is None else [scored[alone[i]].sum(axis=1).tolist() for i in pair],
            )
        )
    return found


def bigram_nats(bigram: CountBaselines, codes: Sequence[np.ndarray], frames: Frames) -> Nats:
    """codes [T, K] of the better and the worse recording -> their nats."""

    def nats(part: Callable[[np.ndarray], np.ndarray]) -> list[list[float]]:
        return [part(each).tolist() for each in codes]

    whole = nats(lambda each: bigram.nll(each)[1])
    if frames is None:
        return Nats(whole, None, None)
    start, stop = frames
    local = nats(lambda each: bigram.nll(each[:stop])[1] - bigram.nll(each[:start])[1])
    return Nats(whole, local, nats(lambda each: bigram.nll(each[start:stop])[1]))


def _bigrams(
    store: TokenStore, rows: Sequence[tuple[int, int]], baseline_store: TokenStore | None
) -> list[CountBaselines | None]:
    """Counts for each pair of a task: of `baseline_store`, or of the other half of the pairs (None if there is none).

    Two pairs that follow each other are in the same half: in `hearing` they are made of the same recordings.
    """
    info = store.codec
    if baseline_store is not None:
        baseline_store.require_codec(info)
        everything = (baseline_store.codes(i) for i in range(len(baseline_store)))
        return [CountBaselines(everything, info.codebook_size, info.num_codebooks)] * len(rows)
    half_of = [number // 2 % 2 for number in range(len(rows))]
    counts: list[CountBaselines | None] = []
    for half in (0, 1):
        others = [i for number, pair in enumerate(rows) if half_of[number] != half for i in pair]
        codes = (store.codes(i) for i in others)
        counts.append(CountBaselines(codes, info.codebook_size, info.num_codebooks) if others else None)
    return [counts[half] for half in half_of]
