"""A text that is said while it is still being written (inference/written_text.py); what is said: test_timed_text.py."""

import io
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.pacing import Pacing
from codeclm.inference.text_cli import stdin_parts
from codeclm.inference.written_text import words_of
from codeclm.model.text_tokens import PAD


@given(st.lists(st.text(st.sampled_from("ab| \n\t"), max_size=4)))
def test_words_are_those_of_the_whole_text_wherever_it_is_cut(parts):
    assert list(words_of(parts)) == "".join(parts).split()


def test_a_word_comes_as_soon_as_white_space_follows_it():
    taken = []
    words = words_of(taken.append(part) or part for part in ("on", "e two", " ", "three"))
    assert [(word, len(taken)) for word in words] == [("one", 2), ("two", 3), ("three", 4)]


def test_a_row_that_gets_more_text_tells_what_was_left_and_then_that():
    pacing = Pacing.of(2, torch.device("cpu"))
    pacing.set_rows([0], [10, 11, 12], 5)
    pacing.take(torch.tensor([10, PAD]))
    pacing.take(torch.tensor([PAD, PAD]))
    before = pacing.waited.clone()
    pacing.add(0, [13, 14])
    assert pacing.num_left(0) == 4 and pacing.num_left(1) == 0
    assert torch.equal(pacing.waited, before)  # when the next is due in any case has not changed
    told = []
    while pacing.num_left(0):
        choices = pacing.allowed(torch.zeros(2, 20)).isfinite()[0]
        told += [token for token in range(20) if choices[token] and token != PAD]
        pacing.take(torch.tensor([told[-1], PAD]))
    assert told == [11, 12, 13, 14]


def test_standard_input_is_read_as_it_comes_and_is_utf8(monkeypatch):
    class Pipe(io.BytesIO):
        def read1(self, size: int | None = -1):
            return super().read1(3)

    def written(content: bytes) -> list[str]:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=Pipe(content)))
        return list(stdin_parts())

    assert "".join(written("für Élise".encode())) == "für Élise"  # letters of two bytes are cut
    for broken in ("Élise".encode("latin-1"), "für É".encode()[:-1]):
        with pytest.raises(ValueError, match="standard input: is not UTF-8 text"):
            written(broken)


def test_a_model_that_needs_all_of_a_text_refuses_parts_of_it(make_model, make_codec):
    codec = make_codec()
    with pytest.raises(ValueError, match="mine: needs all of a text before it says it; join its parts"):
        SpeechGenerator(make_model(codec=codec), codec, "mine").stream(text=iter(["a", "b"]))
