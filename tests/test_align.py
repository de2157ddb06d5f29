"""data/align.py: no token and no code is lost, and words stand where they are said."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeclm.data.align import Word, aligned, audio_first, audio_only, read_words, spread, text_first
from codeclm.data.text_tokenizer import EOS, EPAD, PAD

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


def starts_word(token: int) -> bool:
    return token % 2 == 0


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
    ("words", "expected"),
    [
        ([], [P] * 10),
        ([([10, 11], 0.5), ([12], 0.99)], [P, P, P, P, E, 10, 11, P, E, 12]),
        ([([10], 0.0), ([12], 0.29)], [10, E, 12, P, P, P, P, P, P, P]),
        ([([10], 0.2), ([12, 13], 0.4)], [P, E, 10, E, 12, 13, P, P, P, P]),
        ([([10, 11, 11], 0.2), ([12], 0.3), ([14], 0.31)], [P, E, 10, 11, 11, 12, 14, P, P, P]),  # pushed later
        ([([10, 11], 0.7), ([12, 13], 0.9)], [P, P, P, P, P, E, 10, 11, 12, 13]),  # pulled from beyond the end
    ],
)
def test_words_stand_in_the_frame_where_they_begin(words, expected):
    text, codes = aligned([Word(*word) for word in words], CODES, 10.0)
    assert text.tolist() == expected
    np.testing.assert_array_equal(codes, CODES)


@settings(max_examples=300, deadline=None)
@given(
    words=words_of_tokens,
    rate=st.sampled_from([12.5, 25.0, 50.0, 75.0, 44100 / 512]),
    data=st.data(),
)
def test_every_token_is_read_back_and_words_in_free_frames_keep_their_time(words, rate, data):
    total = sum(map(len, words))
    num_frames = total + data.draw(st.integers(1, 30))
    frames = sorted(data.draw(st.lists(st.integers(0, num_frames - 1), min_size=len(words), max_size=len(words))))
    given_words = [Word(tokens, frame / rate) for tokens, frame in zip(words, frames, strict=True)]
    text, _ = aligned(given_words, np.zeros((1, num_frames), int), rate)
    found = read_words(text, rate, starts_word)
    assert [word.tokens for word in found] == words
    left, end = total, 0
    for tokens, frame, word in zip(words, frames, found, strict=True):
        start = round(word.start_s * rate)
        assert start == min(max(frame, end), num_frames - left)  # later if taken, earlier only where it must
        assert start == end or text[start - 1] == EPAD
        left, end = left - len(tokens), start + len(tokens)
    assert (text == EPAD).sum() + (text == PAD).sum() == num_frames - total


def test_spread_words_share_the_frames_by_their_characters():
    text, codes = spread([[10], [12], [14, 15]], [1, 1, 5], CODES)  # 2, 2 and 6 of 10 characters with spaces
    assert text.tolist() == [10, E, 12, E, 14, 15, P, P, P, P]
    np.testing.assert_array_equal(codes, CODES)


@given(words=words_of_tokens, data=st.data())
def test_spread_words_are_read_back_in_order(words, data):
    num_characters = data.draw(st.lists(st.integers(1, 20), min_size=len(words), max_size=len(words)))
    num_frames = sum(map(len, words)) + data.draw(st.integers(0, 20))
    text, _ = spread(words, num_characters, np.zeros((3, num_frames), int))
    assert [word.tokens for word in read_words(text, 1.0, starts_word)] == words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([([10], -0.1)], "a word starts at -0.1 s"),
        ([([10], float("nan"))], "a word starts at nan s"),
        ([([10], 0.5), ([12], 0.4)], "starts at 0.4 s; the word before it at 0.5 s"),
        ([([10], 300.0)], "starts at 300.0 s.*ends at 1 s"),  # milliseconds
        ([([], 0.5)], r"tokens \[\]; it needs at least one"),
        ([([10, PAD], 0.5)], "no PAD"),
        ([([-1], 0.5)], "or -1"),
        ([([10] * 11, 0.5)], "11 text tokens do not fit beside 10 frames"),
    ],
)
def test_words_that_cannot_be_placed_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        aligned([Word(*word) for word in words], CODES, 10.0)


def test_what_is_no_grid_of_codes_is_refused():
    with pytest.raises(ValueError, match=r"integers \[K, T\], not float64 \[2, 10\]"):
        text_first([5], CODES.astype(float))
    with pytest.raises(ValueError, match=r"\[10\]"):
        audio_only(CODES[0])
    with pytest.raises(ValueError, match="must not be negative; there is -1"):
        audio_first(CODES, [5, -1])
