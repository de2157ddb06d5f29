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
    said_beside    SAY  t  u  u  w  w  w  x     the text of "timed" models (text_times.py) runs some tokens ahead, here
                   .    .  .  c  c  c  c  c     2: t is said from where w is told on, u from x on
    heard_beside   WRITE  PAD  t  t  u  EOS     each token some time after its sound, what is left after the audio
                   .      c    c  c  .  .
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
    the text [T] beside their audio. `lead` frames before a sound the token is told that is `ahead` of it; see `held`.
    """
    before, beside = told_ahead(tokens, ahead)
    columns = begun_at(tokens, frames - lead, num_frames)
    return np.concatenate([before, np.repeat(beside, np.diff([0, *columns, num_frames]))])


def told_ahead(tokens: Sequence[int], ahead: int) -> tuple[list[int], list[int]]:
    """What is told of a text that is said: SAY and the first tokens before its audio, and the tokens beside it.

    The first of these is the last one before, or PAD, until the text begins; each other one is told where the token
    that is `ahead` before it begins. After the last come EOS and PAD in turn: what is told next is always another one.
    """
    told = [SAY, *set_apart(tokens), *([EOS, PAD] * ahead)[:ahead]]
    return told[: 1 + ahead], told[ahead:] if ahead else [PAD, *told[1:]]


def said_beside(text: np.ndarray, codes: np.ndarray, voice: np.ndarray | None = None) -> Grid:
    """A text whose last columns are those of codes [K, T]. voice: [K, V] codes of another utterance."""
    voice = codes[:, :0] if voice is None else voice
    start = voice.shape[1] + len(text) - codes.shape[1]
    return _beside(text, voice.shape[1], 0), np.concatenate([_beside(voice, 0, start - voice.shape[1]), codes], axis=1)


def heard_in_time(tokens: Sequence[int], frames: np.ndarray, num_frames: int, lag: int) -> np.ndarray:
    """Tokens and the frames at which their sounds begin -> the text of `heard_beside`: WRITE, then T columns with each
    of the tokens `lag` frames after its sound is over, and after them the rest.

    There are 1 + T + TAIL columns, whatever the text. Raises as `held`.
    """
    after = np.append(frames[1:], num_frames) + lag  # a token is over where the next begins
    room = num_frames + TAIL - 1
    text = held(tokens, np.minimum(after, num_frames), room)
    last = max(num_frames, int(np.flatnonzero(np.diff(text)).max(initial=-1)) + 2)  # the column after the last token
    return np.concatenate([[WRITE], text[:last], [EOS], np.full(room - last, ABSENT)])


def heard_beside(text: np.ndarray, codes: np.ndarray) -> Grid:
    """A text that `heard_in_time` gave, and codes [K, T]."""
    return np.asarray(text, np.int64), _beside(codes, 1, TAIL)


def held(tokens: Sequence[int], frames: np.ndarray, num_columns: int) -> np.ndarray:
    """Tokens and the columns where they should begin, never falling -> text [L], in which each stays until the next.

    PAD comes before the first one. A token whose first column is taken is pushed later; one that would run over the end
    begins earlier, and so do tokens before it where they are in its way. Raises ValueError for more tokens than there
    are columns.
    """
    begun = [PAD, *set_apart(tokens)]
    return np.repeat(begun, np.diff([0, *begun_at(tokens, frames, num_columns), num_columns]))


def begun_at(tokens: Sequence[int], frames: np.ndarray, num_columns: int) -> list[int]:
    """The columns in which tokens begin, as they are `set_apart`; see `held`."""
    begun = set_apart(tokens)
    if len(begun) > num_columns:
        raise ValueError(f"{len(begun)} text tokens do not fit beside {num_columns} frames of audio")
    wanted = iter(frames.tolist())
    column, starts = -1, []
    for left, token in zip(range(len(begun), 0, -1), begun, strict=True):
        start = column + 1 if token == PAD else max(next(wanted), column + 1)
        column = min(start, num_columns - left)
        starts.append(column)
    return starts


def set_apart(tokens: Sequence[int]) -> list[int]:
    """Tokens with a PAD between two that are equal, so that they can be told apart where each is held."""
    return [token for place, own in enumerate(tokens) for token in ([PAD] * (own in tokens[place - 1 : place]) + [own])]


def told_apart(text: Sequence[int], ahead: int = 0) -> list[int]:
    """A text [L] in which tokens are held -> the tokens. If it is said, as many as are told `ahead` are not yet."""
    begun = [own for place, own in enumerate(text) if own != ABSENT and own not in text[place - 1 : place]]
    said = begun[: len(begun) - ahead] if SAY in begun else begun
    return [own for own in said if own > PAD]


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
