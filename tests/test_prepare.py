"""data/preparation.py: the same bytes whatever happens, and every bad file skipped by name."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from filelock import FileLock

from codeclm.data.audio import AudioError, find_audio
from codeclm.data.encode_files import pieces_of, quietest_cut, read_transcript
from codeclm.data.plan import plan_shards, utterance_names
from codeclm.data.preparation import PrepareConfig, open_or_prepare, prepare
from codeclm.data.token_store import TokenStore
from codeclm.model.codecs import SpectralCodec, SpectralConfig
from codeclm.model.shapes import CodecReference

RATE = 8_000
TINY = {"sample_rate": 8_000, "trunk_hop": 80, "window": 160, "encoder_dim": 16, "dim": 16, "encoder_layers": 1}
TINY |= {"latent_layers": 1, "bottleneck_layers": 1, "decoder_layers": 1, "num_codebooks": 3, "codebook_size": 32}
SLOW_RUN = """
import sys, time, torch
from pathlib import Path
from codeclm.data.preparation import PrepareConfig, prepare
from codeclm.model.codecs import SpectralCodec, SpectralConfig
torch.manual_seed(0)
codec = SpectralCodec(SpectralConfig(**TINY)).eval().requires_grad_(False)
encode = codec.encode
codec.encode = lambda audio: (time.sleep(0.1), encode(audio))[1]
prepare(Path(sys.argv[1]), Path(sys.argv[2]), codec, PrepareConfig(files_per_shard=2))
"""


DYING_RUN = """
import os, sys
from pathlib import Path
from codeclm.data import encode_files
from codeclm.data.preparation import PrepareConfig, prepare

def die(path, *rest):
    os._exit(9)

encode_files.encode_file = die  # a worker process runs this file, too
if __name__ == "__main__":
    import torch
    from codeclm.model.codecs import SpectralCodec, SpectralConfig
    torch.manual_seed(0)
    os.sched_getaffinity = lambda _: {0, 1}
    try:
        codec = SpectralCodec(SpectralConfig(**TINY))
        prepare(Path(sys.argv[1]), Path(sys.argv[2]), codec, PrepareConfig(num_workers=2))
    except ChildProcessError as error:
        print(error)
        sys.exit(3)
