"""inference/windows.py: every frame is predicted once, and looks back as far as the rule says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeclm.inference.compress.codes import num_windows
from codeclm.inference.windows import Window, describe, windows


@given(st.integers(1, 400), st.integers(2, 60))
def test_every_frame_is_predicted_exactly_once_from_at_least_half_a_window(num_frames, context_frames):
    found = windows(num_frames, context_frames)
    assert len(found) == num_windows(num_frames, context_frames)
    assert [t for window in found for t in range(window.first, window.stop)] == list(range(num_frames))
    for window in found:
        assert 0 <= window.start <= window.first < window.stop <= window.start + context_frames
        assert window.first == 0 or window.first - window.start == context_frames // 2


def test_what_fits_is_one_window():
    assert windows(8, 8) == [Window(0, 0, 8)]
    assert windows(9, 8) == [Window(0, 0, 8), Window(4, 8, 9)]


@given(st.integers(1, 400), st.integers(2, 60), st.data())
def test_the_end_is_predicted_once_in_the_window_of_the_frame_whose_place_it_takes(num_frames, context_frames, data):
    last = data.draw(st.integers(0, num_frames - 1))
    found, longer = windows(num_frames, context_frames, last), windows(num_frames + 1, context_frames)
    (ends,) = [window for window in found if window.ends]
    (taken,) = [window for window in longer if window.first <= last + 1 < window.stop]
    assert (ends.start, ends.first) == (taken.start, taken.first) and ends.start <= last
    assert [t for window in found for t in range(window.first, window.stop)] == list(range(num_frames))


def test_the_end_after_a_full_window_has_a_window_of_its_own():
    assert windows(8, 8, last=7) == [Window(0, 0, 8), Window(4, 8, 8, ends=True)]
    assert windows(7, 8, last=6) == [Window(0, 0, 7, ends=True)]
    assert windows(9, 8, last=3) == [Window(0, 0, 8, ends=True), Window(4, 8, 9)]


@pytest.mark.parametrize("context_frames, seconds", [(512, "20.5 s"), (100, "4.0 s")])
def test_the_rule_is_printed_with_its_numbers(context_frames, seconds):
    line = describe(context_frames, 25.0)
    assert f"{context_frames} frames ({seconds})" in line and f"{context_frames // 2} before" in line
