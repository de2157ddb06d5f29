"""data/audio.py: what is read, and what each unusable file is told."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from codeclm.data.audio import AudioError, audio_blocks, find_audio, load_audio, save_wav

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


def test_saved_wav_is_read_back_and_clipped_not_wrapped(tmp_path):
    save_wav(tmp_path / "new" / "a.wav", 5 * tone(), RATE)
    audio = load_audio(tmp_path / "new" / "a.wav", RATE)
    np.testing.assert_allclose(audio, np.clip(5 * tone(), -1, 1), atol=1e-4)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.wav"]
