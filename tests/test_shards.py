"""data/shards.py: codes come back as they went in, and damage is found and named."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codeclm.data.shards import (
    HEADER,
    CodecInfo,
    Rejected,
    ShardIndex,
    TokenStore,
    Utterance,
    commit_store,
    write_shard,
)

INFO = CodecInfo("tiny", "f" * 64, 16_000, 640, num_codebooks=3, codebook_size=1024)
LENGTHS = [[5, 1], [], [7, 2, 4]]  # frames of the utterances of each shard; one shard has rejected files only


def random_codes(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    return rng.integers(0, INFO.codebook_size, (num_frames, INFO.num_codebooks))


def write_store(folder: Path, commit: bool = True) -> list[np.ndarray]:
    folder.mkdir()
    rng, shards, written = np.random.default_rng(0), [], []
    for number, lengths in enumerate(LENGTHS):
        codes = [random_codes(rng, length) for length in lengths]
        entries = [Utterance(f"{number}/{i}", len(c) * 640 - 10, c) for i, c in enumerate(codes)]
        shards.append(write_shard(folder, number, [*entries, Rejected(f"{number}/bad", "silent")], INFO))
        written += codes
    if commit:
        commit_store(folder, INFO, shards)
    return written


def write_texts(folder: Path, texts: list[str | None]) -> ShardIndex:
    folder.mkdir()
    codes = random_codes(np.random.default_rng(0), 4)
    shard = write_shard(folder, 0, [Utterance(f"u{i}", 2500, codes, text) for i, text in enumerate(texts)], INFO)
    commit_store(folder, INFO, [shard])
    return shard


def flip_bit(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def test_codes_names_and_lengths_come_back(tmp_path):
    written = write_store(tmp_path / "s")
    store = TokenStore(tmp_path / "s")
    store.verify()
    assert store.codec == INFO and store.codec.frame_rate == 25
    assert len(store) == 5 and store.names == ["0/0", "0/1", "2/0", "2/1", "2/2"]
    assert store.num_frames.tolist() == [5, 1, 7, 2, 4] and store.num_samples[1] == 630
    for i, codes in enumerate(written):
        assert store.codes(i).dtype == np.uint16
        np.testing.assert_array_equal(store.codes(i), codes)
    np.testing.assert_array_equal(store.codes(2, 3, 6), written[2][3:6])
    for i, start, stop in [(5, 0, None), (0, 0, 6), (0, 4, 3), (-1, 0, None)]:
        with pytest.raises(IndexError):
            store.codes(i, start, stop)


def test_texts_come_back_and_belong_to_the_data_hash(tmp_path):
    hashes = []
    for number, texts in enumerate([["Où est-il? 日本", None], ["Où est-il? 日本", "b"], [None, None]]):
        write_texts(tmp_path / str(number), texts)
        store = TokenStore(tmp_path / str(number))
        store.verify()
        assert [store.text(i) for i in range(2)] == texts
        hashes.append(store.data_hash)
        with pytest.raises(IndexError):
            store.text(2)
    assert len(set(hashes)) == 3
    path = tmp_path / "1/shard-00000.json"
    path.write_text(path.read_text().replace('"b"', '"c"'))
    with pytest.raises(ValueError, match="shard-00000.json"):
        TokenStore(tmp_path / "1")


def test_a_store_without_texts_is_written_and_hashed_as_before_there_were_any(tmp_path):
    shard = write_texts(tmp_path / "s", [None])
    utterance = {"name": "u0", "num_frames": 4, "num_samples": 2500}
    assert json.loads((tmp_path / "s/shard-00000.json").read_text())["utterances"] == [utterance]
    assert shard.index_sha256 == hashlib.sha256(json.dumps([utterance]).encode()).hexdigest()
    assert json.loads((tmp_path / "s" / HEADER).read_text())["format"] == 1
    write_texts(tmp_path / "t", ["a"])  # which an older codeclm cannot read, and now says so
    assert json.loads((tmp_path / "t" / HEADER).read_text())["format"] == 2


def test_verify_names_the_shard_with_one_flipped_bit(tmp_path):
    write_store(tmp_path / "s")
    flip_bit(tmp_path / "s/shard-00002.bin", 40)
    with pytest.raises(ValueError, match="shard-00002"):
        TokenStore(tmp_path / "s").verify()


def test_a_changed_name_or_length_in_an_index_is_refused(tmp_path):
    write_store(tmp_path / "s")
    path = tmp_path / "s/shard-00000.json"
    path.write_text(path.read_text().replace('"0/1"', '"0/7"'))
    with pytest.raises(ValueError, match="shard-00000.json"):
        TokenStore(tmp_path / "s")


def test_a_truncated_shard_is_refused_when_opened(tmp_path):
    write_store(tmp_path / "s")
    path = tmp_path / "s/shard-00000.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"shard-00000.bin: is cut off.*34 of 36 bytes"):
        TokenStore(tmp_path / "s")


def test_an_unfinished_store_is_refused(tmp_path):
    write_store(tmp_path / "s", commit=False)
    for folder in (tmp_path / "s", tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match="not finished or not a token store.*run codeclm prepare again"):
            TokenStore(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header | {"format": 3}, "newer codeclm"),
        (lambda header: {k: v for k, v in header.items() if k != "format"}, "not the header"),
        (lambda header: header | {"codec": {}}, "does not describe"),
        (lambda header: header | {"data_hash": "0" * 64}, "data_hash"),
        (lambda header: [], "not the header"),
    ],
)
def test_a_wrong_header_is_refused_in_one_line(tmp_path, change, message):
    write_store(tmp_path / "s")
    path = tmp_path / "s" / HEADER
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message) as caught:
        TokenStore(tmp_path / "s")
    assert "\n" not in str(caught.value)


def test_another_codec_is_refused_with_both_fingerprints(tmp_path):
    write_store(tmp_path / "s")
    store = TokenStore(tmp_path / "s")
    store.require_codec("f" * 64, "tiny")
    with pytest.raises(ValueError, match=rf"'tiny' \({'f' * 12}\), not of 'mimi' \({'a' * 12}\)"):
        store.require_codec("a" * 64, "mimi")


def test_data_hash_depends_on_the_codes_only(tmp_path):
    write_store(tmp_path / "a")
    write_store(tmp_path / "b")
    rng = np.random.default_rng(1)
    (tmp_path / "c").mkdir()
    shard = write_shard(tmp_path / "c", 0, [Utterance("0/0", 1, random_codes(rng, 5))], INFO)
    commit_store(tmp_path / "c", INFO, [shard])
    a, b, c = (TokenStore(tmp_path / name).data_hash for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    "codes",
    [np.full((2, 3), 1024), np.full((2, 3), -1), np.zeros((2, 4), int), np.zeros((0, 3), int), np.zeros((2, 3))],
)
def test_codes_that_do_not_fit_the_codec_are_not_written(tmp_path, codes):
    with pytest.raises(ValueError, match="u: codes"):
        write_shard(tmp_path, 0, [Utterance("u", 1, codes)], INFO)
    assert not list(tmp_path.iterdir())


def test_verify_finds_codes_out_of_the_codecs_range(tmp_path):
    (tmp_path / "s").mkdir()
    shard = write_shard(tmp_path / "s", 0, [Utterance("u", 1, np.full((2, 3), 1000))], INFO)
    commit_store(tmp_path / "s", replace(INFO, codebook_size=1000), [shard])
    with pytest.raises(ValueError, match=r"shard-00000.bin: holds code 1000; allowed are 0..999"):
        TokenStore(tmp_path / "s").verify()
