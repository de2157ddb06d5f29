"""What one clip costs: measured with one thread, and memory that was freed again is seen."""

import numpy as np
import pytest
import torch

from codeclm.inference.codec.reconstruction import Cost, mean_cost, through

CLIP = np.random.default_rng(0).normal(0, 0.1, 8_000).astype(np.float32)


def test_the_clip_is_encoded_and_decoded_by_one_thread_and_the_setting_comes_back(make_codec, monkeypatch):
    codec, seen = make_codec(), []
    for name in ("encode", "decode"):
        real = getattr(codec, name)
        monkeypatch.setattr(codec, name, lambda x, real=real: (seen.append(torch.get_num_threads()), real(x))[1])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        passage = through(codec, CLIP)
        assert seen == [1, 1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert passage.codes is not None and passage.codes.shape == (3, 100) and passage.output.shape == CLIP.shape
    assert passage.num_bits == pytest.approx(100 * 3 * 3)  # 3 codebooks of 8 entries


def test_memory_that_is_freed_before_the_end_is_counted(make_codec, monkeypatch):
    codec = make_codec()
    through(codec, CLIP)
    little, real = through(codec, CLIP).cost.peak_memory_mb, codec.decode
    if np.isnan(little):
        pytest.skip("this system does not tell a process's highest memory")
    monkeypatch.setattr(codec, "decode", lambda codes: (np.ones(16_000_000), real(codes))[1])  # 128 MB
    assert through(codec, CLIP).cost.peak_memory_mb > little + 100


def test_costs_of_clips_are_joined_by_median_speed_and_largest_memory():
    joined = mean_cost([Cost(1.0, 5.0, 10.0), Cost(2.0, 6.0, 30.0), Cost(9.0, 70.0, 20.0)])
    assert joined == Cost(2.0, 6.0, 30.0)
    assert np.isnan(mean_cost([]).peak_memory_mb)
