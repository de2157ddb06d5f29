"""data/encode_files.py: what one audio file becomes, with its transcript, or why it is skipped."""

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from codeclm.data.audio import AudioError
from codeclm.data.encode_files import encode_sources, encoder, read_transcript
from codeclm.data.make_shards import HoursBar
from codeclm.data.pieces import pieces_of, quietest_cut
from codeclm.data.preparation import PrepareConfig, prepare
from codeclm.data.sources import find_sources
from codeclm.data.sources.folder import utterance_names
from codeclm.data.sources.source import file_stamp
from codeclm.data.store_index import Rejected
from codeclm.data.store_writer import Utterance
from codeclm.data.token_store import TokenStore
from codeclm.inference.codec.random_codecs import save_tiny
from codeclm.model.codecs import SpectralCodec, SpectralConfig, load_codec

from .test_prepare import RATE, TINY, voice


@pytest.fixture(scope="module")
def codec() -> SpectralCodec:
    torch.manual_seed(0)
    return SpectralCodec(SpectralConfig(**TINY)).eval().requires_grad_(False)


def write_bad_files(folder: Path) -> dict[str, str]:
    """One file of each bad kind -> {name: reason}."""
    (folder / "zero.wav").touch()
    (folder / "text.wav").write_text("hello")
    soundfile.write(folder / "header.wav", np.zeros(0), RATE)
    soundfile.write(folder / "cut.wav", voice(0), RATE)
    (folder / "cut.wav").write_bytes((folder / "cut.wav").read_bytes()[:3_000])
    nan = voice(0)
    nan[100] = np.nan
    soundfile.write(folder / "nan.wav", nan, RATE, subtype="FLOAT")
    soundfile.write(folder / "short.wav", voice(0, 0.05), RATE)
    soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE)
    (folder / "nowhere.wav").symlink_to(folder / "absent")
    return {
        "zero": "empty",
        "text": "cannot be read as audio",
        "header": "no samples",
        "cut": "cut off",
        "nan": "NaN",
        "short": "too short",
        "silent": "silent",
        "nowhere": "no such file",
    }


def test_each_bad_file_is_skipped_named_and_counted(codec, tmp_path, caplog):
    caplog.set_level("INFO")
    folder, out = tmp_path / "audio", tmp_path / "tokens"
    folder.mkdir()
    bad = write_bad_files(folder)
    soundfile.write(folder / "good-8k.wav", voice(1), RATE)
    soundfile.write(folder / "good-stereo.wav", np.stack([voice(1, 0.5, 22_050)] * 2, axis=1), 22_050)
    soundfile.write(folder / "good-8bit.wav", voice(1), RATE, subtype="PCM_U8")
    summary = prepare(folder, out, codec)
    assert (summary.num_files, summary.num_utterances, summary.num_rejected) == (11, 3, 8)
    assert summary.hours == pytest.approx(1.5 / 3600, rel=1e-3) and summary.num_frames == 3 * 25
    assert "8 rejected" in str(summary) and str(out / "rejected.jsonl") in str(summary)
    listed = {line["name"]: line["reason"] for line in map(json.loads, (out / "rejected.jsonl").open())}
    assert set(listed) == set(bad) and all(bad[name] in listed[name] for name in bad)
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == len(bad) and all(any(f"{name}.wav: " in line for line in logged) for name in bad)
    assert TokenStore(out).names == ["good-8bit", "good-8k", "good-stereo"]


def test_no_good_file_at_all_says_why_and_leaves_nothing(codec, tmp_path):
    (tmp_path / "audio").mkdir()
    bad = write_bad_files(tmp_path / "audio")
    soundfile.write(tmp_path / "audio/silent2.wav", np.zeros(RATE), RATE)
    reasons = (
        rf"none of {len(bad) + 1} audio files can be used: silent \(2, such as silent\), .*no samples \(1, such as"
    )
    with pytest.raises(ValueError, match=reasons) as caught:
        prepare(tmp_path / "audio", tmp_path / "new/tokens", codec)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["audio"]  # nothing is left of it


