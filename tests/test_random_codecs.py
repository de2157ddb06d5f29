"""Codecs of published shape with random weights: the numbers of the real ones, and the same weights every time."""

import pytest
import torch

from codeclm.inference.codec.contract import probe
from codeclm.inference.codec.random_codecs import PUBLISHED, published

FACTS = {  # Hz, samples per frame, codebooks, entries of each, millions of numbers in model.safetensors
    "encodec": (24_000, 320, 32, 1024, 23.3),
    "mimi": (24_000, 1_920, 32, 2048, 96.2),
    "dac": (16_000, 320, 12, 1024, 74.1),
}


@pytest.fixture(scope="module", params=PUBLISHED)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def codec(kind):
    return published(kind)


def test_the_shape_is_the_published_one(kind, codec):
    sample_rate, hop_length, num_codebooks, size, millions = FACTS[kind]
    assert (codec.sample_rate, codec.hop_length) == (sample_rate, hop_length)
    assert (codec.num_codebooks, codec.codebook_size) == (num_codebooks, size)
    assert sum(tensor.numel() for tensor in codec.state_dict().values()) / 1e6 == pytest.approx(millions, abs=0.06)
    assert not codec.training and not any(parameter.requires_grad for parameter in codec.parameters())


def test_it_encodes_and_decodes(kind, codec):
    audio = probe(codec, codec.sample_rate // (4 if kind == "dac" else 1))
    codes = codec.encode(audio)
    assert codes.shape == (1, codec.num_codebooks, codec.num_frames(audio.shape[-1]))
    assert len(codes.unique()) > 1  # zeros for codebooks would all be as near
    decoded = codec.decode(codes)
    assert decoded.shape == (1, 1, codes.shape[-1] * codec.hop_length)
    assert decoded.isfinite().all() and decoded.std() > 0


def test_weights_are_the_same_every_time_and_random_numbers_go_on_as_if_it_were_not_made():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = published("encodec")
    assert torch.equal(torch.rand(3), expected)
    assert published("encodec").fingerprint == first.fingerprint


@pytest.mark.parametrize("arguments", [("encodec", 8), ("encodec:8", None)])
def test_leading_codebooks_are_taken(arguments):
    codec = published(*arguments)
    assert codec.num_codebooks == 8 and codec.bitrate == 6_000


def test_another_kind_or_a_number_of_codebooks_that_it_lacks_is_refused_in_one_line():
    with pytest.raises(ValueError, match="codec 'opus' has no published shape here; choose one of encodec, mimi, dac"):
        published("opus")
    for wrong in ("encodec:0", "encodec:33"):
        with pytest.raises(ValueError, match="encodec: num_codebooks must be 1..32, not"):
            published(wrong)
