"""data/number_words.py: numbers are told as they are said, and the tokens of one stand where its digits do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeclm.data.number_words import said
from codeclm.data.text_encoder import clean_text, said_words
from codeclm.data.text_times import UNHEARD
from codeclm.data.text_tokenizer import TextTokenizer
from codeclm.inference.loading import load, save_model
from codeclm.train.config import TextOptions

ENGLISH = {
    "cats": "cats",
    "7,": "seven,",
    "(12)": "(twelve)",
    "1973.": "nineteen seventy-three.",
    "2001": "two thousand and one",
    "224": "two hundred and twenty-four",
    "425,542": "four hundred and twenty-five thousand, five hundred and forty-two",
    "3.14": "three point one four",
    "$481.94": "four hundred and eighty-one dollars ninety-four cents",
    "$5,": "five dollars,",
    "8:45": "eight forty-five",
    "8:00": "eight",
    "0:00": "zero",
    "22nd": "twenty-second",
    "1990-95": "nineteen ninety ninety-five",
    "007": "zero zero seven",
    "5551234567": "five five five one two three four five six seven",
    "mp3s": "mp three s",
    "12.11.2024": "twelve eleven twenty twenty-four",
    "½": "½",
    "٣": "٣",
}
OTHERS = [
    ("de", "1.000,5", "eintausend Komma fünf"),
    ("de", "1973", "neunzehnhundertdreiundsiebzig"),
    ("fr", "80", "quatre-vingts"),
    ("fr", "1er", "un er"),
    ("es", "€5", "cinco euros"),
    ("ja", "1973", "千九百七十三"),
]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(["one two three four five six seven eight nine ten eleven"] * 3, 290, "en")


def test_numbers_in_words():
    assert {word: said(word, "en") for word in ENGLISH} == ENGLISH
    assert [(language, word, said(word, language)) for language, word, _ in OTHERS] == OTHERS


@settings(max_examples=200)
@given(word=st.text("0123456789.,:-$€a½٣st", min_size=1, max_size=20))
def test_any_number_has_words_and_no_digits(word):
    told = said(word, "en")
    assert told.strip() and not any("0" <= character <= "9" for character in told)
    assert said(told, "en") == told


def test_a_language_that_is_not_known_is_named():
    for refused in (
        lambda: said("7", "xx"),
        lambda: TextOptions(layout="first", numbers="xx"),
        lambda: TextTokenizer.train(["some words of a text"], 275, "xx"),
    ):
        with pytest.raises(ValueError, match="numbers are not known in the language 'xx'; choose one of .*en"):
            refused()
    assert TextOptions(layout="first", numbers="en").of_model(300, "").numbers == "en"


def test_a_number_is_one_word_of_the_text_and_its_tokens_are_those_of_its_words(tokenizer):
    text = "chapter 7, line 33, of 1973"
    assert said_words(text, "en") == ["chapter", "seven,", "line", "thirty-three,", "of", "nineteen seventy-three"]
    assert tokenizer.decode(tokenizer.encode(text)) == "chapter seven, line thirty-three, of nineteen seventy-three"
    assert len(tokenizer.encode_words(text)) == len(text.split())
    as_written = TextTokenizer(tokenizer.model)
    assert as_written.decode(as_written.encode(text)) == text
    assert as_written.encode("nineteen seventy-three") == tokenizer.encode("1973")


def test_characters_of_a_vocabulary_are_those_of_the_words():
    tokenizer = TextTokenizer.train(["on 26 days of 1990"], 0, "en")
    assert [tokenizer.decode([token]) for token in tokenizer.encode("6")] == ["", *"six"]
    digits = {tokenizer.decode([token]) for token in range(260, tokenizer.vocab_size)} & set("0123456789")
    assert not digits


@settings(max_examples=200)
@given(text=st.text("0123456789 .,$aé", max_size=30))
def test_places_of_tokens_lie_in_the_words_that_they_are_of(tokenizer, text):
    tokens, places = tokenizer.encode_places(text)
    assert tokens == tokenizer.encode(text)
    starts = np.cumsum([0, *(len(word) + 1 for word in clean_text(text).split())])
    word_of = np.repeat(np.arange(len(starts) - 1), list(map(len, tokenizer.encode_words(text))))
    assert (starts[word_of] <= places[:, 0]).all() and (places[:, 0] <= places[:, 1]).all()
    assert (places[:, 1] < starts[word_of + 1]).all() and (np.diff(places, axis=0) >= 0).all()


def test_tokens_of_a_number_are_spread_over_the_time_of_its_digits(tokenizer):
    tokens, places = tokenizer.encode_places("a 12 b")  # "twelve" in the place of two digits
    frames = np.array([0, UNHEARD, 10, 20, UNHEARD, 30])
    told = [(tokenizer.decode([token]), frames[first]) for token, (first, _) in zip(tokens, places, strict=True)]
    number = [(text, frame) for text, frame in told if text and text in "twelve"]
    assert "".join(text for text, _ in number) == "twelve"
    assert [frame for _, frame in number] == sorted(frame for _, frame in number) and {10, 20} <= {f for _, f in number}


def test_a_saved_model_says_in_which_language_numbers_are_told(tokenizer, make_model, make_codec, tmp_path):
    codec, text = make_codec(), TextOptions(layout="mixed", numbers="en")
    model = make_model(codec=codec, text=text.of_model(tokenizer.vocab_size, tokenizer.fingerprint))
    save_model(model, codec, tmp_path / "model", tokenizer=tokenizer, with_codec=True)
    loaded = load(tmp_path / "model")
    assert loaded.tokenizer is not None and loaded.tokenizer.encode("12") == tokenizer.encode("twelve")
