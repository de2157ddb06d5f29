"""data/token_store.py: codes come back as they went in, and damage is found and named."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeclm.data import token_store
from codeclm.data.store_index import HEADER, Rejected, ShardIndex, StoreHeader
from codeclm.data.store_writer import Utterance, commit_store, write_shard
from codeclm.data.token_store import TokenStore
from codeclm.model.codec_reference import CodecReference
from codeclm.train.cli import main

INFO = CodecReference("tiny", "f" * 64, 16_000, 640, num_codebooks=3, codebook_size=1024)
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


def make_older(folder: Path, version: int = 4, checksum: bool = True) -> None:
    """As codeclm wrote the store before there was an index; the oldest ones had no checksum either."""
    path = folder / HEADER
    header = replace(StoreHeader.read(folder), format=version, index=None, sha256="")
    path.write_text((replace(header, sha256=header.checksum) if checksum else header).to_json())
    for index in folder.glob("index-*.arrow"):
        index.unlink()


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


def test_a_store_without_texts_is_hashed_as_before_there_were_any(tmp_path):
    shard = write_texts(tmp_path / "s", [None])
    utterance = {"name": "u0", "num_frames": 4, "num_samples": 2500}
    assert json.loads((tmp_path / "s/shard-00000.json").read_text())["utterances"] == [utterance]
    assert shard.index_sha256 == hashlib.sha256(json.dumps([utterance]).encode()).hexdigest()


def test_a_store_says_who_speaks_and_where_an_utterance_comes_from_and_hashes_neither(tmp_path):
    codes = random_codes(np.random.default_rng(0), 4)
    known = [Utterance("a", 2500, codes, speaker="Ada", source="a.flac"), Utterance("b", 2500, codes)]
    stores = []
    for number, entries in enumerate([known, [replace(entry, speaker=None, source=None) for entry in known]]):
        (tmp_path / str(number)).mkdir()
        shard = write_shard(tmp_path / str(number), 0, entries, INFO)
        assert ShardIndex.read(tmp_path / str(number) / "shard-00000.json") == shard
        commit_store(tmp_path / str(number), INFO, [shard])
        stores.append(TokenStore(tmp_path / str(number)))
    store, other = stores
    assert [(store.speaker(i), store.source(i)) for i in range(2)] == [("Ada", "a.flac"), (None, None)]
    assert store.data_hash == other.data_hash and other.speaker(0) is None


def test_the_index_is_a_dataset_of_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "s"
    write_store(folder)
    store = TokenStore(folder)
    (path,) = folder.glob("index-*.arrow")
    for dataset in (store.dataset(), datasets.Dataset.from_file(str(path))):
        assert list(dataset["name"]) == list(store.names) and dataset.num_rows == 5
        assert dataset[3] == {
            "name": "2/1", "shard": 2, "offset": 7, "num_frames": 2, "num_samples": 1270, "speaker": None,
            "source": None, "text": None, "goes_on": False, "recording": int(store.recordings[3]),
        }  # fmt: skip


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_older_stores_open_as_the_same(tmp_path, version):
    written = write_store(tmp_path / "s")
    store = TokenStore(tmp_path / "s")
    make_older(tmp_path / "s", version)
    older = TokenStore(tmp_path / "s")
    older.verify()
    assert older.data_hash == store.data_hash and older.table.equals(store.table)
    for i, codes in enumerate(written):
        np.testing.assert_array_equal(older.codes(i), codes)


@pytest.mark.parametrize("version, checksum", [(2, False), (4, True)])
def test_an_older_store_becomes_one_of_today_and_stays_as_it_is(tmp_path, version, checksum, capsys):
    old, new = tmp_path / "old", tmp_path / "new"
    write_pieces(old, [False] * 3, ["a#0", "a#1", "c"])
    make_older(old, version, checksum)
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    main(["convert", "store", str(old), str(new)])
    older, store = TokenStore(old), TokenStore(new)
    store.verify()
    assert store.table.equals(older.table) and StoreHeader.read(new).format == 5
    assert store.ends(0) == checksum  # the oldest told by names which pieces go on
    assert all((store.codes(i) == older.codes(i)).all() for i in range(3))
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    assert (old / "shard-00000.bin").samefile(new / "shard-00000.bin")
    with pytest.raises(SystemExit):
        main(["convert", "store", str(old), str(new)])
    assert "exists already; give a new folder" in capsys.readouterr().err


def test_a_file_that_was_found_right_is_not_read_again_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "s"
    folder.mkdir()
    codes = random_codes(np.random.default_rng(0), 200_000)  # 1.2 MB
    commit_store(folder, INFO, [write_shard(folder, 0, [Utterance("u", 1, codes)], INFO)])
    path = folder / "shard-00000.bin"
    read: list[Path] = []
    blocks = token_store._blocks
    monkeypatch.setattr(token_store, "_blocks", lambda path: read.append(path) or blocks(path))
    TokenStore(folder).verify()
    TokenStore(folder).verify()
    assert len(read) == 2  # so young a file may change unseen
    hour_ago = path.stat().st_mtime_ns - 3600 * 10**9
    os.utime(path, ns=(hour_ago, hour_ago))
    for _ in range(3):
        TokenStore(folder).verify()
    assert len(read) == 3
    TokenStore(folder).verify(full=True)
    assert len(read) == 4
    flip_bit(path, 1_000_000)
    with pytest.raises(ValueError, match="shard-00000.bin: does not have the content"):
        TokenStore(folder).verify()
    flip_bit(path, 1_000_000)
    os.utime(path, ns=(hour_ago, hour_ago))
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/cache")  # where nothing can be written
    TokenStore(folder).verify()
    assert len(read) == 6


def test_a_flipped_bit_of_the_index_is_found_when_the_store_is_opened(tmp_path):
    write_store(tmp_path / "s")
    (path,) = (tmp_path / "s").glob("index-*.arrow")
    whole = path.read_bytes()
    for byte in range(0, len(whole), 50):
        flip_bit(path, byte)
        with pytest.raises(ValueError, match=f"{path.name}: does not have the content"):
            TokenStore(tmp_path / "s")
        path.write_bytes(whole)
    path.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=f"{path.name}: is cut off"):
        TokenStore(tmp_path / "s")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path.name}: is missing; run codeclm prepare again"):
        TokenStore(tmp_path / "s")


def test_verify_names_the_shard_with_one_flipped_bit(tmp_path):
    write_store(tmp_path / "s")
    flip_bit(tmp_path / "s/shard-00002.bin", 40)
    with pytest.raises(ValueError, match="shard-00002"):
        TokenStore(tmp_path / "s").verify()


def test_a_changed_name_or_length_in_an_older_store_is_refused(tmp_path):
    write_store(tmp_path / "s")
    make_older(tmp_path / "s")
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
        (lambda header: header | {"format": 6}, "store.json: has format 6, .* up to 5; install a newer codeclm$"),
        (lambda header: header | {"format": 4, "sha256": ""}, "has format 4, and its index does not fit that"),
        (
            lambda header: header | {"index": header["index"] | {"name": "../x"}, "sha256": ""},
            "has an index with a name that no index has",
        ),
        (lambda header: {k: v for k, v in header.items() if k != "format"}, "'format' is missing; run codeclm prepare"),
        (
            lambda header: header | {"codec": {}},
            "codec 'spectral' has sample_rate 0; .* run codeclm prepare again",
        ),
        (lambda header: header | {"data_hash": "0" * 64}, "store.json: does not have the content it was written with"),
        (
            lambda header: header | {"data_hash": "0" * 64, "sha256": ""},
            "data_hash does not fit the shards",
        ),
        (lambda header: [], "store.json: holds a list"),
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
    store.require_codec(INFO)
    with pytest.raises(ValueError, match=rf"'tiny' \({'f' * 12}\), not of 'mimi' \({'a' * 12}\)"):
        store.require_codec(replace(INFO, fingerprint="a" * 64, name="mimi"))
    fewer = replace(INFO, fingerprint="b" * 64, num_codebooks=2)
    with pytest.raises(
        ValueError, match=rf"\({'f' * 12}, num_codebooks 3\), not of 'tiny' \({'b' * 12}, num_codebooks 2"
    ):
        store.require_codec(fewer)


FACTS = {"sample_rate": 26_000, "hop_length": 320, "num_codebooks": 1, "codebook_size": 4096}


@pytest.mark.parametrize("fact", FACTS)
@pytest.mark.parametrize("checksum", [True, False])
def test_a_changed_fact_of_the_codec_is_refused_with_or_without_a_checksum(tmp_path, fact, checksum):
    write_store(tmp_path / "s")
    path = tmp_path / "s" / HEADER
    header = json.loads(path.read_text())
    header["codec"][fact] = FACTS[fact]
    if not checksum:  # a store of before there was one
        del header["sha256"]
    path.write_text(json.dumps(header))
    reason = rf"says {fact} {FACTS[fact]}, but its codec 'tiny' has \d+|content it was written with|is cut off"
    with pytest.raises(ValueError, match=f"{reason}.*run codeclm prepare again") as caught:
        TokenStore(tmp_path / "s").require_codec(INFO)
    assert "\n" not in str(caught.value)


def test_a_store_of_before_there_was_a_checksum_opens_with_the_same_hash(tmp_path):
    write_store(tmp_path / "s")
    before = TokenStore(tmp_path / "s").data_hash
    make_older(tmp_path / "s", 1, checksum=False)
    store = TokenStore(tmp_path / "s")
    store.require_codec(INFO)
    assert store.data_hash == before


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(), st.text(max_size=3), st.just("1024"),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)  # fmt: skip


def places(values, path=()) -> list[tuple]:
    """Every place in a JSON value, the value itself not."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [place for key, value in items for place in ((*path, key), *places(value, (*path, key)))]


