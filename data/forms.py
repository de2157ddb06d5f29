"""The forms that utterances take in an epoch of a tagged layout: a function of (seed, epoch, utterance).

    alone    c  c  c                                continuation
    write    c  c  c  WRITE  t  t  EOS              transcription
    say      SAY  t  t  EOS  c  c  c                speech from text
             v  v  v  SAY  t  t  EOS  c  c  c       in the voice v of another utterance of the speaker

Without the tag nothing would say, after audio, whether the text is that of the audio or of more to come. These are the
columns of "mixed"; in "timed" the text is beside the audio, its first tokens before it (align.py).
How a form becomes columns is grids.py's. N utterances.
"""

from enum import IntEnum

import numpy as np

from .config import FormShares
from .split import recordings, voices_of
from .token_store import TokenStore


class Form(IntEnum):
    """Where the text of an utterance lies."""

    ALONE = 0
    FIRST = 1
    LAST = 2
    ALIGNED = 3


class Voices:
    """Which utterances may lend their voice to which: those of the same voice, of other recordings."""

    def __init__(self, store: TokenStore, indices: np.ndarray):
        """indices: the utterances that are used; no other is ever heard."""
        names, voices = np.unique(voices_of(store), return_inverse=True)
        self.names, self.voice_of = names, voices  # names of voices, and which of them speaks each utterance [N]
        known = np.unique(indices)
        known = known[names[voices[known]] != ""]
        # one voice after another, in each the pieces and copies of one recording
        _, recording = np.unique(recordings(store), return_inverse=True)
        self.order = known[np.lexsort((recording[known], voices[known]))]
        voice = voices[self.order]
        recording = recording[self.order] + voice * len(store)
        self.first, self.size = np.searchsorted(voice, voice), np.bincount(voice, minlength=1)[voice]
        self.after = np.searchsorted(recording, recording, "right")  # the place after its recording
        self.others = self.size - (self.after - np.searchsorted(recording, recording))
        self.num_utterances = len(store)

    def are_of(self, voice: str) -> np.ndarray:
        """Which utterances are of that voice [N] bool; no voice: all."""
        return (self.names == voice)[self.voice_of] | (not voice)

    def drawn(self, luck: np.ndarray) -> np.ndarray:
        """Numbers [N] in 0..1 -> an utterance for each to hear before it [N], -1 where there is none."""
        voices = np.full(self.num_utterances, -1)
        chosen = (luck[self.order] * self.others).astype(np.int64)
        places = self.first + (self.after - self.first + chosen) % np.maximum(self.size, 1)
        voices[self.order] = np.where(self.others > 0, self.order[places], -1)
        return voices


def drawn_forms(shares: FormShares, luck: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers [N] in 0..1 -> the form of each utterance [N], and whether a voice comes before it [N] bool."""
    limits = np.cumsum([shares.say_voice, shares.say, shares.write])
    kind = np.searchsorted(limits, luck, "right")
    return np.array([Form.FIRST, Form.FIRST, Form.LAST, Form.ALONE])[kind], kind == 0