def test_a_long_file_becomes_pieces_that_cover_it(codec, tmp_path):
    samples = voice(0, 140.05)
    samples[70 * RATE :] = 0  # the whole second piece; the scrap of 0.05 s is no third one
    soundfile.write(tmp_path / "long.wav", samples, RATE, subtype="FLOAT")
    samples = np.concatenate([samples[: 70 * RATE], voice(1, 130)])
    soundfile.write(tmp_path / "longer.wav", samples, RATE, subtype="FLOAT")
    summary = prepare(tmp_path, tmp_path / "tokens", codec, PrepareConfig(max_utterance_s=70))
    store = TokenStore(tmp_path / "tokens")
    assert store.names == ["long#0", "longer#0", "longer#1", "longer#2", "longer#3"]
    assert [store.ends(i) for i in range(5)] == [False, False, False, False, True]  # silence comes after long#0
    assert store.num_samples[0] == 70 * RATE and store.num_samples[1:].sum() == 200 * RATE
    assert all(56 * RATE <= length <= 70 * RATE and length % 80 == 0 for length in store.num_samples[1:-1])
    assert summary.num_rejected == 1 and '"long#1"' in (tmp_path / "tokens/rejected.jsonl").read_text()
    start, stop = store.num_samples[1], store.num_samples[1] + store.num_samples[2]
    whole = codec.encode(torch.from_numpy(samples[start:stop])[None, None])[0].T.numpy()
    assert (store.codes(2) == whole).mean() > 0.999  # streamed in pushes; a near-tie may round the other way


def test_a_long_file_is_cut_in_a_pause(codec, tmp_path):
    samples = voice(0, 25)
    pauses = [(8.5, 8.6), (17.3, 17.4)]  # in the last fifth before 10 s, and before 10 s after the first cut
    for start, stop in pauses:
        samples[round(start * RATE) : round(stop * RATE)] *= 0.01
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    prepare(tmp_path / "a.wav", tmp_path / "tokens", codec, PrepareConfig(max_utterance_s=10))
    store = TokenStore(tmp_path / "tokens")
    cuts = np.cumsum(store.num_samples) / RATE
    assert len(store) == 3 and cuts[-1] == 25
    assert all(start <= cut <= stop for cut, (start, stop) in zip(cuts, pauses, strict=False))


def test_where_it_is_cut_does_not_depend_on_the_blocks_it_is_read_in():
    samples = voice(3, 12)
    found = [
        [len(piece) for piece in pieces_of(np.array_split(samples, parts), 2 * RATE, 800, 80, RATE)]
        for parts in (1, 7, 50)
    ]
    assert found[0] == found[1] == found[2] and len(found[0]) >= 6 and sum(found[0]) == len(samples)
    assert all(1.6 * RATE <= length <= 2 * RATE and length % 80 == 0 for length in found[0][:-1])
    assert quietest_cut(np.zeros(3 * RATE, np.float32), 2 * RATE, 80, RATE) == 2 * RATE  # the last of equals


def test_shards_of_before_the_quiet_cuts_are_kept_unless_something_in_them_was_cut(codec, tmp_path):
    soundfile.write(tmp_path / "a.wav", voice(0), RATE)
    soundfile.write(tmp_path / "b.wav", voice(1, 2.5), RATE)
    config = PrepareConfig(files_per_shard=1, max_utterance_s=1.0, copies=2)
    out = tmp_path / "tokens"
    prepare(tmp_path, out, codec, config)
    for name in "ab":
        made_from = [codec.fingerprint, 1.0, 2, [[name, *file_stamp(tmp_path / f"{name}.wav")]]]
        key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
        (index,) = (path for path in out.glob("shard-*.json") if f'"name": "{name}' in path.read_text())
        index.with_suffix(".bin").rename(out / f"shard-0000{'ab'.index(name)}.bin")
        (out / f"shard-0000{'ab'.index(name)}.json").write_text(
            json.dumps(json.loads(index.read_text()) | {"key": key})
        )
        index.unlink()
    summary = prepare(tmp_path, out, codec, config)
    assert summary.num_encoded == 1
    assert prepare(tmp_path, out, codec, config).num_encoded == 0


