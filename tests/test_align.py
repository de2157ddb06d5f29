"""data/align.py: no token and no code is lost, and words stand where they are said."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeclm.data.align import (
    TAIL,
    audio_first,
    audio_only,
    heard_beside,
    heard_in_time,
    placed,
    said_in_time,
    spread,
    text_first,
    told_apart,
)
from codeclm.model.text_tokens import EOS, EPAD, PAD, SAY, WRITE

P, E = PAD, EPAD
CODES = np.arange(20, dtype=np.uint16).reshape(2, 10)
words_of_tokens = st.lists(
    # the first token of a word is even, the others are odd
    st.builds(
        lambda first, rest: [10 + 2 * first, *(11 + 2 * r for r in rest)],
        st.integers(0, 9),
        st.lists(st.integers(0, 9), max_size=4),
    ),
    max_size=8,
)


def words_in(text: np.ndarray) -> list[tuple[int, list[int]]]:
    """The words of an aligned text and the frames where they begin."""
    words: list[tuple[int, list[int]]] = []
    for frame, token in enumerate(text.tolist()):
        if token not in (PAD, EPAD) and token % 2 == 0:
            words.append((frame, [token]))
        elif token not in (PAD, EPAD):
            words[-1][1].append(token)
    return words


@given(tokens=st.lists(st.integers(4, 99), max_size=9), num_frames=st.integers(0, 9))
def test_text_and_audio_stand_one_after_the_other(tokens, num_frames):
    codes = np.arange(2 * num_frames).reshape(2, num_frames)
    length = len(tokens) + 1 + num_frames
    for order, (text, grid) in (("text", text_first(tokens, codes)), ("audio", audio_first(codes, tokens))):
        assert text.shape == (length,) and grid.shape == (2, length) and text.dtype == grid.dtype == np.int64
        has_text, has_audio = text >= 0, (grid >= 0).all(axis=0)
        assert ((text == -1) | has_text).all() and (has_text != has_audio).all() and (grid[:, has_text] == -1).all()
        assert text[has_text].tolist() == [*tokens, EOS]
        np.testing.assert_array_equal(grid[:, has_audio], codes)
        first = has_text if order == "text" else has_audio
        assert (np.diff(first.astype(int)) <= 0).all()  # never again after the other has begun


def test_audio_only_has_no_text():
    text, codes = audio_only(CODES)
    assert (text == -1).all() and text.shape == (10,) and codes.dtype == np.int64
    np.testing.assert_array_equal(codes, CODES)


@pytest.mark.parametrize(
    ("words", "num_characters", "expected"),
    [
        ([], [], [P] * 10),
        ([[10], [12], [14, 15]], [1, 1, 5], [10, E, 12, E, 14, 15, P, P, P, P]),  # 2, 2 and 6 of 10 with spaces
        ([[10, 11, 11], [12], [14]], [0, 0, 7], [10, 11, 11, 12, 14, P, P, P, P, P]),  # pushed later
        ([[10], [12, 13]], [8, 0], [10, P, P, P, P, P, P, E, 12, 13]),  # pulled from beyond the end
    ],
)
def test_words_share_the_frames_by_their_characters(words, num_characters, expected):
    text, codes = spread(words, num_characters, CODES)
    assert text.tolist() == expected
    np.testing.assert_array_equal(codes, CODES)


@settings(max_examples=300)
@given(words=words_of_tokens, data=st.data())
def test_no_token_is_lost_and_words_in_free_frames_keep_their_time(words, data):
    total = sum(map(len, words))
    num_frames = total + data.draw(st.integers(1, 30))
    characters = data.draw(st.lists(st.integers(0, 20), min_size=len(words), max_size=len(words)))
    text, _ = spread(words, characters, np.zeros((1, num_frames), int))
    assert [tokens for _, tokens in words_in(text)] == words
    left, end, before = total, 0, 0
    for (start, tokens), length in zip(words_in(text), characters, strict=True):
        frame = before * num_frames // (sum(characters) + len(words))
        assert start == min(max(frame, end), num_frames - left)  # later if taken, earlier only where it must
        assert start == end or text[start - 1] == EPAD
        left, end, before = left - len(tokens), start + len(tokens), before + length + 1
    assert (text == EPAD).sum() + (text == PAD).sum() == num_frames - total


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([[]], r"tokens \[\]; it needs at least one"),
        ([[10, PAD]], "no PAD"),
        ([[-1]], "or -1"),
        ([[10] * 11], "11 text tokens do not fit beside 10 frames"),
    ],
)
def test_words_that_cannot_be_placed_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        spread(words, [3], CODES)


def test_what_is_no_grid_of_codes_is_refused():
    with pytest.raises(ValueError, match=r"integers \[K, T\], not float64 \[2, 10\]"):
        text_first([5], CODES.astype(float))
    with pytest.raises(ValueError, match=r"\[10\]"):
        audio_only(CODES[0])
    with pytest.raises(ValueError, match="must not be negative; there is -1"):
        audio_first(CODES, [5, -1])


def test_a_text_runs_ahead_of_its_sound():
    frames = np.array([1, 4, 7])
    assert said_in_time([8, 9, 7], frames, 9, 0, 2).tolist() == [SAY, 8, 9, P, 7, P, P, EOS, P, P, EOS, P]
    assert said_in_time([8, 9, 7], frames, 9, 1, 2).tolist() == [SAY, 8, 9, 7, P, P, EOS, P, P, EOS, P, P]
    assert said_in_time([8, 9, 7], frames, 9, 0, 0).tolist() == [SAY, P, 8, P, P, 9, P, P, 7, P]
    assert said_in_time([8], frames[:1], 3, 0, 4).tolist() == [SAY, 8, EOS, EOS, EOS, P, EOS, P]


timed_tokens = st.lists(st.tuples(st.integers(4, 6), st.integers(-3, 30)), max_size=8)


@given(timed_tokens, st.integers(0, 30), st.integers(0, 9))
def test_what_was_said_is_known_at_every_column(timed, spare, ahead):
    tokens, frames = [token for token, _ in timed], np.sort(np.array([frame for _, frame in timed], np.int64))
    beside = placed(tokens, frames, len(tokens) + spare).tolist()
    text = said_in_time(tokens, frames, len(beside), 0, ahead).tolist()
    assert len(text) == 1 + ahead + len(beside)
    for column in range(len(beside) + 1):
        assert told_apart(text[: 1 + ahead + column], ahead) == told_apart(beside[:column])


@given(timed_tokens, st.integers(0, 30))
def test_tokens_stand_where_they_should_or_after_those_in_their_way(timed, spare):
    tokens, frames = [token for token, _ in timed], np.sort(np.array([frame for _, frame in timed], np.int64))
    text = placed(tokens, frames, len(tokens) + spare)
    assert told_apart(text.tolist()) == tokens and len(text) == len(tokens) + spare
    columns, before = np.flatnonzero(text != PAD).tolist(), -1
    for number, (column, wanted) in enumerate(zip(columns, frames, strict=True)):
        before = min(max(wanted, before + 1), len(text) - len(tokens) + number)
        assert column == before
    codes = np.zeros((2, len(tokens) + spare), np.int64)
    text, grid = heard_beside(heard_in_time(tokens, np.maximum(frames, 0), codes.shape[1], 10), codes)
    assert len(text) == grid.shape[1] == 1 + codes.shape[1] + TAIL
    assert text[0] == WRITE and told_apart(text[1 : text.tolist().index(EOS)].tolist()) == tokens
    assert (grid[:, 1 : 1 + codes.shape[1]] == 0).all() and (
        grid[:, [0, *range(1 + codes.shape[1], len(text))]] == -1
    ).all()
    assert (text[1 : 1 + codes.shape[1]] >= PAD).all()
    with pytest.raises(ValueError, match="do not fit"):
        placed([4, 5], np.array([0, 1]), 1)
