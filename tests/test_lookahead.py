"""model/lookahead.py: the tokens that come next in a text, by hand, and the same however the columns are taken."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codeclm.model.delay_pattern import ABSENT
from codeclm.model.lookahead import Lookahead, next_tokens
from codeclm.model.shapes import TextConfig
from codeclm.model.speech_lm_config import SpeechLMConfig
from codeclm.model.text_tokens import EOS, PAD, SAY, WRITE

A, B, C, START, NO = 10, 11, 12, 20, ABSENT
CASES = {
    "a text": (
        [START, SAY, A, B, C, EOS, PAD, A, A, B, C, C],
        [NO, NO, NO, NO, NO, A, A, B, B, C, NO, NO],
        [NO, NO, NO, NO, NO, B, B, C, C, NO, NO, NO],
    ),
    "the same letter twice is told apart by a pause": (
        [START, SAY, A, A, EOS, A, PAD, A, A],
        [NO, NO, NO, NO, A, A, A, NO, NO],
        [NO, NO, NO, NO, A, NO, NO, NO, NO],
    ),
    "a voice, and then the text": (
        [START, NO, NO, SAY, A, B, EOS, A, B],
        [NO, NO, NO, NO, NO, NO, A, B, NO],
        [NO, NO, NO, NO, NO, NO, B, NO, NO],
    ),
    "what is written down is not known before": (
        [START, WRITE, PAD, A, B, EOS, NO],
        [NO] * 7,
        [NO] * 7,
    ),
    "another utterance has a text of its own, or none": (
        [START, SAY, A, B, EOS, A, START, NO, NO, START, SAY, C, EOS, PAD],
        [NO, NO, NO, NO, A, B, NO, NO, NO, NO, NO, NO, C, C],
        [NO, NO, NO, NO, B, NO, NO, NO, NO, NO, NO, NO, NO, NO],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_comes_next(name: str):
    text, first, second = CASES[name]
    assert next_tokens(torch.tensor([text]), 2, START)[0].tolist() == [first, second]


TOKENS = st.sampled_from([ABSENT, WRITE, SAY, EOS, PAD, A, B, START])


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=30), st.integers(0, 30))
def test_columns_one_by_one_are_told_what_all_at_once_are(columns: list[tuple[int, int]], cut: int):
    text = torch.tensor(columns).T
    whole, state = next_tokens(text, 3, START), Lookahead(2, 3, START, text.device)
    parts = [part for part in (text[:, :cut], text[:, cut:]) if part.shape[1]]
    assert torch.equal(torch.cat([state.extend(part) for part in parts], dim=2), whole)
    swapped = Lookahead(3, 3, START, text.device)  # rows that move go on alike
    swapped.put(slice(1, 3), state, torch.tensor([1, 0]))
    more = torch.tensor([PAD, A])
    assert torch.equal(swapped.take(more[[0, 1, 0]])[1:], state.take(more).flip(0))


def test_it_is_refused_where_no_text_stands_beside_its_sound():
    with pytest.raises(ValueError, match="lookahead is 2; .*'timed'"):
        TextConfig(11, layout="mixed", lookahead=2)
    with pytest.raises(ValueError, match="lookahead is -1"):
        TextConfig(11, layout="timed", lookahead=-1)
    with pytest.raises(ValueError, match="'flatten' has no text.lookahead"):
        SpeechLMConfig(2, 3, pattern="flatten", text=TextConfig(11, layout="timed", lookahead=2))