def test_copies_are_the_same_speech_from_later_and_at_other_levels(codec, tmp_path):
    samples = voice(0, 2.0)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    prepare(tmp_path / "a.wav", tmp_path / "tokens", codec, PrepareConfig(copies=4))
    store = TokenStore(tmp_path / "tokens")
    assert store.names == ["a~0", "a~1", "a~2", "a~3"]
    later = [len(samples) - round(copy * codec.hop_length / 4) for copy in range(4)]
    assert store.num_samples.tolist() == later
    plain = codec.encode(torch.from_numpy(samples)[None, None])[0].T.numpy()
    assert (store.codes(0) == plain).all()
    for copy in range(1, 4):
        length = min(len(plain), len(store.codes(copy)))
        assert (store.codes(copy)[:length] != plain[:length]).mean() > 0.05


@pytest.fixture
def spoken(tmp_path) -> Path:
    """Four files with transcripts and one without."""
    folder = tmp_path / "spoken"
    (folder / "sub").mkdir(parents=True)
    for i, name in enumerate(["a", "b", "c", "d", "sub/a"]):
        soundfile.write(folder / f"{name}.wav", voice(i), RATE)
    (folder / "a.txt").write_bytes("\ufeffOù  est-il?\r\n".encode())
    (folder / "b.txt").write_text("b")
    (folder / "d.txt").write_text(" \n")
    (folder / "sub/a.txt").write_text("one\ntwo\t three\n")
    (folder / "other.txt").write_bytes(b"\xff no audio's transcript")
    return folder


def test_transcripts_beside_the_audio_go_into_the_store(spoken, codec, tmp_path):
    summary = prepare(spoken, tmp_path / "tokens", codec, PrepareConfig(files_per_shard=2))
    store = TokenStore(tmp_path / "tokens")
    assert {name: store.text(i) for i, name in enumerate(store.names)} == {
        "a": "Où est-il?", "b": "b", "c": None, "d": None, "sub/a": "one two three"
    }  # fmt: skip
    assert "5 utterances (3 with text)" in str(summary)


def test_a_changed_new_or_removed_transcript_is_noticed_in_its_shard_only(spoken, codec, tmp_path, monkeypatch):
    config, out = PrepareConfig(files_per_shard=2), tmp_path / "tokens"
    prepare(spoken, out, codec, config)
    encoded = []
    encode = codec.encode
    monkeypatch.setattr(codec, "encode", lambda batch: encoded.append(1) or encode(batch))

    def texts() -> list[str | None]:
        encoded.clear()
        prepare(spoken, out, codec, config)
        store = TokenStore(out)
        return [store.text(i) for i in range(len(store))]

    assert texts() == ["Où est-il?", "b", None, None, "one two three"] and len(encoded) == 0
    (spoken / "b.txt").write_text("changed")
    assert texts()[1] == "changed" and len(encoded) == 2
    (spoken / "c.txt").write_text("new")
    assert texts()[2] == "new" and len(encoded) == 2
    (spoken / "sub/a.txt").unlink()
    assert texts()[4] is None and len(encoded) == 1


def test_copies_have_the_text_and_pieces_of_a_cut_file_have_none(codec, tmp_path):
    soundfile.write(tmp_path / "a.wav", voice(0, 2.0), RATE)
    soundfile.write(tmp_path / "long.wav", voice(1, 2.0), RATE)
    for name in ("a", "long"):
        (tmp_path / f"{name}.txt").write_text("what is said")
    prepare(tmp_path / "a.wav", tmp_path / "copies", codec, PrepareConfig(copies=2))
    store = TokenStore(tmp_path / "copies")
    assert [store.text(i) for i in range(2)] == ["what is said"] * 2
    prepare(tmp_path / "long.wav", tmp_path / "pieces", codec, PrepareConfig(max_utterance_s=1.0))
    store = TokenStore(tmp_path / "pieces")
    assert [store.text(i) for i in range(len(store))] == [None] * len(store) and len(store) >= 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"caf\xe9", r"is not UTF-8 text \(byte 3\); convert or remove it"), ("ab".encode("utf-16-le"), "NUL bytes")],
)
def test_a_file_whose_transcript_is_no_utf8_is_rejected_by_name(spoken, codec, tmp_path, data, reason):
    (spoken / "b.txt").write_bytes(data)
    summary = prepare(spoken, tmp_path / "tokens", codec)
    assert summary.num_rejected == 1 and "b" not in TokenStore(tmp_path / "tokens").names
    with pytest.raises(AudioError, match=rf"b.wav: its transcript b.txt.*{reason}"):
        read_transcript(spoken / "b.wav")


