"""A speech LM that is to read another codec's codes: its tables are translated by speech that both codecs have encoded.

The transformers stay as they are. A code of the new codec is embedded so that the sum over a frame's codebooks comes
nearest to what the model was given for that frame in the old codes (least squares), and its row of a head is the mean
of the rows of the old codes that stood where it stands. No gradient is taken; a fine-tune goes on from there.

N frames that both have encoded, K codebooks, V codebook size, D width.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.token_store import TokenStore
from ..inference.generator import SpeechGenerator
from ..inference.loading import save_model
from ..model.codec_reference import CodecReference
from ..model.codecs import Codec
from ..model.lm import SpeechLM

PATTERNS = ("depth", "delay", "parallel")  # a step embeds all codebooks of a frame as their sum
FRAMES = 200_000  # that tables are translated by, at most
ROUNDS = 20  # over the codebooks, each fitted to what the others leave
SHRINK = 2.0  # frames of the mean over all codes that each code is given beside its own
log = logging.getLogger(__name__)


def transfer_codec(lm: SpeechGenerator, old: TokenStore, new: TokenStore, codec: Codec, out: Path) -> Path:
    """`lm` for the codes of `codec` -> the model folder `out`, which must not be there.

    old, new: the same recordings as lm's codec encodes them, and as `codec` does; utterances of the same name belong
    together. Raises ValueError in one line if they are not of these codecs, have no utterance in common, or the two
    codecs differ in frame rate or number of codebooks; FileExistsError.
    """
    old.require_model(lm.model.config)
    new.require_codec(codec)
    config = lm.model.config
    if config.pattern not in PATTERNS or config.user_codebooks:
        has = "another speaker's codebooks" if config.user_codebooks else f"the pattern '{config.pattern}'"
        raise ValueError(f"{lm.name}: has {has}; tables are translated for {', '.join(PATTERNS)}, of one speaker")
    ours, theirs = ((c.frame_rate, c.num_codebooks) for c in (lm.codec, codec))
    if ours != theirs:
        raise ValueError(
            f"the model's codec has {ours[1]} codebooks at {ours[0]:g} Hz, the other one {theirs[1]} at {theirs[0]:g}; "
            "both must be the same"
        )
    model = transferred(lm.model, codec, *pairs(old, new))
    save_model(model, codec, out, tokenizer=lm.tokenizer, replace=False)
    return out


def pairs(old: TokenStore, new: TokenStore) -> tuple[Tensor, Tensor]:
    """Codes [K, N] of the same frames. Raises ValueError if the stores have no utterance in common."""
    places = {name: i for i, name in enumerate(new.names)}
    both = [(i, places[name]) for i, name in enumerate(old.names) if name in places]
    if not both:
        raise ValueError(f"{old.folder} and {new.folder} have no utterance in common; prepare the same recordings")
    found, frames = [], 0
    for place in np.random.default_rng(0).permutation(len(both)).tolist():
        i, j = both[place]
        length = min(int(old.num_frames[i]), int(new.num_frames[j]))
        found.append((old.codes(i, 0, length), new.codes(j, 0, length)))
        frames += length
        if frames >= FRAMES:
            break
    log.info(f"{frames} frames of {len(found)} utterances are known in both codecs")
    ours, theirs = (np.concatenate(codes).T.astype(np.int64) for codes in zip(*found, strict=True))
    return torch.from_numpy(ours), torch.from_numpy(theirs)


@torch.no_grad()
def transferred(model: SpeechLM, codec: Codec, old: Tensor, new: Tensor) -> SpeechLM:
    """The model for the codes of `codec`. old, new: codes [K, N] of the same frames."""
    found = SpeechLM(model.config.changed(codec=CodecReference.of(codec), codebook_size=codec.codebook_size))
    codes = _Codes(old, new, model.codebook_size, codec.codebook_size)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, tensor in weights.items():
        match name.split(".")[-2:]:
            case ["frame_embedding" | "embedding", "weight"]:
                weights[name] = codes.embeddings(tensor)
            case ["head_0", "weight"]:
                weights[name] = torch.cat([codes.rows(tensor[: model.codebook_size], 0), tensor[model.codebook_size :]])
            case [*_, "heads"]:
                weights[name] = torch.stack([codes.rows(head.T, k).T for k, head in enumerate(tensor, 1)])
    found.load_state_dict(weights)
    return found


@dataclass(frozen=True)
class _Codes:
    """The same frames in both codecs."""

    old: Tensor  # [K, N]
    new: Tensor
    old_size: int  # V
    new_size: int

    def embeddings(self, table: Tensor) -> Tensor:
        """A table of K' leading codebooks, [K' x (V + 1) + 1, D] as the frame embedding's, for the new codes."""
        rows = self.old_size + 1
        count = len(table) // rows
        blocks = table[: count * rows].view(count, rows, -1)
        means, wanted = [], table.new_zeros(self.old.shape[1], table.shape[1])
        for block, codes in zip(blocks, self.old, strict=False):
            given = block[codes]
            means.append(given.mean(dim=0))
            wanted += given - means[-1]
        fitted = self._fitted(wanted, count) + torch.stack(means)[:, None]
        # BOS of each codebook, and "absent" at the end
        joined = torch.cat([fitted, blocks[:, self.old_size :]], dim=1).flatten(0, 1)
        return torch.cat([joined, table[count * rows :]])

    def _fitted(self, wanted: Tensor, count: int) -> Tensor:
        """[K', V, D] whose sums over a frame's codes are nearest to wanted [N, D], which has mean 0."""
        found = wanted.new_zeros(count, self.new_size, wanted.shape[1])
        rest = wanted.clone()
        for _ in range(ROUNDS):
            for k, codes in enumerate(self.new[:count]):
                rest += found[k][codes]
                found[k] = self._means(rest, codes)
                rest -= found[k][codes]
        told = 1 - (rest.square().sum() / wanted.square().sum()).item()
        log.info(f"the new codes tell {told:.0%} of what {count} codebooks of the old ones were embedded as")
        return found

    def rows(self, table: Tensor, codebook: int) -> Tensor:
        """[V, D] of a codebook's old codes -> that of its new codes."""
        mean = table.mean(dim=0)
        return self._means(table[self.old[codebook]] - mean, self.new[codebook]) + mean

    def _means(self, values: Tensor, codes: Tensor) -> Tensor:
        """[N, D] -> [V, D], the mean over the frames of each code, nearer to 0 where these are few."""
        sums = values.new_zeros(self.new_size, values.shape[1]).index_add_(0, codes, values)
        return sums / (torch.bincount(codes, minlength=self.new_size)[:, None] + SHRINK)
