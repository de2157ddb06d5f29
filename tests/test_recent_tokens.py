"""model/recent_tokens.py: the tokens that were told last, by hand, and the same however the columns are taken."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codeclm.model.delay_pattern import ABSENT
from codeclm.model.recent_tokens import RecentTokens, recent_tokens
from codeclm.model.shapes import TextConfig
from codeclm.model.text_tokens import EOS, PAD, SAY

A, B, C, START, NO = 10, 11, 12, 20, ABSENT
CASES = {
    "a text": (
        [START, SAY, A, B, PAD, C, PAD, EOS, PAD],
        [NO, NO, SAY, A, A, B, B, C, C],
        [NO, SAY, A, B, B, C, C, EOS, EOS],
    ),
    "the same letter twice": (
        [START, A, PAD, A, PAD],
        [NO, NO, NO, A, A],
        [NO, A, A, A, A],
    ),
    "columns without text change nothing": (
        [START, NO, A, NO, A, B, NO, NO],
        [NO, NO, NO, NO, A, A, A, A],
        [NO, NO, A, A, A, B, B, B],
    ),
    "another utterance has a text of its own, or none": (
        [START, A, B, C, START, NO, START, C, A],
        [NO, NO, A, B, NO, NO, NO, NO, C],
        [NO, A, B, C, NO, NO, NO, C, A],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_was_told_before(name: str):
    text, first, second = CASES[name]
    assert recent_tokens(torch.tensor([text]), 2, START)[0].tolist() == [first, second]


TOKENS = st.sampled_from([ABSENT, SAY, PAD, A, B, START])


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=30), st.integers(0, 30))
def test_columns_one_by_one_are_told_what_all_at_once_are(columns: list[tuple[int, int]], cut: int):
    text = torch.tensor(columns).T
    whole, state = recent_tokens(text, 3, START), RecentTokens(2, 3, START, text.device)
    parts = [state.extend(text[:, :cut]), *(state.take(column)[:, :, None] for column in text[:, cut:].unbind(1))]
    assert torch.equal(torch.cat(parts, dim=2), whole)
    again = RecentTokens(2, 3, START, text.device)
    assert torch.equal(torch.cat([again.extend(part) for part in text.split(4, dim=1)], dim=2), whole)
    assert torch.equal(again.tokens, state.tokens)
    swapped = RecentTokens(3, 3, START, text.device)  # rows that move go on alike
    swapped.put(slice(1, 3), state, torch.tensor([1, 0]))
    more = torch.tensor([PAD, A])
    assert torch.equal(swapped.take(more[[0, 1, 0]])[1:], state.take(more).flip(0))


def test_it_is_refused_where_no_text_stands_beside_its_sound():
    with pytest.raises(ValueError, match="lookahead is 2; .*'timed'"):
        TextConfig(11, layout="mixed", lookahead=2)
    with pytest.raises(ValueError, match="lookahead is -1"):
        TextConfig(11, layout="timed", lookahead=-1)
    with pytest.raises(ValueError, match="lookahead is 0; .* by an earlier version: train it again"):
        TextConfig(11, layout="timed")
