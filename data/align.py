"""Where the tokens of a text lie beside the codes of its audio: building the frame grid.

A grid is a pair (text [L], codes [K, L]), int64; -1 where a column has no text or no audio.
K codebooks, L columns, T frames.

    text_first     t  t  EOS  .  .  .  .        text-to-speech (CSM)
                   .  .  .    c  c  c  c
    audio_first    .  .  .  .  t  t  EOS        transcription; the audio's own end belongs to column T, the first text
                   c  c  c  c  .  .  .
    text_first     .  .  .  t  t  EOS  .  .     the same in the voice of another utterance, which comes before
    with a voice   v  v  v  .  .  .    c  c
    spread         PAD  EPAD  t  t  PAD  ...    aligned text (Moshi's inner monologue), where words' times are unknown
                   c    c     c  c  c    ...
    said_beside    SAY  t  u  PAD  w  PAD  x    the text of "timed" models (text_times.py) runs some tokens ahead, here
                   .    .  .  c    c  c    c    2: t is said from where w is told on, u from x on
    heard_beside   WRITE  PAD  t  PAD  u  EOS   each token some time after its sound, what is left after the audio
                   .      c    c  c    .  .
"""

from collections.abc import Sequence

import numpy as np

from ..model.delay_pattern import ABSENT
from ..model.text_tokens import EOS, EPAD, PAD, SAY, WRITE

TAIL = 12  # columns after the audio that is written down, for the tokens that are still to be told, and EOS

Grid = tuple[np.ndarray, np.ndarray]  # text [L], codes [K, L]


def audio_only(codes: np.ndarray) -> Grid:
    """codes [K, T] without a text."""
    codes = _checked_codes(codes)
    return np.full(codes.shape[1], ABSENT), codes


def text_first(tokens: Sequence[int], codes: np.ndarray, voice: np.ndarray | None = None) -> Grid:
    """Tokens, EOS, then codes [K, T] (T = 0: a prompt for speech). voice: [K, V] codes of another utterance."""
    codes, text = _checked_codes(codes), _sentence(tokens)
    voice = codes[:, :0] if voice is None else _checked_codes(voice)
    beside = _beside(text, voice.shape[1], codes.shape[1])
    return beside, np.concatenate([voice, _beside(codes, len(text), 0)], axis=1)


def audio_first(codes: np.ndarray, tokens: Sequence[int]) -> Grid:
    """codes [K, T], then tokens, EOS."""
    codes, text = _checked_codes(codes), _sentence(tokens)
    return _beside(text, codes.shape[1], 0), _beside(codes, 0, len(text))


def said_in_time(tokens: Sequence[int], frames: np.ndarray, num_frames: int, lead: int, ahead: int) -> np.ndarray:
    """Tokens and the frames at which their sounds begin -> the text of `said_beside`: SAY, the first tokens, and then
    the text [T] beside their audio. `lead` frames before a sound the token is told that is `ahead` of it; see `placed`.
    """
    before, beside = told_ahead(tokens, ahead)
    return np.concatenate([before, placed(beside, frames - lead, num_frames)])


def told_ahead(tokens: Sequence[int], ahead: int) -> tuple[list[int], list[int]]:
    """What is told of a text that is said: SAY and the first tokens before its audio, and those beside it.

    Each of these is told where the token begins that is `ahead` before it; after the last token comes EOS, each time.
    """
    told = [*tokens, *[EOS] * ahead]
    return [SAY, *told[:ahead]], told[ahead:]


def said_beside(text: np.ndarray, codes: np.ndarray, voice: np.ndarray | None = None) -> Grid:
    """A text whose last columns are those of codes [K, T]. voice: [K, V] codes of another utterance."""
    voice = codes[:, :0] if voice is None else voice
    start = voice.shape[1] + len(text) - codes.shape[1]
    return _beside(text, voice.shape[1], 0), np.concatenate([_beside(voice, 0, start - voice.shape[1]), codes], axis=1)


def heard_in_time(tokens: Sequence[int], frames: np.ndarray, num_frames: int, lag: int) -> np.ndarray:
    """Tokens and the frames at which their sounds begin -> the text of `heard_beside`: WRITE, then T columns with each
    of the tokens `lag` frames after its sound is over, and after them the rest.

    There are 1 + T + TAIL columns, whatever the text. Raises as `placed`.
    """
    after = np.append(frames[1:], num_frames) + lag  # a token is over where the next begins
    room = num_frames + TAIL - 1
    text = placed(tokens, np.minimum(after, num_frames), room)
    last = max(num_frames, int(np.flatnonzero(text != PAD).max(initial=-1)) + 1)  # the column after the last token
    return np.concatenate([[WRITE], text[:last], [EOS], np.full(room - last, ABSENT)])


