"""A small share of server_faults.py: bad requests leave a server as it was."""

import pytest

from codeclm.inference.loading import save_model

from .server_faults import run


@pytest.mark.slow
def test_bad_requests_leave_no_trace_and_sigterm_tells_everybody_why(tmp_path, make_model, make_codec):
    codec = make_codec(codebook_size=7)
    save_model(make_model(codec=codec, context_frames=40), codec, tmp_path / "model")
    assert run(tmp_path / "model", 60) == []