def mutated(values, data: st.DataObject):
    """One value replaced or removed, or one added to an object."""
    *path, key = data.draw(st.sampled_from(places(values)))
    parent = values
    for step in path:
        parent = parent[step]
    action = data.draw(st.sampled_from(["replace", "remove", "add", "double"]))
    if action == "remove":
        del parent[key]
    elif action == "add" and isinstance(parent, dict):
        parent[data.draw(st.text(max_size=5))] = data.draw(JUNK)
    elif action == "double" and isinstance(parent[key], int):
        parent[key] *= 2
    else:
        parent[key] = data.draw(JUNK)
    return values


@pytest.fixture(scope="module", params=["today's", "older"])
def fuzzed(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "s"
    write_store(folder)
    if request.param == "older":
        make_older(folder)
    return folder


@pytest.mark.parametrize("name", [HEADER, "shard-00002.json"])
@pytest.mark.parametrize("checksum", [True, False])
@settings(max_examples=100)
@given(data=st.data())
def test_no_mutation_of_a_json_file_changes_a_fact_in_silence(fuzzed, name, checksum, data):
    whole = {path: path.read_bytes() for path in fuzzed.glob("*.json")}
    true = TokenStore(fuzzed)
    header = json.loads(whole[fuzzed / HEADER])
    if not checksum:
        del header["sha256"]
    try:
        (fuzzed / HEADER).write_text(json.dumps(header))
        values = header if name == HEADER else json.loads(whole[fuzzed / name])
        (fuzzed / name).write_text(json.dumps(mutated(values, data)))
        try:
            store = TokenStore(fuzzed)
            store.verify()
            store.require_codec(INFO)
        except (ValueError, FileNotFoundError) as error:
            assert "\n" not in str(error) and len(str(error)) < 500
            return
        assert replace(store.codec, name=INFO.name) == INFO
        assert store.table.equals(true.table) and store.data_hash == true.data_hash
    finally:
        for path, content in whole.items():
            path.write_bytes(content)


def write_pieces(folder: Path, goes_on: list[bool], names: list[str]) -> TokenStore:
    folder.mkdir()
    codes = random_codes(np.random.default_rng(0), 4)
    entries = [Utterance(name, 2560, codes, goes_on=more) for name, more in zip(names, goes_on, strict=True)]
    commit_store(folder, INFO, [write_shard(folder, 0, [*entries, Rejected("b#1", "silent")], INFO)])
    return TokenStore(folder)


def test_a_piece_that_goes_on_has_no_end(tmp_path):
    names = ["a#0", "a#1", "c"]
    store = write_pieces(tmp_path / "s", [True, False, False], names)
    assert [store.ends(i) for i in range(3)] == [False, True, True]
    assert store.data_hash != write_pieces(tmp_path / "t", [False] * 3, names).data_hash
    with pytest.raises(IndexError):
        store.ends(3)


def test_older_stores_tell_by_names_which_pieces_go_on(tmp_path):
    names = ["a#0", "a#1", "b#0", "c", "d#0~0", "d#0~1", "d#1~0", "e#0", "x#9", "x#10"]
    ends = [False, True, False, True, False, False, True, True, False, True]  # b#1 was rejected
    store = write_pieces(tmp_path / "s", [False] * len(names), names)
    assert all(store.ends(i) for i in range(len(names)))  # a file may be called so
    make_older(tmp_path / "s", 2, checksum=False)
    store = TokenStore(tmp_path / "s")
    assert [store.ends(i) for i in range(len(names))] == ends


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


MANY = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
from codeclm.data.token_store import TokenStore
store = TokenStore(sys.argv[1])
store.verify()
print(sum(int(store.codes(i).sum()) for i in range(len(store))))
"""


def test_a_store_may_have_more_shards_than_a_process_may_have_files_open(tmp_path):
    """`ulimit -n` is 1,024 on most machines; here 100."""
    rng, folder = np.random.default_rng(0), tmp_path / "s"
    folder.mkdir()
    codes = [random_codes(rng, 3) for _ in range(300)]
    commit_store(
        folder, INFO, [write_shard(folder, i, [Utterance(f"u{i}", 1900, c)], INFO) for i, c in enumerate(codes)]
    )
    read = subprocess.run([sys.executable, "-c", MANY, str(folder)], capture_output=True, text=True)
    assert read.returncode == 0 and int(read.stdout) == sum(int(c.sum()) for c in codes), read.stderr


def test_codes_are_read_from_a_folder_whose_name_is_not_utf8_and_cannot_be_changed(tmp_path):
    for folder in (tmp_path / "s", tmp_path / os.fsdecode(b"caf\xe9")):
        written = write_store(folder)
        store = TokenStore(folder)
        np.testing.assert_array_equal(store.codes(2), written[2])
        with pytest.raises(ValueError, match="read-only"):
            store.codes(2)[0] = 0


@pytest.mark.parametrize("name", ["../other", "shard-", "shard-00001", 3])
def test_a_store_has_no_shard_that_lies_elsewhere_or_counts_twice(tmp_path, name):
    write_store(tmp_path / "s")
    path = tmp_path / "s" / HEADER
    header = json.loads(path.read_text())
    header["shards"][0]["name"] = name
    del header["sha256"]
    path.write_text(json.dumps(header))
    with pytest.raises(ValueError, match="run codeclm prepare again"):
        TokenStore(tmp_path / "s")
