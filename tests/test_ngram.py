"""data/ngram.py: probabilities of the next token as they are counted by hand, and a file that is read whole or not."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from codeclm.data.ngram import NGRAM_FILE, Ngram
from codeclm.data.text_tokenizer import TextTokenizer
from codeclm.model.text_tokens import BOS, EOS

SIZE = 9  # tokens
A, B, C = 5, 6, 7


def counted(texts: list[list[int]], context: list[int], token: int, order: int, least: int = 1) -> float:
    """The definition in the module's docstring, straight from the texts."""
    grams: Counter[tuple[int, ...]] = Counter()
    for text in ([BOS, *text, EOS] for text in texts):
        for first in range(len(text)):
            for last in range(first + 1, min(first + order, len(text)) + 1):
                grams[tuple(text[first:last])] += 1
    kept = {gram: count for gram, count in grams.items() if count >= least or len(gram) == 1}
    single = {gram[0]: count for gram, count in kept.items() if len(gram) == 1 and gram[0] != BOS}
    p = (single.get(token, 0) + len(single) / SIZE) / (sum(single.values()) + len(single))
    for length in range(1, order):
        seen = tuple([BOS, *context][-length:])
        if length > len(context) + 1 or seen not in kept:
            break
        longer = {gram[-1]: count for gram, count in kept.items() if gram[:-1] == seen}
        if longer:
            left = kept[seen] - sum(longer.values()) + len(longer)
            p = (longer.get(token, 0) + left * p) / (kept[seen] + len(longer))
    return p


letters = st.lists(st.integers(A, C), min_size=1, max_size=8)


@given(
    st.lists(letters, min_size=1, max_size=6), st.lists(st.integers(4, 8), max_size=5), st.integers(1, 4), st.booleans()
)
def test_a_token_has_the_probability_that_is_counted(texts, context, order, rare_ones_too):
    least = 1 if rare_ones_too else 2
    ngram = Ngram.count(texts, SIZE, order, (1, least))
    state = ngram.start
    for token in context:
        state = ngram.next(state, token)
    found = np.exp(ngram.log_probabilities(state))
    expected = [counted(texts, context, token, order, least) for token in range(SIZE)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert math.isclose(found.sum(), 1.0, rel_tol=1e-12)


def test_what_was_seen_is_likelier_than_what_was_not():
    ngram = Ngram.count([[A, B, C], [A, B, C], [A, C]], SIZE)
    after = ngram.next(ngram.next(ngram.start, A), B)
    p = ngram.log_probabilities(after)
    assert p[C] > p[EOS] > p[8] > -math.inf and p.argmax() == C
    with pytest.raises(ValueError, match="no text"):
        Ngram.count([[]], SIZE)


@pytest.fixture
def tokenizer() -> TextTokenizer:
    texts = ["the cat sat on the mat", "a dog sat there"] * 3
    tokenizer = TextTokenizer.train(texts, 0)
    tokenizer.ngram = tokenizer.counted(texts)
    return tokenizer


def test_it_goes_with_the_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    content = (tmp_path / NGRAM_FILE).read_bytes()
    for _ in range(5):
        tokenizer.save(tmp_path)
        assert (tmp_path / NGRAM_FILE).read_bytes() == content
    found = TextTokenizer.load(tmp_path).ngram
    assert found is not None and tokenizer.ngram is not None
    state, other = found.start, tokenizer.ngram.start
    for token in tokenizer.encode("the dog on"):
        state, other = found.next(state, token), tokenizer.ngram.next(other, token)
        np.testing.assert_array_equal(found.log_probabilities(state), tokenizer.ngram.log_probabilities(other))
    tokenizer.ngram = None
    tokenizer.save(tmp_path / "alone")
    assert TextTokenizer.load(tmp_path / "alone").ngram is None


def test_a_damaged_file_or_that_of_another_tokenizer_is_refused(tokenizer, tmp_path):
    path = tmp_path / NGRAM_FILE
    tokenizer.save(tmp_path)
    whole, tensors = path.read_bytes(), load_file(path)
    with safe_open(path, "pt") as file:
        notes = file.metadata()
    for cut in 0, 7, len(whole) // 2, len(whole) - 1:
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="is not a whole n-gram file"):
            TextTokenizer.load(tmp_path)
    for name, change in {
        "sizes": lambda x: x[:-1],
        "followers": lambda x: x + 1,
        "tokens": lambda x: x + 200,
        "counts": lambda x: x * float("nan"),
        "seen": lambda x: x - 400,
    }.items():
        save_file(tensors | {name: change(tensors[name])}, path, notes)
        with pytest.raises(ValueError, match="is not a whole n-gram file"):
            TextTokenizer.load(tmp_path)
    save_file({name: tensors[name] for name in tensors if name != "counts"}, path, notes)
    with pytest.raises(ValueError, match="is not a whole n-gram file"):
        TextTokenizer.load(tmp_path)
    save_file(tensors, path, {"ngram": notes["ngram"].replace(tokenizer.fingerprint, "another")})
    with pytest.raises(ValueError, match="is of another tokenizer"):
        TextTokenizer.load(tmp_path)
    save_file(tensors, path, notes)
    assert TextTokenizer.load(tmp_path).ngram is not None
