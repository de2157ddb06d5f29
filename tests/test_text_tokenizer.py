"""data/text_tokenizer.py: any text comes back, training is repeatable, and what cannot be is said in one line."""

import io
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from codeclm.data.text_encoder import clean_text
from codeclm.data.text_tokenizer import TOKENIZER_FILE, TextTokenizer
from codeclm.model.text_tokens import BOS, EOS, EPAD, PAD

TEXTS = [
    "There are no winners in life, only survivors.",
    "And he said, whence camest thou? and whither wilt thou go?",
    "the quick brown fox jumps over the lazy dog again and again",
]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(TEXTS, vocab_size=340)


@settings(max_examples=300)
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text("thewins </s><0x41>\u2581\n", max_size=30))
def test_any_text_comes_back_with_its_white_space_normalised(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == clean_text(text)
    assert all(PAD < token < tokenizer.vocab_size for token in tokens)  # text cannot write a special token
    words = tokenizer.encode_words(text)
    assert len(words) == len(clean_text(text).split()) and sum(words, []) == tokens
    assert [tokenizer.decode(word) for word in words] == clean_text(text).split()


def test_tokens_are_those_of_sentencepiece_for_the_whole_text(tokenizer):
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    for text in TEXTS:
        assert tokenizer.encode(f" {text}\n") == pieces.encode(text)
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0]) / 1.5


def test_no_text_is_no_token_and_special_tokens_are_no_text(tokenizer):
    assert tokenizer.encode("") == tokenizer.encode(" \n") == [] == tokenizer.encode_words("")
    assert (EPAD, BOS, EOS, PAD) == (0, 1, 2, 3)
    tokens = tokenizer.encode("the lazy dog")
    assert tokenizer.decode([-1, PAD, EPAD, *tokens, EOS, PAD]) == "the lazy dog"
    with pytest.raises(ValueError, match="text token 340 is unknown.*0..339"):
        tokenizer.decode([*tokens, 340])
    with pytest.raises(ValueError, match=r"'\\udce9', which is no character"):
        tokenizer.encode("caf\udce9")


def test_training_twice_gives_the_same_bytes(tokenizer):
    again = TextTokenizer.train(iter(TEXTS), vocab_size=340)
    assert again.model == tokenizer.model and again.vocab_size == 340 and again.fingerprint == tokenizer.fingerprint
    assert TextTokenizer.train(TEXTS, vocab_size=341).fingerprint != tokenizer.fingerprint


def test_a_text_of_any_length_is_learnt_from():
    assert TextTokenizer.train(["again " * 5000], vocab_size=270).vocab_size == 270


def test_a_tokenizer_is_one_file(tokenizer, tmp_path: Path):
    path = tokenizer.save(tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == [path] and path.name == TOKENIZER_FILE
    for source in (path, tmp_path / "model"):
        loaded = TextTokenizer.load(source)
        assert loaded.model == tokenizer.model and loaded.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*no such file"):
        TextTokenizer.load(tmp_path / TOKENIZER_FILE)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"hello" * 99])
def test_a_damaged_file_is_refused_by_name(tokenizer, tmp_path: Path, damage):
    path = tokenizer.save(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path}: is not a sentencepiece model, or is damaged") as caught:
        TextTokenizer.load(path)
    assert "\n" not in str(caught.value)


def test_other_special_ids_are_refused():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=60, model_type="bpe", minloglevel=2
    )
    with pytest.raises(ValueError, match=r"has the ids \(0, 1, 2, -1\).*must be \(0, 1, 2, 3\)"):
        TextTokenizer(model.getvalue())


def test_a_vocabulary_the_text_cannot_give_names_one_it_can():
    with pytest.raises(ValueError, match="more than this text supports; choose at most") as caught:
        TextTokenizer.train(TEXTS, vocab_size=5000)
    most = int(str(caught.value).split("at most ")[1].split(",")[0])
    assert TextTokenizer.train(TEXTS, vocab_size=most).vocab_size == most
    with pytest.raises(ValueError, match="too small for the characters.*at least") as caught:
        TextTokenizer.train(TEXTS, vocab_size=270)
    least = int(str(caught.value).split("at least ")[1])
    assert TextTokenizer.train(TEXTS, vocab_size=least).vocab_size == least < most
    with pytest.raises(ValueError, match="vocab_size is 260; it must be at least 261"):
        TextTokenizer.train(TEXTS, vocab_size=260)


@pytest.mark.parametrize("transcripts", [[], ["", " \n"]])
def test_training_on_no_text_is_refused(transcripts):
    with pytest.raises(ValueError, match="no text to train a tokenizer on"):
        TextTokenizer.train(transcripts)


def test_without_a_size_every_character_is_a_token():
    tokenizer = TextTokenizer.train(["some words of a text", "und noch ein Wort"], 0)
    text = "wort ohne Sinn"
    assert [tokenizer.decode([token]) for token in tokenizer.encode("noch")] == ["", *"noch"]
    assert tokenizer.decode(tokenizer.encode(text)) == text
