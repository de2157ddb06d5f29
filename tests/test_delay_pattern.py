"""model/delay_pattern.py: no code is lost, and each has its place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codeclm.model.delay_pattern import ABSENT, delay, undelay


@settings(max_examples=100)
@given(
    delays=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    batch=st.integers(1, 3),
    num_frames=st.integers(1, 7),
)
def test_undelay_inverts_delay(delays, batch, num_frames):
    codes = torch.randint(0, 50, (batch, len(delays), num_frames))
    delayed = delay(codes, delays)
    assert delayed.shape == (batch, len(delays), num_frames + max(delays)) and delayed.dtype == codes.dtype
    assert torch.equal(undelay(delayed, delays), codes)
    assert int((delayed != ABSENT).sum()) == codes.numel()  # every code once, and nothing else
    for k, lag in enumerate(delays):
        assert torch.equal(delayed[:, k, lag : lag + num_frames], codes[:, k])


@pytest.mark.parametrize("shift", [delay, undelay])
@pytest.mark.parametrize("delays", [[0], [0, 1, 2]])
def test_a_wrong_number_of_delays_is_refused(shift, delays):
    with pytest.raises(ValueError, match=f"{len(delays)} delays were given for 2 codebooks"):
        shift(torch.zeros(1, 2, 4, dtype=torch.long), delays)
