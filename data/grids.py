"""Utterances of a token store as frame grids (align.py), with their transcripts where asked; batches are dataset.py.

N utterances, M segments (utterance, start, stop) in frames, K codebooks, L columns (frames and text columns).
"""

from collections.abc import Iterable

import numpy as np

from ..model.delay_pattern import ABSENT
from ..model.shapes import TEXT_LAYOUTS, TextLayout
from .align import Grid, audio_first, audio_only, spread, text_first
from .rows import Piece
from .text_tokenizer import TextTokenizer, clean_text
from .token_store import TokenStore

# text before the audio (text-to-speech), after it (transcription), or beside it


class StoreGrids:
    """The grids of a store's segments, and how many columns they take.

    A segment has text only where that is right. "first": if it begins the utterance, as the text then is known from the
    start. "last": if it is the whole utterance, as the text tells of all the audio. "aligned": always, its part of it;
    the words are spread evenly over the utterance, as a store does not know their times. What has no transcript is
    audio only, and so is what has one that leaves no room for audio ("first"), does not fit into a row with its audio
    ("last") or has more tokens than there are frames ("aligned"): see `has_text`.
    """

    def __init__(
        self,
        store: TokenStore,
        tokenizer: TextTokenizer | None = None,
        layout: TextLayout = "first",
        max_columns: int | None = None,
        indices: Iterable[int] | None = None,
    ):
        """tokenizer: for the transcripts (default: no text). max_columns: of a row (default: any number). indices: of
        the utterances that are asked for (default: all); the transcripts of no others are read.

        Raises ValueError for an unknown layout.
        """
        if layout not in TEXT_LAYOUTS:
            raise ValueError(f"text layout '{layout}' is unknown; choose one of {', '.join(TEXT_LAYOUTS)}")
        self.store, self.tokenizer, self.layout = store, tokenizer, layout
        num_tokens = np.zeros(len(store), np.int64)
        if tokenizer is not None:
            for i in set(range(len(store)) if indices is None else map(int, indices)):
                num_tokens[i] = sum(map(len, self._words(i)))
        if layout == "aligned":
            fits = num_tokens <= store.num_frames
        else:
            least = store.num_frames if layout == "last" else 1  # frames that the text's row must hold too
            fits = num_tokens + 1 + least <= (np.iinfo(np.int64).max if max_columns is None else max_columns)
        self.has_text: np.ndarray = (num_tokens > 0) & fits  # [N] bool
        own_columns = self.has_text & (layout != "aligned")
        self.num_columns: np.ndarray = np.where(own_columns, num_tokens + 1, 0)  # [N] that hold text only

    def lengths(self, segments: np.ndarray) -> np.ndarray:
        """Segments [M, 3] -> columns of each [M]."""
        utterance, start, stop = segments.T
        return stop - start + np.where(start == 0, self.num_columns[utterance], 0)

    def grid(self, utterance: int, start: int, stop: int) -> Grid:
        """One segment -> (text [L], codes [K, L])."""
        codes = self.store.codes(utterance, start, stop).T
        if not self.has_text[utterance] or (self.layout != "aligned" and start > 0):
            return audio_only(codes)
        words = self._words(utterance)
        if self.layout == "aligned":
            num_characters = [len(word) for word in clean_text(self.store.text(utterance) or "").split()]
            text, codes = spread(words, num_characters, self.store.codes(utterance).T)
            return text[start:stop], codes[:, start:stop]
        tokens = [token for word in words for token in word]
        return text_first(tokens, codes) if self.layout == "first" else audio_first(codes, tokens)

    def piece(self, utterance: int, start: int, stop: int) -> Piece:
        """One segment, with the end of its recording if it reaches that."""
        text, codes = self.grid(utterance, start, stop)
        ends = self.store.ends(utterance) and stop == self.store.num_frames[utterance]
        return Piece(text, codes, int((codes[0] != ABSENT).nonzero()[0][-1]) if ends else None)

    def length(self, utterance: int) -> int:
        """Columns of the whole utterance."""
        return int(self.store.num_frames[utterance] + self.num_columns[utterance])

    def last_audio_column(self, utterance: int) -> int:
        before = self.num_columns[utterance] if self.layout == "first" else 0
        return int(before + self.store.num_frames[utterance] - 1)

    def columns(self, utterance: int, start: int, stop: int) -> Grid:
        """Columns start..stop of the whole utterance's grid -> (text [L], codes [K, L])."""
        if not self.num_columns[utterance]:
            return self.grid(utterance, start, stop)
        text, codes = self.grid(utterance, 0, int(self.store.num_frames[utterance]))
        return text[start:stop], codes[:, start:stop]

    def _words(self, utterance: int) -> list[list[int]]:
        """The tokens of each word of its transcript."""
        return self.tokenizer.encode_words(self.store.text(utterance) or "") if self.tokenizer is not None else []
