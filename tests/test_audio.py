"""data/audio.py: what is read, and what each unusable file is told."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from codeclm.data.audio import AudioError, audio_blocks, find_audio, load_audio
from codeclm.data.audio_out import save_audio

RATE = 16_000


def tone(duration_s: float = 1.0, rate: int = RATE) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(duration_s * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(
    ("rate", "channels", "subtype", "suffix"),
    [
        (8_000, 1, "PCM_16", "wav"),
        (44_100, 2, "PCM_24", "wav"),
        (RATE, 1, "PCM_U8", "wav"),
        (48_000, 2, "PCM_16", "flac"),
    ],
)
def test_any_rate_channels_and_depth_become_the_same_mono_tone(tmp_path, rate, channels, subtype, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([tone(rate=rate)] * channels, axis=1), rate, subtype=subtype)
    audio = load_audio(path, RATE)
    assert audio.dtype == np.float32 and abs(len(audio) - RATE) <= 1
    middle = slice(2_000, 14_000)  # the resampler rings at the ends
    assert np.abs(audio[middle] - tone()[middle]).max() < 0.02


def test_channels_are_averaged(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(), 0 * tone()], axis=1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav", RATE), tone() / 2, atol=1e-6)


def write_bad(path: Path, kind: str) -> None:
    audio = tone()
    if kind == "zero bytes":
        path.touch()
    elif kind == "text":
        path.write_text("this is not audio")
    elif kind == "header only":
        soundfile.write(path, audio[:0], RATE)
    elif kind in ("cut wav", "cut aiff", "cut ogg", "cut flac"):
        file_format = kind.split()[1].upper()
        soundfile.write(path, audio, RATE, format=file_format)
        path.write_bytes(path.read_bytes()[: -200 if kind == "cut ogg" else -2_000])
    elif kind == "NaN":
        audio[5_000] = np.nan
        soundfile.write(path, audio, RATE, subtype="FLOAT")
    elif kind == "integers as floats":
        soundfile.write(path, audio * 32_768, RATE, subtype="FLOAT")
    elif kind == "short":
        soundfile.write(path, audio[:800], RATE)
    elif kind == "silent":
        soundfile.write(path, 0 * audio, RATE)
    elif kind == "rate":
        soundfile.write(path, audio, 2_000)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "no such file"),
        ("zero bytes", "empty"),
        ("text", "cannot be read as audio"),
        ("header only", "no samples"),
        ("cut wav", "cut off"),
        ("cut aiff", "cut off"),
        ("cut ogg", "cut off"),
        ("cut flac", "cannot be read as audio"),
        ("NaN", "NaN"),
        ("integers as floats", "-1..1"),
        ("short", "too short"),
        ("silent", "silent"),
        ("rate", "2000 Hz"),
    ],
)
def test_an_unusable_file_is_named_with_its_reason_in_one_line(tmp_path, kind, reason):
    path = tmp_path / "x.wav"
    write_bad(path, kind)
    with pytest.raises(AudioError, match=reason) as caught:
        load_audio(path, RATE)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["wav", "aiff", "ogg", "flac"])
def test_a_whole_file_is_not_called_cut(tmp_path, suffix):
    soundfile.write(tmp_path / f"a.{suffix}", tone(), RATE)
    assert len(load_audio(tmp_path / f"a.{suffix}", RATE)) == RATE


def test_blocks_joined_are_the_whole_file(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(130, 8_000), 8_000)
    blocks = list(audio_blocks(tmp_path / "a.wav", RATE))
    assert len(blocks) >= 3
    np.testing.assert_array_equal(np.concatenate(blocks), load_audio(tmp_path / "a.wav", RATE))


def test_find_audio_gives_sorted_audio_files_only(tmp_path):
    for name in ("b.WAV", "a/z.flac", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    assert find_audio(tmp_path) == [tmp_path / "a/z.flac", tmp_path / "b.WAV"]
    assert find_audio(tmp_path / "b.WAV") == [tmp_path / "b.WAV"]
    with pytest.raises(AudioError, match="no audio file"):
        find_audio(tmp_path / "folder.wav")
    with pytest.raises(AudioError, match="no such"):
        find_audio(tmp_path / "absent")


def test_channels_that_cancel_out_are_told_as_such(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(), -tone()], axis=1), RATE)
    for check_speech in (True, False):
        with pytest.raises(AudioError, match="a.wav: its channels cancel out .*ffmpeg -i") as caught:
            load_audio(tmp_path / "a.wav", RATE, check_speech)
        assert "\n" not in str(caught.value)
    soundfile.write(tmp_path / "silent.wav", np.zeros((RATE, 2)), RATE)
    with pytest.raises(AudioError, match="silent"):
        load_audio(tmp_path / "silent.wav", RATE)


def test_what_only_ffmpeg_reads_is_named_with_the_command_that_converts_it(tmp_path, caplog):
    for name in ("a.wav", "b.m4a", "sub/c.webm", "a.aac"):  # the last has been converted
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no audio")
    assert find_audio(tmp_path) == [tmp_path / "a.wav"]
    assert [record.getMessage() for record in caplog.records] == [
        f"skipped {tmp_path}/{name}: {suffix} cannot be read; convert it with: "
        f"ffmpeg -i '{tmp_path}/{name}' '{tmp_path}/{wav}'"
        for name, suffix, wav in (("b.m4a", ".m4a", "b.wav"), ("sub/c.webm", ".webm", "sub/c.wav"))
    ]
    with pytest.raises(AudioError, match="no audio file .*c.webm: .webm cannot be read; convert it with: ffmpeg -i"):
        find_audio(tmp_path / "sub")
    with pytest.raises(AudioError, match="b.m4a: cannot be read as audio .*convert it with: ffmpeg -i .*b.wav"):
        load_audio(tmp_path / "b.m4a", RATE)


def test_a_name_that_is_not_utf8_is_left_out_by_name_and_readable_by_itself(tmp_path, caplog):
    bad = tmp_path / os.fsdecode(b"caf\xe9.wav")
    save_audio(tmp_path / "a.wav", tone(), RATE)
    bad.write_bytes((tmp_path / "a.wav").read_bytes())
    assert find_audio(tmp_path) == [tmp_path / "a.wav"]
    assert [record.getMessage() for record in caplog.records] == [
        f"skipped {tmp_path}/caf\\xe9.wav: its name is not UTF-8; rename it"
    ]
    assert len(load_audio(bad, RATE)) == RATE
    bad.write_text("no audio")
    with pytest.raises(AudioError, match=r"caf\\xe9.wav: cannot be read as audio") as caught:
        load_audio(bad, RATE)
    str(caught.value).encode()
    (tmp_path / "a.wav").unlink()
    with pytest.raises(AudioError, match=r"no audio file .*caf\\xe9.wav: its name is not UTF-8"):
        find_audio(tmp_path)