# --- several at once, as on a GPU ---


@pytest.mark.parametrize("kind", ["spectral", "encodec 24 kHz", "mimi", "dac"])
def test_codes_of_batches_by_length_are_those_of_one_by_one(kind, spoken, tmp_path, monkeypatch):
    coder = load_codec(save_tiny(kind, tmp_path / "codec")) if kind != "spectral" else load_codec("spectral")
    for i in range(9):
        soundfile.write(spoken / f"e{i}.wav", voice(i, 0.3 + 0.17 * (i * 5 % 9)), RATE)
    soundfile.write(spoken / "long.wav", voice(20, 5.3), RATE)
    soundfile.write(spoken / "silent.wav", np.zeros(RATE), RATE)
    (spoken / "broken.wav").write_text("no audio")
    (spoken / "b.txt").write_bytes(b"\xff")
    monkeypatch.setattr("codeclm.data.encode_files.HELD_S", 6.0)  # so that some wait and some do not
    config, sources = PrepareConfig(max_utterance_s=2.0, copies=2), find_sources(spoken).sources
    alone = list(encode_sources(sources, coder, config))
    batches, encode = [], coder.encode
    monkeypatch.setattr(coder, "encode", lambda audio, *rest: batches.append(audio.shape[0]) or encode(audio, *rest))
    together = list(encode_sources(sources, coder, config, batch_s=3.0, threads=2))
    assert max(batches) > 2 and len(batches) > 3
    assert len(alone) == len(together) == len(sources)
    differing, total = 0, 0
    for one, other in zip(alone, together, strict=True):
        assert [entry.name for entry in one] == [entry.name for entry in other]
        for mine, theirs in zip(one, other, strict=True):
            if isinstance(mine, Rejected):
                assert mine == theirs
                continue
            assert isinstance(theirs, Utterance) and mine.entry == theirs.entry
            differing += int((mine.codes != theirs.codes).sum())
            total += mine.codes.size
    # networks of others may round a near tie the other way in a batch; ours decides them exactly
    assert differing == 0 if kind == "spectral" else differing < 0.002 * total


def test_a_store_made_in_batches_has_the_same_bytes(codec, spoken, tmp_path):
    prepare(spoken, tmp_path / "alone", codec, files_per_shard=3)
    prepare(spoken, tmp_path / "together", codec, files_per_shard=3, batch_s=2.0)
    for path in (tmp_path / "alone").iterdir():
        assert path.name == ".lock" or (tmp_path / "together" / path.name).read_bytes() == path.read_bytes()


def test_workers_are_as_many_as_there_is_work_for(codec, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    made = []
    monkeypatch.setattr("codeclm.data.encode_files.ProcessPoolExecutor", lambda count, *rest: made.append(count))
    for num_workers, num_sources, num_bytes in ((0, 20, 0), (1, 1000, 10**9)):
        with encoder(codec, PrepareConfig(num_workers=num_workers), num_sources, num_bytes):
            assert not made
    for num_workers, num_sources, num_bytes in ((0, 120, 0), (0, 20, 100 * 10**6), (0, 2, 10**9), (3, 5, 0)):
        with (
            pytest.raises(AttributeError),
            encoder(codec, PrepareConfig(num_workers=num_workers), num_sources, num_bytes),
        ):
            pass
    assert made == [2, 3, 2, 3]


def test_progress_is_told_in_hours(capfd):
    with HoursBar(1000, progress=True) as bar:
        bar.add(250, 0.5)
        assert re.match(r"prepare: 0.50 of about 2.00 h, \d+ h/h +25%\|.*\| \[\d+:\d+<", str(bar.bar))


def test_names_are_paths_without_suffix_unless_two_would_collide(tmp_path):
    files = [tmp_path / name for name in ("a.flac", "a.wav", "a.wav.ogg", "sub/b.wav", "sub/c.d.wav")]
    names = utterance_names(tmp_path, files)
    assert names == ["a.flac", "a.wav", "a.wav.ogg", "sub/b", "sub/c.d"]
