"""inference/compress/container.py: what was written is read, and nothing else is."""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeclm.inference.compress.container import HEADER, ClmFile, codes_crc

CODES = np.arange(24).reshape(3, 8)
CONTENT = ClmFile("ab" * 16, "cd" * 16, 3, 1024, 8, 5000, codes_crc(CODES), b"the coded codes")


@pytest.fixture
def path(tmp_path) -> Path:
    CONTENT.write(tmp_path / "made" / "speech.clm")
    return tmp_path / "made" / "speech.clm"


def test_what_was_written_is_read_and_the_header_is_small(path):
    assert ClmFile.read(path) == CONTENT
    assert path.stat().st_size == CONTENT.num_bytes == HEADER.size + len(CONTENT.payload)
    assert HEADER.size < 100
    ClmFile.read(path).check_codes(path, CODES)


def test_only_the_beginning_of_hashes_is_kept(tmp_path):
    full = replace(CONTENT, model_hash="ab" * 32, codec_fingerprint="cd" * 32)
    assert full.to_bytes() == CONTENT.to_bytes()


@given(position=st.integers(0, CONTENT.num_bytes - 1), flip=st.integers(1, 255))
def test_any_changed_byte_is_refused(tmp_path_factory, position, flip):
    path = tmp_path_factory.getbasetemp() / "changed.clm"
    data = bytearray(CONTENT.to_bytes())
    data[position] ^= flip
    path.write_bytes(data)
    with pytest.raises(ValueError, match="changed.clm: (is not a .clm file|has format|is cut off|is damaged)"):
        ClmFile.read(path)


@pytest.mark.parametrize("length", [4, 5, 6, 30, HEADER.size - 1, HEADER.size, CONTENT.num_bytes - 1])
def test_a_file_that_is_cut_off_says_so(path, length):
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"speech.clm: is cut off \(.* bytes\); copy it again"):
        ClmFile.read(path)


def test_what_is_not_a_clm_file_is_told_apart(path, tmp_path):
    for data in (b"", b"clm", b"RIFF____WAVEfmt "):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is not a .clm file; give one that 'codeclm codec compress' has written"):
            ClmFile.read(path)
    path.write_bytes(CONTENT.to_bytes() + b"more")
    with pytest.raises(ValueError, match="is damaged"):
        ClmFile.read(path)
    path.write_bytes(CONTENT.to_bytes().replace(b"clm\0\1", b"clm\0\2"))
    with pytest.raises(ValueError, match="has format 2, this codeclm reads 1; use the codeclm it came from"):
        ClmFile.read(path)
    with pytest.raises(FileNotFoundError, match="missing.clm: no such file"):
        ClmFile.read(tmp_path / "missing.clm")
    with pytest.raises(FileNotFoundError, match="is a folder, not a .clm file"):
        ClmFile.read(tmp_path)


def test_another_model_and_another_codec_are_refused_by_name(path, make_codec):
    codec, other = make_codec(), make_codec(seed=1)
    content = replace(CONTENT, codebook_size=8, num_samples=640 - 3, codec_fingerprint=codec.fingerprint[:32])
    content.require(path, "ab" * 32, codec, "mine")
    with pytest.raises(
        ValueError, match="compressed with model abababababab, but that of 'mine' is 121212121212; give"
    ):
        content.require(path, "12" * 32, codec, "mine")
    with pytest.raises(
        ValueError, match=f"with codec {codec.fingerprint[:12]}, .* 'mine' is {other.fingerprint[:12]};"
    ):
        content.require(path, "ab" * 32, other, "mine")
    for lie in (dict(num_frames=2**32 - 1), dict(num_frames=0, num_samples=0), dict(num_codebooks=4)):
        with pytest.raises(ValueError, match="was not written by codeclm: its header contradicts itself"):
            replace(content, **lie).require(path, "ab" * 32, codec, "mine")


def test_sizes_are_said_beside_what_the_model_predicts(make_codec):
    content = replace(CONTENT, payload=b"x" * 100, num_frames=1000, num_samples=80_000)
    assert content.sizes(make_codec(), 796.8).splitlines() == [
        "168 bytes for 10.00 s, 134 bits/s",
        "  codes           100 bytes, 800 bits; the model predicts 796.8 (+0.40%)",
        "  header           68 bytes, 40.5% of the file",
        "  raw codes      3750 bytes, 22.32 times the file",
        "  16-bit WAV   160044 bytes, 953 times the file",
    ]


def test_other_codes_than_went_in_are_refused(path):
    for wrong in (CODES + (CODES == 5), CODES[::-1], CODES[:, :-1]):
        with pytest.raises(ValueError, match="speech.clm: did not come out as it went in"):
            CONTENT.check_codes(path, wrong)
    with pytest.raises(ValueError, match="speech.clm: did not come out as it went in"):
        CONTENT.check_codes(path, None)
    assert codes_crc(CODES.astype(np.uint16)) == codes_crc(CODES) == zlib.crc32(CODES.T.astype("<u4").tobytes())


def test_what_the_header_cannot_count_is_refused_and_leaves_no_file(tmp_path):
    for wrong in (dict(num_frames=2**32), dict(num_codebooks=2**16), dict(num_samples=-1)):
        with pytest.raises(ValueError, match="do not fit into one .clm file; compress shorter recordings"):
            replace(CONTENT, **wrong).write(tmp_path / "big.clm")
    assert list(tmp_path.iterdir()) == []
