"""data/preparation.py: the same bytes whatever happens, and what a second run does and says."""

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

from codeclm.data.audio import AudioError
from codeclm.data.encode_files import encoder
from codeclm.data.preparation import PrepareConfig, duration, open_or_prepare, prepare
from codeclm.data.token_store import TokenStore
from codeclm.model.codecs import SpectralCodec, SpectralConfig

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

def die(*arguments):
    os._exit(9)

encode_files.encode_sources = die  # a worker process runs this file, too
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
    while len(list(out.glob("shard-*.json"))) < 2:
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
    shard = sorted(out.glob("shard-*.bin"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert prepare(audio, out, codec, config).num_encoded == 2
    assert content(out) == content(unbroken)
    few = tmp_path / "few"
    few.mkdir()
    soundfile.write(few / "0.wav", voice(99), RATE)
    prepare(few, out, codec, config)
    assert TokenStore(out).names == ["0"] and not shard.exists()


# --- a store that grows ---


def with_more(audio: Path, folder: Path) -> Path:
    """The same files, times of change included, and one that sorts first."""
    shutil.copytree(audio, folder)
    soundfile.write(folder / "-first.wav", voice(77), RATE)
    return folder


def test_a_new_file_is_the_only_one_that_is_encoded(audio, codec, tmp_path):
    config, out = PrepareConfig(files_per_shard=2), tmp_path / "tokens"
    prepare(audio, out, codec, config)
    before = snapshot(out)
    summary = prepare(with_more(audio, tmp_path / "more"), out, codec, config)
    assert (summary.num_encoded, summary.num_files) == (1, 11)
    assert TokenStore(out).names == ["-first", *map(str, range(9))]
    TokenStore(out).verify()
    kept = {name: file for name, file in snapshot(out).items() if name.startswith("shard-") and name in before}
    assert kept == {name: before[name] for name in kept} and len(kept) == 10  # five shards, not even written anew
    again = prepare(tmp_path / "more", out, codec, config)
    assert again.num_encoded == 0 and "nothing to do" in str(again)


def test_a_store_that_is_open_keeps_its_codes_whatever_prepare_does(audio, codec, tmp_path):
    """Three generations in one folder: more files, another cut, other files altogether."""
    out = tmp_path / "tokens"
    prepare(audio, out, codec, PrepareConfig(files_per_shard=2))
    truth = TokenStore(out)
    codes = [truth.codes(i).copy() for i in range(len(truth))]
    readers = [TokenStore(out)]
    few = tmp_path / "few"
    few.mkdir()
    soundfile.write(few / "0.wav", voice(99), RATE)
    for folder, config in (
        (with_more(audio, tmp_path / "more"), PrepareConfig(files_per_shard=2)),
        (audio, PrepareConfig(files_per_shard=3, copies=2)),
        (few, PrepareConfig()),
    ):
        prepare(folder, out, codec, config)
        for reader in readers:
            reader.verify()
        for i, expected in enumerate(codes):
            np.testing.assert_array_equal(readers[0].codes(i), expected)
        readers.append(TokenStore(out))
    assert len({reader.data_hash for reader in readers}) == 4


READER = """
import sys
from codeclm.data.token_store import TokenStore

def contents(store):
    return [(store.names[i], store.codes(i).tobytes()) for i in range(len(store))]

readers = []
for line in sys.stdin:
    readers.append(TokenStore(sys.argv[1]))
    readers[-1].first = contents(readers[-1])
    print(all(contents(reader) == reader.first for reader in readers), len(readers[-1]), flush=True)
"""


def test_a_process_that_has_a_store_open_never_reads_a_wrong_code(audio, codec, tmp_path):
    """Four generations; what is opened in each is read again in all that come after."""
    out, few = tmp_path / "tokens", tmp_path / "few"
    few.mkdir()
    soundfile.write(few / "0.wav", voice(99), RATE)
    said = []
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdin is not None and reader.stdout is not None
        for folder, options in (
            (audio, {"files_per_shard": 2}),
            (with_more(audio, tmp_path / "more"), {"files_per_shard": 2}),
            (audio, {"files_per_shard": 3, "copies": 2}),
            (few, {}),
        ):
            prepare(folder, out, codec, PrepareConfig(**options))
            reader.stdin.write("\n")
            reader.stdin.flush()
            said.append(reader.stdout.readline().split())
        reader.stdin.close()
    assert said == [["True", "9"], ["True", "10"], ["True", "18"], ["True", "1"]]
    assert len(list(out.glob("index-*.arrow"))) == 1


def test_a_store_stays_whole_while_the_next_one_is_made(audio, codec, tmp_path, monkeypatch):
    out, opened = tmp_path / "tokens", []
    prepare(audio, out, codec, PrepareConfig(files_per_shard=2))
    before, encode = TokenStore(out).data_hash, codec.encode
    monkeypatch.setattr(codec, "encode", lambda batch: opened.append(TokenStore(out).data_hash) or encode(batch))
    prepare(audio, out, codec, PrepareConfig(copies=2))
    assert opened and set(opened) == {before} and TokenStore(out).data_hash != before


@pytest.mark.parametrize("late", ["_open", "_open_index", "_open_codes"])
def test_a_store_that_is_replaced_while_it_is_being_opened_is_the_new_one(audio, codec, tmp_path, monkeypatch, late):
    out = tmp_path / "tokens"
    prepare(audio, out, codec, PrepareConfig(files_per_shard=2))
    opens = getattr(TokenStore, late)

    def slow(store: TokenStore, what):
        monkeypatch.setattr(TokenStore, late, opens)
        prepare(audio, out, codec, PrepareConfig(copies=2))
        return opens(store, what)

    monkeypatch.setattr(TokenStore, late, slow)
    store = TokenStore(out)
    store.verify()
    assert len(store) == len(set(store.names)) == 18


def test_a_store_of_numbered_shards_is_read_kept_and_grows(audio, codec, unbroken, tmp_path):
    """As codeclm wrote them before shards were named by what they are made from."""
    out, config = tmp_path / "tokens", PrepareConfig(files_per_shard=2)
    shutil.copytree(unbroken, out)
    header = json.loads((out / "store.json").read_text())
    for number, shard in enumerate(header["shards"]):
        for suffix in (".bin", ".json"):
            (out / f"{shard['name']}{suffix}").rename(out / f"shard-{number:05d}{suffix}")
        shard["name"] = f"shard-{number:05d}"
    del header["sha256"], header["index"]
    (out / "store.json").write_text(json.dumps(header | {"format": 2}))
    assert TokenStore(out).data_hash == TokenStore(unbroken).data_hash
    assert prepare(audio, out, codec, config).num_encoded == 0
    assert (out / "shard-00000.bin").exists()
    assert json.loads((out / "store.json").read_text())["format"] == 5  # so it becomes one of today's
    assert prepare(with_more(audio, tmp_path / "more"), out, codec, config).num_encoded == 1
    store = TokenStore(out)
    store.verify()
    assert store.names == ["-first", *map(str, range(9))] and (out / "shard-00000.bin").exists()


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


@pytest.mark.parametrize(
    "options", [{"files_per_shard": 0}, {"num_workers": -1}, {"max_utterance_s": 0.0}, {"shard_mb": 0.0}]
)
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


def test_many_files_in_one_process_of_many_cores_are_told_about_workers(codec, caplog, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    caplog.set_level("INFO")
    with encoder(codec, PrepareConfig(), 20):
        assert not caplog.records
    with encoder(codec, PrepareConfig(), 200):
        assert "1 of 4 cores is used; codeclm prepare --num-workers 4 is faster" in caplog.text


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


def test_a_little_audio_is_counted_in_minutes():
    assert [duration(hours) for hours in (0.002, 0.999, 1.314)] == ["0.1 min", "59.9 min", "1.31 h"]
