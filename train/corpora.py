"""The token stores of a run: what each holds out, and how they are mixed into batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.dataset import Batches, TokenBatches
from ..data.mixture import MixedBatches
from ..data.split import balance_voices, first_by_hash, split_heldout
from ..data.text_tokenizer import TextTokenizer
from ..data.token_store import TokenStore
from ..model.shapes import TextConfig
from .config import BatchConfig

Stores = TokenStore | Sequence[TokenStore]


@dataclass(frozen=True)
class Corpus:
    """One token store of a run."""

    store: TokenStore
    training: np.ndarray  # utterances, some of them repeatedly
    heldout: list[int]
    scored: list[int]  # at an evaluation
    share: float  # its part of the batches

    @property
    def name(self) -> str:
        """In records and logs."""
        return str(self.store.folder)


def corpora(stores: Stores, batch: BatchConfig) -> list[Corpus]:
    """Raises ValueError for weights that do not fit the stores, stores of several codecs, or one that is too small."""
    stores = [stores] if isinstance(stores, TokenStore) else list(stores)
    if batch.mix and len(batch.mix) != len(stores):
        raise ValueError(f"mix has {len(batch.mix)} weights for {len(stores)} corpora; give one for each")
    for store in stores[1:]:
        store.require_codec(stores[0].codec)
    names = [str(store.folder) for store in stores]
    if len(set(names)) < len(names):
        raise ValueError(f"{max(names, key=names.count)}: is given twice; --batch.mix gives a corpus more weight")
    splits = [split_heldout(store, *batch.split) for store in stores]
    lengths = [int(store.num_frames[training].sum()) for store, (training, _) in zip(stores, splits, strict=True)]
    weights, found = batch.mix or lengths, []
    for store, (training, heldout), weight in zip(stores, splits, weights, strict=True):
        scored = first_by_hash(store, heldout, batch.heldout_frames)
        if batch.voice_power < 1:
            training = balance_voices(store, training, batch.voice_power)
        found.append(Corpus(store, training, heldout.tolist(), scored, weight / sum(weights)))
    return found


def batches_of(
    found: Sequence[Corpus],
    batch: BatchConfig,
    seed: int,
    tokenizer: TextTokenizer | None,
    text: TextConfig,
    packed: bool,
    replay: TokenStore | None = None,
    replay_share: float = 0.0,
) -> Batches:
    """Batches of the corpora, and of `replay` with that share of the rows."""
    sizes = batch.frames_per_batch, min(batch.max_frames, batch.frames_per_batch)
    how = tokenizer, text, packed, batch.codebook_dropout, batch.text
    parts = [TokenBatches(corpus.store, *sizes, seed, corpus.training, *how) for corpus in found]
    shares = [corpus.share for corpus in found]
    if replay is not None:
        parts.append(TokenBatches(replay, *sizes, seed, None, *how))
        shares = [share * (1 - replay_share) for share in shares] + [replay_share]
    return parts[0] if len(parts) == 1 else MixedBatches(parts, shares)
