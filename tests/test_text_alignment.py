"""When the texts of a store are said: the likeliest path is the likeliest, and a taught aligner finds known times."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codeclm.data.text_encoder import clean_text
from codeclm.data.text_times import UNHEARD, TextTimes, times_file, write_times
from codeclm.data.text_tokenizer import TextTokenizer
from codeclm.data.token_store import TokenStore
from codeclm.model.codecs import load_codec
from codeclm.train.aligner import BLANK, Alphabet, likeliest_paths
from codeclm.train.aligner_config import AlignerConfig
from codeclm.train.text_alignment import align


def collapsed(path: tuple[int, ...]) -> list[int]:
    """What CTC reads in a path."""
    kept = [c for place, c in enumerate(path) if place == 0 or c != path[place - 1]]
    return [c for c in kept if c != BLANK]


@settings(max_examples=60)
@given(st.lists(st.integers(1, 2), min_size=1, max_size=3), st.integers(0, 2), st.integers(0, 10**6))
def test_the_path_costs_least_of_all_that_read_as_the_text(text, spare, seed):
    repeats = sum(a == b for a, b in zip(text[1:], text[:-1], strict=True))
    num_steps = len(text) + repeats + spare
    scores = np.log(np.random.default_rng(seed).dirichlet(np.ones(3), num_steps))
    paths = np.stack(np.meshgrid(*[range(3)] * num_steps, indexing="ij"), axis=-1).reshape(-1, num_steps)
    right = [path for path in map(tuple, paths.tolist()) if collapsed(path) == text]
    best = max(scores[range(num_steps), list(path)].sum() for path in right)
    # beside a longer one
    other = np.log(np.full((num_steps + 2, 3), 1 / 3))
    padded = np.stack([np.pad(scores, ((0, 2), (0, 0))), other])
    begins, _ = likeliest_paths(padded, np.array([num_steps, num_steps + 2]), [text, [1, 2]])
    # the best path with these beginnings is as good
    same = [path for path in right if starts_of(path) == begins.tolist()]
    assert best == pytest.approx(max(scores[range(num_steps), list(path)].sum() for path in same))


def starts_of(path: tuple[int, ...]) -> list[int]:
    return [place for place, c in enumerate(path) if c != BLANK and (place == 0 or c != path[place - 1])]


def test_an_alphabet_has_letters_and_digits_without_case_and_accents():
    alphabet = Alphabet(["Élan, 7 Жук!"] * 20 + ["q"])
    assert alphabet.characters == sorted("elan7жук")
    numbers, places = alphabet.encode("A q É?")
    assert alphabet.decode(numbers) == "ae" and places == [0, 4]


@pytest.mark.slow
def test_an_aligner_finds_when_letters_are_said(make_store, tmp_path):
    torch.set_num_threads(1)
    codec = load_codec("spectral")
    rng = np.random.default_rng(0)
    letters = "abcdefg "
    sounds = rng.integers(codec.codebook_size, size=(len(letters), codec.num_codebooks))
    texts, codes, wanted = [], [], []
    for _ in range(240):
        chosen = [int(rng.integers(7))]
        while len(chosen) < 10:
            chosen.append(int(rng.choice([n for n in range(8) if n != chosen[-1]])))
        lengths = rng.integers(2, 7, len(chosen))
        texts.append("".join(letters[n] for n in chosen).strip())
        codes.append(sounds[np.repeat(chosen, lengths)])
        wanted.append(np.cumsum([0, *lengths]))
    make_store(tmp_path, codes, codec, [f"{i:03}" for i in range(240)], texts)
    hours = 8000 / codec.frame_rate / 3600  # some 2,000 frames more are aligned without having been learned from
    align(tmp_path, codec, AlignerConfig(hours, 17, dim=48, num_layers=2, frames_per_batch=600, learning_rate=5e-3))
    store = TokenStore(tmp_path)
    times = TextTimes(store)
    assert times.is_known.all()
    inside = []
    for i in range(len(store)):
        text, number = clean_text(store.text(i) or ""), int(store.names[i])
        found = times.frames[times.starts[i] : times.starts[i + 1]]
        heard = np.array([c != " " for c in text])
        assert ((found == UNHEARD) == ~heard).all()
        begins, ends = wanted[number][: len(text)], wanted[number][1 : len(text) + 1]
        inside.append(((begins <= found) & (found < ends))[heard])
    assert np.mean(np.concatenate(inside)) > 0.95


def test_tokens_begin_with_their_first_sound(make_store, make_codec, tmp_path):
    texts = ["ab, cd"]
    store = make_store(tmp_path, [np.zeros((20, 3), np.int64)], make_codec(), ["x"], texts)
    write_times(store, [np.array([2, 5, UNHEARD, UNHEARD, 9, 12])])
    tokenizer = TextTokenizer.train(texts * 5, 266)
    tokens, frames = TextTimes(store).of_tokens(0, tokenizer, texts[0])
    assert tokens == tokenizer.encode(texts[0]) and (np.diff(frames) >= 0).all()
    for (first, after), frame in zip(tokenizer.encode_places(texts[0])[1].tolist(), frames.tolist(), strict=True):
        assert frame == min([2, 5, 9, 9, 9, 12][first : max(after, first + 1)])


def test_times_of_another_content_are_not_taken(make_store, make_codec, tmp_path):
    store = make_store(tmp_path, [np.zeros((20, 3), np.int64)], make_codec(), ["x"], ["ab"])
    with pytest.raises(FileNotFoundError, match="codeclm align"):
        TextTimes(store)
    write_times(store, [np.array([2, 5])])
    path = times_file(store)
    content = path.read_bytes()
    for damaged in (content[:-9], content.replace(b"\x05\x00\x00\x00", b"\x06\x00\x00\x00"), b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            TextTimes(store)


@given(st.text(max_size=40))
def test_places_of_tokens_cover_the_text(text):
    tokenizer = TextTokenizer.train(["some words of a text"] * 3, 275)
    try:
        tokens, places = tokenizer.encode_places(text)
    except ValueError:  # lone surrogates
        return
    assert tokens == tokenizer.encode(text)
    clean = clean_text(text)
    covered = {place for first, after in places.tolist() for place in range(first, after)}
    assert covered == {place for place, c in enumerate(clean) if c != " "}
    assert all(a <= b for a, b in combinations(places[:, 0].tolist(), 2))
