"""Texts told as phonemes: how words are pronounced, their tokens, and models that say by them and write letters."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from codeclm.data.config import FormShares
from codeclm.data.grids import StoreGrids
from codeclm.data.phonemes import NUM_PHONEME_TOKENS, STRESS, SYMBOLS, numbered, written
from codeclm.data.pronunciation import pronounced, reader, sayers, sentences
from codeclm.data.text_encoder import clean_text
from codeclm.data.text_times import UNHEARD, write_times
from codeclm.data.text_tokenizer import TextTokenizer
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.loading import load, save_model
from codeclm.inference.read_back import text_nats, written_frames
from codeclm.model.shapes import TextConfig
from codeclm.model.text_tokens import EOS, PAD, SAY, WRITE
from codeclm.train.config import TextOptions

TEXT = "The apple, in 1973? Six boxes."


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    pytest.importorskip("hibari", reason="hibari-tts is not installed (extra phonemes)")
    return TextTokenizer.train(["the apple in six boxes one two three nineteen seventy"] * 3, 290, "en", "en-us")


@given(st.lists(st.integers(0, NUM_PHONEME_TOKENS - 1), max_size=20))
def test_each_token_is_a_symbol_with_its_stress_and_whether_a_word_begins(tokens):
    phonemes = written(tokens)
    assert written(numbered(phonemes)) == phonemes
    if tokens and tokens[0] >= NUM_PHONEME_TOKENS // 2:  # a word begins, as any text does
        assert numbered(phonemes) == tokens
    assert phonemes.translate({ord(mark): None for mark in STRESS + " "}) == "".join(
        SYMBOLS[token % len(SYMBOLS)] for token in tokens
    )


def test_symbols_that_are_not_known_are_left_out():
    assert numbered("a\u0303 ˈ# b") == numbered("a b") and numbered("") == numbered(" ˈ ") == []
    assert numbered("ˈab") != numbered("aˈb") != numbered("ab") != numbered("a b")


def test_the_words_around_say_how_a_word_is_said(tokenizer):
    assert pronounced(("the", "apple,"), "en-us") == ("ði", "ˈæpᵊl,")
    assert pronounced(("the", "box."), "en-us")[0] == "ðə"
    assert pronounced(("I", "will", "read."), "en-us")[-1] == "ɹˈid."
    assert pronounced(("I", "read", "it", "yesterday."), "en-us")[1] == "ɹˈɛd"
    assert pronounced(("not", "so"), "en-gb") != pronounced(("not", "so"), "en-us")


def test_each_word_of_a_text_has_its_own_phonemes_also_where_it_is_read_otherwise(tokenizer):
    assert pronounced(("Dr.", "Smith", "&", "co."), "en-us")[:3] == ("dˈɑktəɹ", "smˈɪθ", "ænd")
    assert pronounced(("nineteen seventy-three,", "now"), "en-us")[1] == "nˈW"
    assert pronounced(("—", "yes"), "en-us")[-1] == "jˈɛs"
    assert pronounced(("@", "#"), "en-us") and pronounced(("\u4e00",), "en-us") is not None


@settings(max_examples=60, deadline=None)
@given(st.text("ab 1$.,'’\"-&/é中Dr", max_size=30))
@example("D..D")  # its second letter says three of the four phonemes, so the signs come after all letters
def test_any_text_has_phonemes_word_by_word(tokenizer, text):
    words = tokenizer.saying.encode_words(text)
    tokens, places = tokenizer.saying.encode_places(text)
    assert len(words) == len(text.split()) and tokens == [token for word in words for token in word]
    assert all(tokenizer.num_pieces <= token < tokenizer.vocab_size for token in tokens)
    starts = np.cumsum([0, *(len(word) + 1 for word in clean_text(text).split())])
    word_of = np.repeat(np.arange(len(words)), list(map(len, words)))
    assert (starts[word_of] <= places[:, 0]).all() and (places[:, 0] <= places[:, 1]).all()
    assert (places[:, 1] < starts[word_of + 1]).all()


@given(st.lists(st.sampled_from(["a", "end.", "Dr.", "J.", "why?”", "so!", "e.g.", "..."]), max_size=8))
def test_sentences_have_all_words_and_end_where_a_word_says_so(words):
    found = list(sentences(words))
    assert [word for sentence in found for word in sentence] == words and all(found)
    assert not any(word in ("end.", "why?”", "so!") for sentence in found for word in sentence[:-1])
    assert not any(sentence[-1] in ("Dr.", "J.") for sentence in found[:-1])


def test_a_phoneme_stands_at_the_letter_that_says_it(tokenizer):
    assert sayers("six", tuple("sɪks"), "en-us") == [0, 1, 2, 2]
    assert sayers("time", tuple("tIm"), "en-us") == [0, 1, 2]
    assert sayers("a", tuple("ˌeɪbˈiːsˈiː"), "en-us") == [0] * 11  # more than a letter says
    tokens, places = tokenizer.saying.encode_places("Six, boxes")
    told = [tokenizer.decode([token]) + "Six, boxes"[a:b] for token, (a, b) in zip(tokens, places, strict=True)]
    assert told == ["sS", "ˈɪi", "kx", "sx", ",,", "bb", "ˈɑo", "kx", "sx", "ᵻe", "zs"]


def test_a_text_is_written_in_letters_and_said_in_phonemes(tokenizer):
    assert tokenizer.vocab_size == tokenizer.num_pieces + NUM_PHONEME_TOKENS
    letters, phonemes = tokenizer.encode(TEXT), tokenizer.saying.encode(TEXT)
    assert tokenizer.decode(letters) == "The apple, in nineteen seventy-three? Six boxes."
    assert tokenizer.decode(phonemes) == "ði ˈæpᵊl, ɪn nˌIntˈin sˈɛvəntiθɹˌi? sˈɪks bˈɑksᵻz."
    assert tokenizer.decode([*phonemes, PAD, *letters[:3], EOS]).startswith("ði") and max(letters) < min(phonemes)
    with pytest.raises(ValueError, match=f"text token {tokenizer.vocab_size} is unknown"):
        tokenizer.decode([tokenizer.vocab_size])


def test_a_sentence_has_the_same_tokens_alone_and_in_its_text(tokenizer):
    units = list(tokenizer.saying.units(TEXT.split()))
    assert units == ["The apple, in 1973?", "Six boxes."]
    assert [token for unit in units for token in tokenizer.saying.encode(unit)] == tokenizer.saying.encode(TEXT)


def test_what_cannot_be_pronounced_is_told_in_a_line(tokenizer, monkeypatch):
    for refused in (
        lambda: TextOptions(layout="timed", phonemes="fr"),
        lambda: TextTokenizer(tokenizer.model, phonemes="fr"),
    ):
        with pytest.raises(ValueError, match="phonemes are not known for 'fr'; choose one of en-gb, en-us"):
            refused()
    for layout in ("last", "aligned"):
        with pytest.raises(ValueError, match=f"text.phonemes: are for texts to be said, not for the layout '{layout}'"):
            TextOptions(layout=layout, phonemes="en-us")
    reader.cache_clear()
    pronounced.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "hibari"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hibari", None)
    with pytest.raises(ImportError, match=r"phonemes need: pip install 'codeclm\[phonemes\]'"):
        tokenizer.saying.encode("any words")
    assert tokenizer.encode("any words")  # to write needs none


def text_config(tokenizer: TextTokenizer, layout: str) -> TextConfig:
    options = TextOptions(layout=layout, numbers="en", phonemes="en-us", lead_s=0, lag_s=0, lookahead=3)  # pyright: ignore
    return options.of_model(tokenizer.vocab_size, tokenizer.fingerprint)


@pytest.mark.parametrize("layout", ["first", "mixed", "timed"])
def test_grids_say_phonemes_and_write_letters(tokenizer, make_store, make_codec, tmp_path, layout):
    codec = make_codec(num_codebooks=2, codebook_size=4)
    text = "Six boxes."
    store = make_store(tmp_path, [np.zeros((20, 2), np.int64)], codec, ["a"], [text])
    write_times(store, [np.array([2, 4, 6, UNHEARD, 8, 9, 10, 13, 14, UNHEARD])])
    grids = StoreGrids(store, tokenizer, text_config(tokenizer, layout))
    said, heard = (grids.of_epoch(shares, 0, 0) for shares in (FormShares(1, 0, 0), FormShares(0, 0, 1)))
    phonemes, letters = tokenizer.saying.encode(text), tokenizer.encode(text)
    tags = [SAY] if layout != "first" else []
    row = said.columns(0, 0, 1000)[0]
    assert said.length(0) == len(row)
    if layout == "timed":
        assert row[:4].tolist() == [SAY, *phonemes[:3]]
        # the token that is 3 ahead is told at the frame of each; k and s of "x" have the same, and one is pushed
        assert np.flatnonzero(row[4:] != PAD).tolist() == [2, 4, 6, 7, 8, 9, 10, 11, 13, 14, 15]
    else:
        assert row[: len(tags) + len(phonemes) + 1].tolist() == [*tags, *phonemes, EOS]
    if layout != "first":
        row = heard.columns(0, 0, 1000)[0]
        assert [token for token in row if token >= 0 and token not in (PAD, EOS, WRITE)] == letters
        assert len(heard.columns(0, 0, 1000)[0]) == heard.length(0)


def test_letters_that_are_read_back_stand_where_their_phonemes_were_said(tokenizer):
    text = "Six boxes."
    said = tokenizer.saying.encode(text)
    frames = np.arange(len(said)) * 2
    found = written_frames(tokenizer, text, frames)
    tokens, places = tokenizer.encode_places(text)
    assert found is not None and len(found) == len(tokens) and (np.diff(found) >= 0).all()
    # s ɪ k s . b ɑ k s ᵻ z: the letters of "Six boxes" are heard with these
    at = dict(zip("Six boxes", [0, 2, 4, None, 8, 10, 12, 16, 18], strict=False))
    for frame, (first, last) in zip(found, places, strict=True):
        begun = [at[c] for c in text[first:last] if at.get(c) is not None]
        assert not begun or frame == begun[0]
    assert written_frames(tokenizer, text, frames[:-1]) is None
    plain = TextTokenizer(tokenizer.model)
    np.testing.assert_array_equal(written_frames(plain, "six", np.arange(9)), np.arange(len(plain.encode("six"))))


@pytest.fixture(scope="module")
def lm(tokenizer, make_model, make_codec) -> SpeechGenerator:
    codec = make_codec()
    torch.manual_seed(0)
    model = make_model(codec=codec, text=text_config(tokenizer, "timed"))
    return SpeechGenerator(model, codec, "mine", tokenizer)


def test_a_model_is_told_the_phonemes_in_turn(lm):
    said = lm.say(TEXT, seed=1)
    assert said.told is not None
    tokens = lm.tokenizer.saying.encode(TEXT)
    assert said.told[said.told != PAD].tolist() == [*tokens[3:], *[EOS] * 3]
    assert said.text == lm.tokenizer.decode(tokens)
    assert np.isfinite(text_nats(lm, said, TEXT))
    with pytest.raises(ValueError, match="nothing of the text '\u4e00' is said; give words"):
        lm.say("\u4e00")


def test_a_sentence_is_said_while_the_next_is_being_written(lm):
    taken: list[str] = []
    chunks = lm.stream(None, text=(taken.append(part) or part for part in TEXT + " And so on."), seed=3)
    first = next(chunks)
    assert "".join(taken).startswith(TEXT[:20]) and len(taken) < len(TEXT)
    whole = np.concatenate(list(lm.stream(None, text=TEXT + " And so on.", seed=3)))
    np.testing.assert_array_equal(np.concatenate([first, *chunks]), whole)


def test_a_saved_model_says_by_phonemes(lm, tmp_path):
    save_model(lm.model, lm.codec, tmp_path / "model", tokenizer=lm.tokenizer, with_codec=True)
    loaded = load(tmp_path / "model")
    assert loaded.tokenizer is not None and loaded.tokenizer.vocab_size == lm.tokenizer.vocab_size
    np.testing.assert_array_equal(loaded.say("Six.", seed=2).codes, lm.say("Six.", seed=2).codes)
