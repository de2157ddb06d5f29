"""Utterances of a token store as frame grids (align.py), with their transcripts where asked; batches are dataset.py.

N utterances, M segments (utterance, start, stop) in frames, K codebooks, L columns (frames and text columns).
"""

import logging
from collections.abc import Iterable
from copy import copy

import numpy as np

from ..model.delay_pattern import ABSENT
from ..model.shapes import TextConfig
from ..model.text_tokens import SAY, WRITE
from .align import (
    TAIL,
    Grid,
    audio_first,
    audio_only,
    given_columns,
    heard_beside,
    heard_in_time,
    said_beside,
    said_in_time,
    spread,
    text_first,
)
from .config import FormShares
from .forms import Form, Voices, drawn_forms
from .rows import Piece
from .text_encoder import TextEncoder, clean_text
from .text_times import times_of
from .text_tokenizer import TextTokenizer
from .token_store import TokenStore

log = logging.getLogger(__name__)

KEPT_COLUMNS = 1 << 24  # texts beside their audio that are kept as put together: 200 hours, in 64 MB
# where nothing is drawn, the codes of an utterance are scored as those of audio alone, in "mixed" then its text
FORMS = {
    "first": Form.FIRST,
    "last": Form.LAST,
    "aligned": Form.ALIGNED,
    "mixed": Form.LAST,
    "timed": Form.ALONE,
}