def heard_beside(text: np.ndarray, codes: np.ndarray) -> Grid:
    """A text that `heard_in_time` gave, and codes [K, T]."""
    return np.asarray(text, np.int64), _beside(codes, 1, TAIL)


def placed(tokens: Sequence[int], frames: np.ndarray, num_columns: int) -> np.ndarray:
    """Tokens and the columns where they should stand, never falling -> text [L], PAD where there is none.

    A token whose column is taken is pushed later; one that would run over the end stands earlier, and so do tokens
    before it where they are in its way. Raises ValueError for more tokens than there are columns.
    """
    if len(tokens) > num_columns:
        raise ValueError(f"{len(tokens)} text tokens do not fit beside {num_columns} frames of audio")
    order = np.arange(len(tokens))
    columns = np.maximum.accumulate(np.maximum(frames, 0) - order) + order
    text = np.full(num_columns, PAD)
    text[np.minimum(columns, num_columns - len(tokens) + order)] = tokens
    return text


def told_apart(text: Sequence[int], ahead: int = 0) -> list[int]:
    """A text [L] -> its tokens. Where it is said, those that are told `ahead` of their sound are not yet."""
    told = [token for token in text if token not in (PAD, ABSENT)]
    said = told[: len(told) - ahead] if SAY in told else told
    return [token for token in said if token > PAD]


def given_columns(text: np.ndarray) -> np.ndarray:
    """Text [L] of a tagged layout -> [L] bool, the columns that are not predicted: tags, and a voice before SAY.

    A tag is what somebody asks for, and codes of a voice are scored where they are an utterance of their own. The end
    of an utterance before WRITE is predicted; a voice has none, as its recording goes on or was cut.
    """
    says = text == SAY
    return (text == WRITE) | (says[::-1].cumsum()[::-1] > 0)


def spread(words: Sequence[Sequence[int]], num_characters: Sequence[int], codes: np.ndarray) -> Grid:
    """Words [their tokens] beside codes [K, T], a token for each frame; words have frames by their characters.

    EPAD stands in the frame before a word unless that holds a token of the word before or would be frame -1; PAD in
    all others. A word whose first frame is still taken is pushed later. A word that would run over the end of the audio
    begins earlier, and so do words before it where they are in its way: no token is ever dropped.

    An approximation that takes speech as even from the first frame to the last: pauses, silence at the ends and changes
    of pace put words off by up to about a second. It teaches which words are near, not when a word begins.
    Raises ValueError for empty words and for more tokens than frames.
    """
    codes = _checked_codes(codes)
    lengths = np.array([length + 1 for length in num_characters])  # with the space before the next word
    before = np.cumsum(lengths) - lengths
    frames = (before * codes.shape[1] // max(1, lengths.sum())).tolist()
    return _place(words, frames, codes.shape[1]), codes


def _place(words: Sequence[Sequence[int]], frames: Sequence[int], num_frames: int) -> np.ndarray:
    """Words and the frames where they should begin, in order -> text [T]."""
    left = sum(map(len, words))
    if left > num_frames:
        raise ValueError(f"{left} text tokens do not fit beside {num_frames} frames of audio")
    text, end = np.full(num_frames, PAD), 0
    for tokens, wanted in zip(words, frames, strict=True):
        if not tokens or min(tokens) < 0 or PAD in tokens or EPAD in tokens:
            raise ValueError(f"a word has the tokens {list(tokens)}; it needs at least one, and no PAD, EPAD or -1")
        start = min(max(wanted, end), num_frames - left)
        if start > end:
            text[start - 1] = EPAD
        end = start + len(tokens)
        text[start:end] = tokens
        left -= len(tokens)
    return text


def _sentence(tokens: Sequence[int]) -> np.ndarray:
    if min(tokens, default=0) < 0:
        raise ValueError(f"text tokens must not be negative; there is {min(tokens)}")
    return np.array([*tokens, EOS], np.int64)


def _checked_codes(codes: np.ndarray) -> np.ndarray:
    """Integers of any kind [K, T] -> int64."""
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.dtype.kind not in "iu":
        raise ValueError(f"codes must be integers [K, T], not {codes.dtype} {list(codes.shape)}")
    return codes.astype(np.int64)


def _beside(array: np.ndarray, before: int, after: int) -> np.ndarray:
    """[..., L] with absent columns before and after."""
    length = array.shape[-1]
    wide = np.full((*array.shape[:-1], before + length + after), ABSENT)  # np.pad takes ten times as long
    wide[..., before : before + length] = array
    return wide
