"""data/audio_out.py: the format that the name promises, clipping told, whole files or nothing. S samples."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from codeclm.data import audio_out
from codeclm.data.audio import load_audio
from codeclm.data.audio_out import FORMATS, audio_writer, check_audio_file, save_audio

RATE = 16_000


def tone(level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_has_the_format_that_its_name_promises(tmp_path: Path, suffix):
    for path in (tmp_path / f"a{suffix}", tmp_path / f"A{suffix.upper()}"):
        save_audio(path, tone(), RATE)
        info = soundfile.info(path)
        assert (info.format, info.samplerate, info.channels) == (FORMATS[suffix][0], RATE, 1)
        heard = load_audio(path, RATE)
        assert abs(len(heard) - RATE) < 100 and np.corrcoef(heard[2000:14000], tone()[2000:14000])[0, 1] > 0.9
    assert len(list(tmp_path.iterdir())) == 2


def test_wav_and_flac_hold_the_same_samples_to_16_bits(tmp_path: Path):
    for name in ("a.wav", "a.flac", "a"):  # without a suffix it is WAV
        save_audio(tmp_path / name, tone(), RATE)
    (wav, _), (flac, _) = (soundfile.read(tmp_path / name, dtype="int16") for name in ("a.wav", "a.flac"))
    assert np.array_equal(wav, flac) and np.array_equal(wav, np.rint(tone() * 32767).astype(np.int16))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "a.wav").read_bytes()


@pytest.mark.parametrize("name, reason", [("a.xyz", "'.xyz' cannot be written; choose one of .wav"), ("-", "output")])
def test_a_name_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path, name, reason, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for refuse in (check_audio_file, lambda path: save_audio(path, tone(), RATE)):
        with pytest.raises((ValueError, OSError), match=reason):
            refuse(Path(name))
    assert not list(tmp_path.iterdir())


def test_a_rate_that_a_format_does_not_have_is_told_and_leaves_nothing(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"a.opus: cannot be written as .opus at 22050 Hz \(Opus only supports"
    ) as caught:
        save_audio(tmp_path / "a.opus", tone(), 22_050)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_audible_clipping_is_told_once_with_its_peak_and_number(tmp_path: Path, caplog):
    save_audio(tmp_path / "a.wav", tone(1.0), RATE)
    assert not caplog.records
    loud = tone(0.5)
    loud[[10, 500, 9000]] = 1.5, -1.25, 1.1
    loud[600:630] = 1.2
    with audio_writer(tmp_path / "a.wav", RATE) as write:
        for block in np.array_split(loud, 5):
            write(block)
    (record,) = caplog.records
    assert record.getMessage() == f"{tmp_path}/a.wav: 33 samples beyond full scale were clipped (peak 1.50)"
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav", RATE), loud.clip(-1, 1), atol=1e-4)  # not wrapped


def test_a_few_clipped_samples_are_not_worth_a_warning(tmp_path: Path, caplog):
    loud = tone(0.5)
    loud[[10, 500, 9000]] = 1.5, -1.25, 1.1
    save_audio(tmp_path / "a.wav", loud, RATE)
    assert not caplog.records
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav", RATE), loud.clip(-1, 1), atol=1e-4)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_file_written_in_blocks_is_the_one_written_at_once(tmp_path: Path, suffix):
    save_audio(tmp_path / f"whole{suffix}", tone(1.5), RATE)
    with audio_writer(tmp_path / f"blocks{suffix}", RATE) as write:
        for block in np.array_split(tone(1.5), 7):
            write(block)
    assert (tmp_path / f"blocks{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()


def test_folders_that_a_failed_file_made_are_gone_and_those_of_others_stay(tmp_path: Path):
    for folder in ("new/deeper", "."):
        with pytest.raises(KeyError), audio_writer(tmp_path / folder / "a.wav", RATE) as write:
            write(tone())
            raise KeyError("what comes between")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="a.wav: cannot be written"):
        save_audio(tmp_path / "file/a.wav", tone(), RATE)


def test_more_than_a_wav_file_can_hold_is_refused_in_one_line(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(audio_out, "MAX_WAV_BYTES", 3 * RATE)
    with (
        pytest.raises(OSError, match="a.wav: a WAV file cannot hold more than 4 GiB"),
        audio_writer(tmp_path / "a.wav", RATE) as write,
    ):
        write(tone())
        write(tone())
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_full_disk_is_told_with_its_reason(tmp_path: Path, suffix):
    (tmp_path / f"a{suffix}").symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"a{suffix}: cannot be written \(No space left on device\)"):
        save_audio(tmp_path / f"a{suffix}", np.random.default_rng(0).uniform(-1, 1, 400_000), RATE)


def test_a_pipe_gets_a_wav_stream_that_can_be_read(tmp_path: Path):
    code = "import sys, numpy as np; from codeclm.data.audio_out import save_audio\n"
    code += "save_audio('/dev/stdout', np.full(8000, 0.25), 8000)"
    stream = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    (tmp_path / "a.wav").write_bytes(stream)
    assert len(stream) == 44 + 16_000 and np.allclose(load_audio(tmp_path / "a.wav", 8000), 0.25, atol=1e-4)


def test_dev_null_takes_audio_and_stays_a_device(tmp_path: Path):
    try:
        os.mknod(tmp_path / "null.wav", 0o020666, os.makedev(1, 3))
        (tmp_path / "null.wav").write_bytes(b"")
    except OSError:
        pytest.skip("makes no devices")
    save_audio(tmp_path / "null.wav", tone(), RATE)
    assert not (tmp_path / "null.wav").is_file()
