"""How often text tokens follow one another: an n-gram model of texts alone, which tells likely spellings from unlikely.

The probability of a token w after a context h, its last tokens, mixes that of all shorter contexts (Witten and Bell,
1991), so it is never 0:

    p(w | h) = (c(h w) + r(h) p(w | h')) / (c(h) + t(h))        r(h) = c(h) - sum of the c(h w) + t(h)

c counts in texts, h' is h without its first token, t(h) is how many different tokens follow h, and before the empty
context all tokens are equally likely. Rare grams are left out; what they would add, r gives to the shorter context.
A text stands between BOS and EOS.

ngram.safetensors holds a tree, shortest grams first, each level in the order of the one above and then of tokens:
tokens [N], the last one of each gram, as its place among those `seen`; counts [N] in bfloat16; followers [N'], the
longer grams that begin with each; sizes [order], the grams of each length. N grams, N' without the longest, V tokens.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ..model.files import write_whole
from ..model.text_tokens import BOS, EOS
from ..model.weights import metadata_of

NGRAM_FILE = "ngram.safetensors"
ORDER = 7
LEAST = (1, 1, 1, 1, 2, 2, 3)  # times that a gram is seen, by its length; of longer ones as the last
KEPT_CONTEXTS = 4096  # whose probabilities are remembered

State = tuple[int, ...]  # the grams that a text ends with, shortest first


class Ngram:
    def __init__(
        self, tokens: np.ndarray, counts: np.ndarray, followers: np.ndarray, sizes: np.ndarray, num_tokens: int
    ):
        """As in the file, counts as float; num_tokens: V."""
        self.tokens, self.counts, self.followers, self.sizes = tokens, counts, followers, sizes
        self.order, self.num_tokens = len(sizes), num_tokens
        # where the grams begin that have one token more
        self.after = np.concatenate([[sizes[0]], sizes[0] + np.cumsum(followers)])
        alone = np.zeros(num_tokens)
        alone[tokens[: sizes[0]]] = counts[: sizes[0]]
        alone[BOS] = 0  # nothing comes before it
        self.alone = (alone + (alone > 0).sum() / num_tokens) / (alone.sum() + (alone > 0).sum())
        self._known: dict[State, np.ndarray] = {}
        self.start = self.next((), BOS)

    @classmethod
    def count(
        cls, texts: Iterable[Sequence[int]], num_tokens: int, order: int = ORDER, least: Sequence[int] = LEAST
    ) -> "Ngram":
        """Tokens of texts, without BOS and EOS. order: of the longest grams. least: times that a gram must be seen,
        never falling.

        Raises ValueError if there is no text.
        """
        assert list(least) == sorted(least) and order > 0
        texts = [[BOS, *text, EOS] for text in texts if len(text)]
        if not texts:
            raise ValueError("no text to count tokens in")
        stream = np.concatenate([np.asarray(text, np.int64) for text in texts])
        left = np.concatenate([np.arange(len(text), 0, -1) for text in texts])  # tokens up to the end of the text
        begins, gram = np.arange(len(stream)), np.zeros(len(stream), np.int64)
        levels, followers, above = [], [], 1
        for length in range(1, order + 1):
            inside = left[begins] >= length
            begins, gram = begins[inside], gram[inside]
            key, gram, count = np.unique(
                gram * num_tokens + stream[begins + length - 1], return_inverse=True, return_counts=True
            )
            kept = count >= least[min(length, len(least)) - 1]
            if not kept.any():
                break
            levels.append((key[kept] % num_tokens, count[kept]))
            followers.append(np.bincount(key[kept] // num_tokens, minlength=above))
            is_kept, number = kept[gram], np.cumsum(kept) - 1
            begins, gram, above = begins[is_kept], number[gram[is_kept]], int(kept.sum())
        tokens, counts = map(np.concatenate, zip(*levels, strict=True))
        rounded = torch.from_numpy(counts).to(torch.bfloat16).double().numpy()  # as they are in the file
        sizes = np.array([len(level) for level, _ in levels])
        return cls(tokens, rounded, np.concatenate([np.zeros(0, np.int64), *followers[1:]]), sizes, num_tokens)

    def next(self, state: State, token: int) -> State:
        """The state after one more token."""
        found = []
        for gram in (-1, *state)[: self.order]:
            first, last = self._longer(gram)
            place = first + int(np.searchsorted(self.tokens[first:last], token))
            if place == last or self.tokens[place] != token:
                break
            found.append(place)
        return tuple(found[: self.order - 1])

    def log_probabilities(self, state: State) -> np.ndarray:
        """ln of the probability of each token that may come next [V]."""
        if (known := self._known.get(state)) is not None:
            return known
        p = self.alone
        for gram in state:
            first, last = self._longer(gram)
            if first == last:  # then nothing longer has any, either
                break
            counts, different = self.counts[first:last], last - first
            seen = counts.sum()
            total = max(float(self.counts[gram]), seen) + different  # rounded, a count may be less than its parts
            p = p * (total - seen) / total
            p[self.tokens[first:last]] += counts / total
        if len(self._known) >= KEPT_CONTEXTS:
            self._known.clear()
        self._known[state] = np.log(p)
        return self._known[state]

    def _longer(self, gram: int) -> tuple[int, int]:
        """Where the grams are that have one token more, begin and end; -1: those of one token."""
        return (0, int(self.sizes[0])) if gram < 0 else (int(self.after[gram]), int(self.after[gram + 1]))

    def save(self, folder: Path, tokenizer: str) -> None:
        """Write folder/ngram.safetensors, whole or not at all. tokenizer: the fingerprint of the one that it is of."""
        num_seen = int(self.sizes[0])
        small = torch.uint8 if num_seen <= torch.iinfo(torch.uint8).max else torch.int32
        tensors = {
            "seen": torch.from_numpy(self.tokens[:num_seen]),
            "tokens": torch.from_numpy(np.searchsorted(self.tokens[:num_seen], self.tokens)).to(small),
            "counts": torch.from_numpy(self.counts).to(torch.bfloat16),
            "followers": torch.from_numpy(self.followers).to(small),
            "sizes": torch.from_numpy(self.sizes),
        }
        notes = json.dumps({"tokenizer": tokenizer, "num_tokens": self.num_tokens})  # several would have no order
        write_whole(folder / NGRAM_FILE, save(tensors, metadata={"ngram": notes}))

    @classmethod
    def load(cls, folder: Path, tokenizer: str) -> "Ngram | None":
        """None where there is none. Raises ValueError in one line if it is damaged, or of another tokenizer."""
        path = folder / NGRAM_FILE
        if not path.is_file():
            return None
        again = "copy it again, or delete it: texts are then written without it"
        try:
            content = path.read_bytes()
            tensors, notes = load(content), json.loads(metadata_of(content)["ngram"])
            tokens, followers, sizes = (tensors[name].long().numpy() for name in ("tokens", "followers", "sizes"))
            tokens = tensors["seen"].long().numpy()[tokens]
            found = cls.checked(tokens, tensors["counts"].double().numpy(), followers, sizes, notes["num_tokens"])
        except (SafetensorError, OSError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: is not a whole n-gram file ({error}); {again}") from None
        if notes.get("tokenizer") != tokenizer:
            raise ValueError(f"{path}: is of another tokenizer; {again}")
        return found

    @classmethod
    def checked(
        cls, tokens: np.ndarray, counts: np.ndarray, followers: np.ndarray, sizes: np.ndarray, num_tokens: int
    ) -> "Ngram":
        """Raises ValueError for what `count` would not have made."""
        is_whole = all(array.ndim == 1 for array in (tokens, counts, followers, sizes)) and len(sizes) > 0
        is_whole = is_whole and sizes.min() > 0 and sizes.sum() == len(tokens) == len(counts)
        is_whole = is_whole and len(followers) == len(tokens) - sizes[-1] and followers.min(initial=0) >= 0
        if not is_whole or sizes[0] + followers.sum() != len(tokens):
            raise ValueError("its parts do not fit together")
        if not (tokens.min() >= 0 and tokens.max() < num_tokens and np.isfinite(counts).all() and counts.min() > 0):
            raise ValueError("it holds tokens or counts that no text has")
        return cls(tokens, counts, followers, sizes, num_tokens)
