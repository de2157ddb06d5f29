"""inference/windows.py: every frame is predicted once, and looks back as far as the rule says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeclm.inference.windows import Window, describe, windows


@given(st.integers(1, 400), st.integers(2, 60))
def test_every_frame_is_predicted_exactly_once_from_at_least_half_a_window(num_frames, context_frames):
    found = windows(num_frames, context_frames)
    assert [t for window in found for t in range(window.first, window.stop)] == list(range(num_frames))
    for window in found:
        assert 0 <= window.start <= window.first < window.stop <= window.start + context_frames
        assert window.first == 0 or window.first - window.start == context_frames // 2


def test_what_fits_is_one_window():
    assert windows(8, 8) == [Window(0, 0, 8)]
    assert windows(9, 8) == [Window(0, 0, 8), Window(4, 8, 9)]


@pytest.mark.parametrize("context_frames, seconds", [(512, "20.5 s"), (100, "4.0 s")])
def test_the_rule_is_printed_with_its_numbers(context_frames, seconds):
    line = describe(context_frames, 25.0)
    assert f"{context_frames} frames ({seconds})" in line and f"{context_frames // 2} before" in line