"""


@pytest.fixture(scope="module")
def codec() -> SpectralCodec:
    torch.manual_seed(0)
    return SpectralCodec(SpectralConfig(**TINY)).eval().requires_grad_(False)


def voice(seed: int, duration_s: float = 0.5, rate: int = RATE) -> np.ndarray:
    """Coloured noise: every frame has other codes."""
    noise = np.random.default_rng(seed).standard_normal(round(duration_s * rate))
    return (0.1 * np.convolve(noise, [1, 0.9, 0.5, 0.2], "same")).astype(np.float32)


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    """Nine good files, two with transcripts, and a silent one."""
    folder = tmp_path_factory.mktemp("audio")
    for i in range(9):
        soundfile.write(folder / f"{i}.wav", voice(i, 0.3 + 0.1 * i), RATE)
    soundfile.write(folder / "5-silent.wav", np.zeros(RATE), RATE)
    (folder / "2.txt").write_text("two")
    (folder / "7.txt").write_text("seven\n")
    return folder


@pytest.fixture(scope="module")
def unbroken(audio, codec, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "tokens"
    prepare(audio, out, codec, PrepareConfig(files_per_shard=2))
    return out


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


def test_codes_are_those_of_the_codec(audio, codec, unbroken):
    store = TokenStore(unbroken)
    store.verify()
    store.require_codec(codec)
    assert store.names == [str(i) for i in range(9)]
    assert [store.text(i) for i in range(9)] == [None, None, "two", None, None, None, None, "seven", None]
    for i in range(9):
        samples = soundfile.read(audio / f"{i}.wav", dtype="float32")[0]
        expected = codec.encode(torch.from_numpy(samples)[None, None])[0]
        np.testing.assert_array_equal(store.codes(i), expected.T.numpy())
        assert store.num_samples[i] == len(samples)


def test_a_killed_and_resumed_run_gives_the_bytes_of_an_unbroken_one(audio, codec, unbroken, tmp_path, monkeypatch):
    out = tmp_path / "tokens"
    process = subprocess.Popen([sys.executable, "-c", f"TINY = {TINY}\n{SLOW_RUN}", str(audio), str(out)])
    deadline = time.monotonic() + 120
    while not (out / "shard-00001.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "store.json").exists()
    encoded = []
    encode = codec.encode
    monkeypatch.setattr(codec, "encode", lambda batch: encoded.append(1) or encode(batch))
    prepare(audio, out, codec, PrepareConfig(files_per_shard=2))
    assert content(out) == content(unbroken)
    assert 0 < len(encoded) <= 5  # four files of the first two shards were not done again


@pytest.mark.slow
def test_one_and_two_workers_give_the_same_bytes(audio, codec, unbroken, tmp_path):
    prepare(audio, tmp_path / "tokens", codec, PrepareConfig(files_per_shard=2, num_workers=2))
    assert content(tmp_path / "tokens") == content(unbroken)


def test_a_damaged_shard_is_made_again_and_a_changed_file_noticed(audio, codec, unbroken, tmp_path):
    config, out = PrepareConfig(files_per_shard=2), tmp_path / "tokens"
    prepare(audio, out, codec, config)
    shard = out / "shard-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    prepare(audio, out, codec, config)
    assert content(out) == content(unbroken)
    few = tmp_path / "few"
    few.mkdir()
    soundfile.write(few / "0.wav", voice(99), RATE)
    prepare(few, out, codec, config)
    assert TokenStore(out).names == ["0"] and not (out / "shard-00001.bin").exists()


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


def test_shards_of_before_the_quiet_cuts_are_kept_unless_something_in_them_was_cut(codec, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", voice(0), RATE)
    soundfile.write(tmp_path / "b.wav", voice(1, 2.5), RATE)
    config = PrepareConfig(files_per_shard=1, max_utterance_s=1.0, copies=2)
    out = tmp_path / "tokens"
    with monkeypatch.context() as patch:
        patch.setattr("codeclm.data.plan.QUIET_CUTS", "as before")
        prepare(tmp_path, out, codec, config)
    for number, shard in enumerate(plan_shards(tmp_path, find_audio(tmp_path), CodecReference.of(codec), config)):
        path = out / f"shard-{number:05d}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"key": shard.key_before_cuts}))
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


def test_names_are_paths_without_suffix_unless_two_would_collide(tmp_path):
    files = [tmp_path / name for name in ("a.flac", "a.wav", "a.wav.ogg", "sub/b.wav", "sub/c.d.wav")]
    names = utterance_names(tmp_path, files)
    assert names == ["a.flac", "a.wav", "a.wav.ogg", "sub/b", "sub/c.d"]


def test_a_store_of_another_codec_is_refused_and_left_alone(audio, unbroken):
    before = content(unbroken)
    other = SpectralCodec(SpectralConfig(encoder_dim=16, dim=16, encoder_layers=1, decoder_layers=1))
    with pytest.raises(ValueError, match=other.fingerprint[:12]):
        prepare(audio, unbroken, other)
    assert content(unbroken) == before


def test_two_prepares_on_one_folder_are_refused(audio, codec, tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(OSError, match="another codeclm prepare"):
        prepare(audio, tmp_path, codec)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(audio, codec, tmp_path, monkeypatch):
    monkeypatch.setattr(codec, "encode", lambda batch: pytest.fail("work was done"))
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file/below", Path("/proc/tokens")):
        with pytest.raises(OSError, match=str(out)) as caught:
            prepare(audio, out, codec)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"files_per_shard": 0}, {"num_workers": 0}, {"max_utterance_s": 0.0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        PrepareConfig(**options)


# --- a second time, and what is told ---


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    found = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    return found | {"": (b"", folder.stat().st_mtime_ns)}


def test_a_finished_store_is_only_read_and_says_so(audio, codec, unbroken, tmp_path):
    out = tmp_path / "tokens"
    shutil.copytree(unbroken, out)
    (out / ".lock").unlink(missing_ok=True)
    before = snapshot(out)
    summary = prepare(audio, out, codec, PrepareConfig(files_per_shard=2))
    assert snapshot(out) == before  # a read-only disk would do
    assert (
        summary.num_encoded == 0 and f"{out}: nothing to do, it holds " in str(summary) and "1 rejected" in str(summary)
    )


def test_a_damaged_header_is_written_again(audio, codec, unbroken, tmp_path, caplog):
    out = tmp_path / "tokens"
    shutil.copytree(unbroken, out)
    path = out / "store.json"
    path.write_text(path.read_text().replace('"sample_rate": 8000', '"sample_rate": 9000'))
    assert prepare(audio, out, codec, PrepareConfig(files_per_shard=2)).num_encoded == 0
    assert content(out) == content(unbroken)
    assert any("does not have the content" in record.getMessage() for record in caplog.records)


def test_an_unfinished_store_and_a_finished_one_are_not_taken_for_audio(audio, codec, unbroken, tmp_path):
    with pytest.raises(AudioError, match="is a token store already"):
        prepare(unbroken, tmp_path / "new", codec)
    shutil.copytree(unbroken, tmp_path / "unfinished")
    (tmp_path / "unfinished/store.json").unlink()
    for use in (prepare, open_or_prepare):
        with pytest.raises(AudioError, match="unfinished: is an unfinished token store; repeat the codeclm prepare"):
            use(tmp_path / "unfinished", tmp_path / "new", codec)
    assert not (tmp_path / "new").exists()


def test_channels_that_cancel_out_and_names_that_are_not_utf8_are_told(codec, tmp_path, caplog):
    caplog.set_level("INFO")
    folder = tmp_path / "audio"
    folder.mkdir()
    soundfile.write(folder / "good.wav", voice(0), RATE)
    soundfile.write(folder / "inverted.wav", np.stack([voice(0, 3.0), -voice(0, 3.0)], axis=1), RATE)
    (folder / os.fsdecode(b"caf\xe9.wav")).write_bytes((folder / "good.wav").read_bytes())
    prepare(folder, tmp_path / "tokens", codec, PrepareConfig(max_utterance_s=1.0))
    assert TokenStore(tmp_path / "tokens").names == ["good"]
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert "inverted.wav: its channels cancel out" in logged and "caf\\xe9.wav: its name is not UTF-8" in logged
    logged.encode()


def test_a_single_file_whose_name_is_not_utf8_gets_a_name_that_can_be_printed(codec, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    soundfile.write(tmp_path / "a.wav", voice(0), RATE)
    (tmp_path / "a.wav").rename(path)
    prepare(path, tmp_path / "tokens", codec)
    assert TokenStore(tmp_path / "tokens").names == ["caf\\xe9"]


@pytest.mark.slow
def test_a_worker_that_dies_names_the_file_and_keeps_what_is_finished(audio, codec, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(f"TINY = {TINY}\n" + DYING_RUN)
    run = subprocess.run([sys.executable, script, audio, tmp_path / "tokens"], capture_output=True, text=True)
    assert run.returncode == 3 and "a worker process died at this file" in run.stdout
    assert f"{audio}/" in run.stdout.split(": a worker")[0]


def test_more_workers_than_cores_are_told_and_not_made(audio, codec, unbroken, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    caplog.set_level("INFO")
    prepare(audio, tmp_path / "tokens", codec, PrepareConfig(files_per_shard=2, num_workers=64))
    assert content(tmp_path / "tokens") == content(unbroken)
    assert any(
        "num_workers is 64, more than the cores of this process: 1 will do" in record.getMessage()
        for record in caplog.records
    )


@pytest.mark.parametrize("off", ["option", "environment"])
def test_bars_can_be_turned_off(audio, codec, tmp_path, capfd, monkeypatch, off):
    if off == "environment":
        monkeypatch.setenv("TQDM_DISABLE", "1")
        run = "from codeclm.data.progress import progress_bar; list(progress_bar([1], disable=False))"
        shown = subprocess.run([sys.executable, "-c", run], capture_output=True, check=True).stderr
    else:
        prepare(audio, tmp_path / "tokens", codec, progress=False)
        shown = capfd.readouterr().err.encode()
    assert b"%|" not in shown
