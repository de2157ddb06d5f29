"""model/layout.py: which code is expected at which step, and what is known there. K codebooks, T frames, S steps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codeclm.model import SpeechLMConfig
from codeclm.model.delay_pattern import ABSENT, delay
from codeclm.model.layout import arrange, given_first, last_frames, num_scored, scored_ends, to_frames
from codeclm.model.shapes import TextConfig

SIZE, WORDS = 9, 5
X, E, B, W = ABSENT, SIZE, SIZE, WORDS  # nothing, EOS, BOS, BOS of the text


def config(delays: list[int], **options: object) -> SpeechLMConfig:
    return SpeechLMConfig(len(delays), SIZE, delays=delays, **options)


def draw(*shape: int, size: int = SIZE) -> Tensor:
    return torch.randint(0, size, shape)


def test_two_delayed_codebooks_step_by_step():
    codes = torch.tensor([[[1, 2, 3], [4, 5, 6]], [[7, X, X], [8, X, X]]])
    steps = arrange(config([0, 1]), codes, torch.tensor([True, True]))
    assert steps.targets.tolist() == [[[1, 2, 3, E], [X, 4, 5, 6]], [[7, E, X, X], [X, 8, X, X]]]
    assert steps.inputs.tolist() == [[[B, 1, 2, 3], [B, X, 4, 5]], [[B, 7, X, X], [B, X, 8, X]]]
    assert steps.place.tolist() == [[0, 1, 2]] * 2
    assert int(num_scored(config([0, 1]), codes, torch.tensor([True, True]), None)) == 6 + 1 + 2 + 1
    gaps = arrange(config([0, 1], gaps="bos"), codes)
    assert gaps.inputs.tolist() == [[[B, 1, 2, 3], [B, B, 4, 5]], [[B, 7, B, B], [B, B, 8, B]]]
    without = config([0, 1], bos=False)
    given = arrange(without, codes, torch.tensor([True, False]))
    assert given.targets.tolist() == [[[2, 3, E], [4, 5, 6]], [[X, X, X], [8, X, X]]]
    assert given.inputs.tolist() == [[[1, 2, 3], [X, 4, 5]], [[7, X, X], [X, 8, X]]]
    assert given.place.tolist() == [[-1, 0, 1]] * 2
    first = given_first(given.place, [0, 1], codes != ABSENT)
    assert first.nonzero().tolist() == [[0, 0, 0], [1, 0, 0]]
    assert int(num_scored(without, codes, torch.tensor([True, False]), None)) == 6 + 1 + 2


def test_text_and_another_speaker_beside_the_codes():
    codes, user, text = torch.tensor([[[X, 1, 2]]]), torch.tensor([[[X, 3, 4]]]), torch.tensor([[3, X, 2]])
    speaker, ends = config([1], text=TextConfig(WORDS), user_codebooks=1), torch.tensor([True])
    steps = arrange(speaker, codes, ends, text, user)
    assert steps.targets.tolist() == [[[X, X, 1, 2, E]]]
    assert steps.inputs.tolist() == [[[B, X, X, 1, 2], [B, X, X, 3, 4]]]
    assert steps.text_targets is not None and steps.text_targets.tolist() == [[3, X, 2, X, X]]
    assert steps.text_inputs is not None and steps.text_inputs.tolist() == [[W, 3, X, 2, X]]
    hearer = config([1], text=TextConfig(WORDS, predicted=False), user_codebooks=1)
    assert int(num_scored(speaker, codes, ends, text)) == 5 and int(num_scored(hearer, codes, ends, text)) == 3


def test_packed_documents_step_by_step():
    codes, documents = torch.tensor([[[1, 2, 3, 4], [5, 6, 7, 8]]]), torch.tensor([[0, 0, 3, 3]])
    ends = torch.tensor([[False, True, False, False]])
    steps = arrange(config([0, 1]), codes, ends, documents=documents)
    assert steps.targets.tolist() == [[[1, 2, E, 3, 4, X], [X, 5, 6, X, 7, 8]]]
    assert steps.inputs.tolist() == [[[B, 1, 2, B, 3, 4], [B, X, 5, B, X, 7]]]
    assert steps.documents is not None and steps.documents.tolist() == [[0, 0, 0, 1, 1, 1]]
    assert steps.place.tolist() == [[0, 1, 3, 4]]


OPTIONS = st.fixed_dictionaries(
    dict(gaps=st.sampled_from(["absent", "bos"]), end=st.sampled_from(["eos", "zeros", "never"]))
)
LAGS = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(lambda rest: [min(rest), *rest])


@settings(max_examples=60)
@given(delays=LAGS, batch=st.integers(1, 3), num_frames=st.integers(1, 6), options=OPTIONS)
def test_every_code_is_expected_once_and_given_one_step_later(delays, batch, num_frames, options):
    codes, ends = draw(batch, len(delays), num_frames), torch.rand(batch) < 0.5
    steps = arrange(config(delays, **options), codes, ends)
    num_steps = steps.targets.shape[2]
    delayed = delay(codes, delays)
    expected = torch.full_like(steps.targets, ABSENT)
    expected[:, :, : delayed.shape[2]] = delayed
    without_eos = steps.targets.masked_fill(steps.targets == SIZE, ABSENT)
    assert torch.equal(without_eos, expected)
    given_later = expected[:, :, :-1]
    if options["gaps"] == "bos":
        given_later = given_later.masked_fill(given_later == ABSENT, SIZE)
    assert torch.equal(steps.inputs[:, :, 1:], given_later) and (steps.inputs[:, :, 0] == SIZE).all()
    eos = (steps.targets == SIZE).nonzero().tolist()
    asked = ends.nonzero().flatten().tolist() if options["end"] == "eos" else []
    assert eos == [[row, 0, num_frames + delays[0]] for row in asked]
    assert num_steps == num_frames + max(*delays, delays[0] + (options["end"] == "eos"))
    assert torch.equal(to_frames(steps.targets, steps.place, delays), codes)


@settings(max_examples=60)
@given(
    delays=LAGS,
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    options=OPTIONS,
    text_and_user=st.booleans(),
)
def test_the_steps_of_packed_documents_are_those_of_each_one_after_the_other(delays, lengths, options, text_and_user):
    extras = dict(text=TextConfig(WORDS), user_codebooks=len(delays)) if text_and_user else {}
    settings = config(delays, **options, **extras)
    parts = []
    for length in lengths:
        text, user = draw(1, length, size=WORDS), draw(1, len(delays), length)
        parts.append([draw(1, len(delays), length), *((text, user) if text_and_user else (None, None))])
    alone = [arrange(settings, codes, torch.ones(1, dtype=torch.bool), text, user) for codes, text, user in parts]
    codes, text, user = (
        None if column[0] is None else torch.cat(column, dim=-1) for column in zip(*parts, strict=True)
    )
    documents = torch.repeat_interleave(torch.arange(len(lengths)) * 2, torch.tensor(lengths))[None]
    ends = torch.zeros(1, sum(lengths), dtype=torch.bool)
    ends[0, torch.tensor(lengths).cumsum(0) - 1] = True
    packed = arrange(settings, codes, ends, text, user, documents)
    for name in ("inputs", "targets", "text_inputs", "text_targets"):
        values = [getattr(one, name) for one in alone]
        if values[0] is None:
            assert getattr(packed, name) is None
        else:
            assert torch.equal(getattr(packed, name), torch.cat(values, dim=-1)), name
    numbers = [torch.full((1, one.targets.shape[2]), i) for i, one in enumerate(alone)]
    assert packed.documents is not None and torch.equal(packed.documents, torch.cat(numbers, dim=1))
    assert torch.equal(to_frames(packed.targets, packed.place, delays), codes)


def test_rows_packed_with_different_numbers_of_documents_keep_their_places():
    codes = torch.arange(1, 9).view(2, 1, 4)
    steps = arrange(config([0]), codes, documents=torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0]]))
    assert steps.targets.tolist() == [[[1, X, 2, X, 3, X, 4, X]], [[5, 6, 7, 8, X, X, X, X]]]
    assert steps.documents is not None and steps.documents[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(to_frames(steps.targets, steps.place, [0]), codes)


def test_the_last_frame_is_the_last_that_holds_a_code_of_codebook_0():
    codes = torch.tensor([[[1, 2, X]], [[X, X, 3]], [[X, X, X]], [[X, 4, X]]])
    assert last_frames(codes).tolist() == [
        [False, True, False],
        [False, False, True],
        [False, False, False],
        [False, True, False],
    ]


def test_what_was_given_comes_back_as_zero_even_where_steps_hold_infinities():
    place = torch.tensor([[-1, 0, 1]])
    values = torch.tensor([[[float("-inf"), 2.0]]])
    assert to_frames(values, place, [0]).tolist() == [[[0.0, float("-inf"), 2.0]]]
    assert to_frames(values[..., None], place, [0]).shape == (1, 1, 3, 1)


def test_documents_are_refused_where_nothing_marks_their_beginning():
    with pytest.raises(ValueError, match="without BOS cannot tell packed documents apart"):
        arrange(config([0], bos=False), draw(1, 1, 3), documents=torch.tensor([[0, 0, 1]]))


def test_an_end_counts_where_there_is_audio_and_the_model_ends_with_eos():
    codes, ends = torch.tensor([[[1, X]], [[X, X]]]), torch.tensor([True, True])
    assert scored_ends(config([0]), codes, ends).nonzero().tolist() == [[0, 0]]
    assert int(num_scored(config([0]), codes, ends, None)) == 2
    assert int(num_scored(config([0], end="never"), codes, ends, None)) == 1
    assert int(num_scored(config([0]), codes, None, None)) == 1