class StoreGrids:
    """The grids of a store's segments, and how many columns they take.

    A segment has text only where that is right. "first": if it begins the utterance, as the text then is known from the
    start. "last": if it is the whole utterance, as the text tells of all the audio. "aligned": always, its part of it;
    the words are spread evenly over the utterance, as a store does not know their times. What has no transcript is
    audio only, and so is what has one that leaves no room for audio ("first"), does not fit into a row with its audio
    ("last") or has more tokens than there are frames ("aligned"): see `forms`. "mixed" draws for each utterance whether
    its text is first, last or left out, anew in each epoch (`of_epoch`); so does "timed", in which each token also
    stands beside its sound; a store that does not say when (text_times.py) is audio alone.
    """

    def __init__(
        self,
        store: TokenStore,
        tokenizer: TextTokenizer | None = None,
        text: TextConfig = TextConfig(),
        max_columns: int | None = None,
        indices: Iterable[int] | None = None,
    ):
        """tokenizer: for the transcripts (default: no text). text: the model's, whose layout it is. max_columns: of a
        row (default: any number). indices: of the utterances that are asked for (default: all); the transcripts of no
        others are read.
        """
        layout = text.layout
        self.store, self.tokenizer, self.text = store, tokenizer, text
        self.times = times_of(store) if layout == "timed" and tokenizer is not None else None
        self.max_columns = np.iinfo(np.int64).max if max_columns is None else max_columns
        self.indices = np.arange(len(store)) if indices is None else np.array(list(indices), np.int64)
        num_said, num_written = np.zeros((2, len(store)), np.int64)
        has_text = tokenizer is not None and (layout != "timed" or self.times is not None)
        for i in set(self.indices.tolist()) if has_text else ():
            if self.times is not None and not self.times.is_known[i]:
                continue
            num_written[i] = num_said[i] = sum(map(len, self._words(i, Form.LAST)))
            if text.phonemes:
                num_said[i] = sum(map(len, self._words(i, Form.FIRST)))
        self._num_said, self._num_written = num_said, num_written  # [N] tokens
        self._lent: Voices | None = None  # once it is asked for
        self._kept: dict[tuple[int, Form], np.ndarray] = {}  # what `_timed` has put together, for all epochs
        self._num_kept = 0  # columns
        self.voices = np.zeros((len(store), 3), np.int64)  # the segment [N, 3] that is heard before the text
        self._take(np.full(len(store), FORMS[layout]))

    def _take(self, forms: np.ndarray) -> None:
        """These forms [N], but audio alone where the text does not fit."""
        num_tokens = np.where(forms == Form.LAST, self._num_written, self._num_said)
        text = num_tokens + 1 + self.text.is_tagged  # columns, with EOS
        if self.times is not None:
            text = np.where(forms == Form.LAST, 1 + TAIL, 1 + self.text.lookahead)
        least = np.where(forms == Form.LAST, self.store.num_frames, 1)  # frames that the text's row must hold too
        aligned = forms == Form.ALIGNED
        fits_beside = num_tokens <= self.store.num_frames
        fits = text + least <= self.max_columns
        if self.times is not None:
            fits &= fits_beside
        fits = np.where(aligned, fits_beside, fits)
        self.forms = np.where((num_tokens > 0) & fits, forms, Form.ALONE)  # [N]
        has_columns = (self.forms != Form.ALONE) & ~aligned
        self.num_columns: np.ndarray = np.where(has_columns, text, 0)  # [N] beside those of the audio

    @property
    def has_text(self) -> np.ndarray:
        """[N] bool."""
        return self.forms != Form.ALONE

    def all_first(self) -> "StoreGrids":
        """For tagged layouts: with every text first, so that codes are scored as those of speech with that text."""
        other = copy(self)
        other._take(np.full(len(self.store), Form.FIRST))
        return other

    def of_epoch(self, shares: FormShares, seed: int, epoch: int) -> "StoreGrids":
        """For tagged layouts: with the forms that are drawn for an epoch. For other layouts: these."""
        if not self.text.is_tagged:
            return self
        if self._lent is None:
            self._lent = Voices(self.store, self.indices)
            if shares.own_voice and not self._lent.are_of(shares.own_voice)[self.indices].any():
                log.warning(
                    f"{self.store.folder}: nobody is called '{shares.own_voice}' (own_voice), so no text is said there "
                    "without a voice prompt"
                )
        other = copy(self)
        luck = np.random.default_rng([seed, epoch, 3]).random((3, len(self.store)))
        forms, wants_voice = drawn_forms(shares, luck[0])
        is_own = self._lent.are_of(shares.own_voice)
        wants_voice |= ~is_own
        other._take(forms)
        lender, rate = self._lent.drawn(luck[1]), self.store.codec.frame_rate
        shortest, longest = max(1, round(rate)), max(1, round(shares.voice_s * rate))
        drawn = shortest + (luck[2] * (longest - shortest + 1)).astype(np.int64)
        length = self.store.num_frames[lender]
        room = self.max_columns - other.num_columns - self.store.num_frames  # a voice never cuts an utterance
        heard = np.minimum(np.minimum(drawn, length), room)
        has_voice = wants_voice & (lender >= 0) & (other.forms == Form.FIRST) & (heard >= np.minimum(shortest, length))
        is_unsaid = (other.forms == Form.FIRST) & ~is_own & ~has_voice
        other.forms = np.where(is_unsaid, Form.ALONE, other.forms)
        heard = np.where(has_voice, heard, 0)
        other.voices = np.stack([lender, length - heard, length], axis=1)
        other.num_columns = np.where(is_unsaid, 0, other.num_columns) + heard
        return other

    def lengths(self, segments: np.ndarray) -> np.ndarray:
        """Segments [M, 3] -> columns of each [M]."""
        utterance, start, stop = segments.T
        return stop - start + np.where(start == 0, self.num_columns[utterance], 0)

    def grid(self, utterance: int, start: int, stop: int) -> Grid:
        """One segment -> (text [L], codes [K, L])."""
        codes, form = self.store.codes(utterance, start, stop).T, Form(self.forms[utterance])
        if form == Form.ALONE or (form != Form.ALIGNED and start > 0):
            return audio_only(codes)
        lender, first, after = self.voices[utterance].tolist()
        voice = self.store.codes(lender, first, after).T if first < after else None
        if self.times is not None:
            text = self._timed(utterance, form)
            if form == Form.LAST:
                return heard_beside(text, codes)
            return said_beside(text[: len(text) - int(self.store.num_frames[utterance]) + stop], codes, voice)
        words = self._words(utterance, form)
        if form == Form.ALIGNED:
            num_characters = [len(word) for word in clean_text(self.store.text(utterance) or "").split()]
            text, codes = spread(words, num_characters, self.store.codes(utterance).T)
            return text[start:stop], codes[:, start:stop]
        tokens = [token for word in words for token in word]
        if form == Form.LAST:
            return audio_first(codes, [WRITE] * self.text.is_tagged + tokens)
        return text_first([SAY] * self.text.is_tagged + tokens, codes, voice)

    def given(self, text: np.ndarray) -> np.ndarray | None:
        """[L] bool, the columns of a text that are heard and not scored; None: none."""
        return given_columns(text) if self.text.is_tagged else None

    def piece(self, utterance: int, start: int, stop: int) -> Piece:
        """One segment, with the end of its recording if it reaches that."""
        text, codes = self.grid(utterance, start, stop)
        ends = self.store.ends(utterance) and stop == self.store.num_frames[utterance]
        end = int((codes[0] != ABSENT).nonzero()[0][-1]) if ends else None
        return Piece(text, codes, end, self.given(text))

    def announce(self, utterance: int, start: int, stop: int) -> None:
        """The segment will be asked for soon: the system reads its codes from the disk meanwhile."""
        self.store.announce(utterance, start, stop)
        lender, first, after = self.voices[utterance].tolist()
        if start == 0 and first < after:
            self.store.announce(lender, first, after)

    def length(self, utterance: int) -> int:
        """Columns of the whole utterance."""
        return int(self.store.num_frames[utterance] + self.num_columns[utterance])

    def last_audio_column(self, utterance: int) -> int:
        form = self.forms[utterance]
        before = self.num_columns[utterance] if form == Form.FIRST else 0
        if form == Form.LAST and self.times is not None:
            before = 1
        return int(before + self.store.num_frames[utterance] - 1)

    def columns(self, utterance: int, start: int, stop: int) -> Grid:
        """Columns start..stop of the whole utterance's grid -> (text [L], codes [K, L])."""
        if not self.num_columns[utterance]:
            return self.grid(utterance, start, stop)
        text, codes = self.grid(utterance, 0, int(self.store.num_frames[utterance]))
        return text[start:stop], codes[:, start:stop]

    def _timed(self, utterance: int, form: Form) -> np.ndarray:
        """The text of a whole utterance, each token in the columns in which it is said, or has been heard."""
        if (found := self._kept.get((utterance, form))) is not None:
            return found
        assert self.times is not None and self.tokenizer is not None
        encoder = self._encoder(self.tokenizer, form)
        tokens, frames = self.times.of_tokens(utterance, encoder, self.store.text(utterance) or "")
        num_frames, rate = int(self.store.num_frames[utterance]), self.store.codec.frame_rate
        if form == Form.LAST:
            text = heard_in_time(tokens, frames, num_frames, round(self.text.lag_s * rate))
        else:
            text = said_in_time(tokens, frames, num_frames, round(self.text.lead_s * rate), self.text.lookahead)
        if self._num_kept + len(text) <= KEPT_COLUMNS:
            self._kept[utterance, form] = text.astype(np.int32)
            self._num_kept += len(text)
        return text

    def _words(self, utterance: int, form: Form) -> list[list[int]]:
        """The tokens of each word of its transcript."""
        if self.tokenizer is None:
            return []
        return self._encoder(self.tokenizer, form).encode_words(self.store.text(utterance) or "")

    @staticmethod
    def _encoder(tokenizer: TextTokenizer, form: Form) -> TextEncoder:
        return tokenizer if form == Form.LAST else tokenizer.saying
