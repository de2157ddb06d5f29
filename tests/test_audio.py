"""data/audio.py: what is read, and what each unusable file is told."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from codeclm.data.audio import AudioError, audio_blocks, audio_header, find_audio, load_audio
from codeclm.data.audio_out import save_audio
from codeclm.model.codecs import EMBEDDED_CODEC

DEMO_PROMPT = EMBEDDED_CODEC / "prompt.flac"
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


def test_what_only_ffmpeg_reads_is_named_with_two_ways_out_where_there_is_no_pyav(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("codeclm.data.audio.find_spec", lambda name: None)
    for name in ("a.wav", "b.m4a", "sub/c.webm", "a.aac"):  # the last has been converted
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no audio")
    assert find_audio(tmp_path) == [tmp_path / "a.wav"]
    assert [record.getMessage() for record in caplog.records] == [
        f"skipped {tmp_path}/{name}: {suffix} cannot be read; pip install 'codeclm[formats]', or convert it with: "
        f"ffmpeg -i '{tmp_path}/{name}' '{tmp_path}/{wav}'"
        for name, suffix, wav in (("b.m4a", ".m4a", "b.wav"), ("sub/c.webm", ".webm", "sub/c.wav"))
    ]
    with pytest.raises(AudioError, match="no audio file .*c.webm: .webm cannot be read; pip install .*ffmpeg -i"):
        find_audio(tmp_path / "sub")
    with pytest.raises(AudioError, match="b.m4a: cannot be read as audio .*convert it with: ffmpeg -i .*b.wav"):
        load_audio(tmp_path / "b.m4a", RATE)
    (tmp_path / "b.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + b"\0" * 1000)
    with pytest.raises(
        AudioError, match=r"b.m4a: cannot be read; pip install 'codeclm\[formats\]', or convert it with"
    ):
        load_audio(tmp_path / "b.m4a", RATE)


FFMPEG_FORMATS = {
    ".m4a": ("mp4", "aac"),
    ".webm": ("webm", "libopus"),
    ".aac": ("adts", "aac"),
}


def encode_with_ffmpeg(path: Path, audio: np.ndarray, rate: int) -> None:
    """Skips the test where FFmpeg has no encoder for it."""
    av = pytest.importorskip("av")
    container, codec = FFMPEG_FORMATS[path.suffix]
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    with av.open(path, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(audio[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.format.name, "mono", rate, stream.frame_size or 1024)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))


@pytest.mark.parametrize("suffix", FFMPEG_FORMATS)
def test_what_ffmpeg_reads_sounds_as_it_did(tmp_path, suffix):
    voice, rate = soundfile.read(DEMO_PROMPT, dtype="float32")
    encode_with_ffmpeg(tmp_path / f"a{suffix}", voice, rate)
    assert find_audio(tmp_path) == [tmp_path / f"a{suffix}"]
    read = load_audio(tmp_path / f"a{suffix}", rate)
    assert abs(len(read) - len(voice)) < 0.2 * rate  # encoders work in blocks
    lags = np.correlate(read[:20_000], voice[4_000:16_000], "valid")  # encoders start late
    lag = int(lags.argmax()) - 4_000
    both = np.stack([voice[5_000:15_000], read[5_000 + lag : 15_000 + lag]])
    assert np.corrcoef(both)[0, 1] > 0.9
    part = np.concatenate(list(audio_blocks(tmp_path / f"a{suffix}", rate, start_s=1.0, end_s=1.5)))
    edge = 500  # of the resampler
    np.testing.assert_allclose(part[edge:-edge], read[rate : rate + rate // 2][edge:-edge], atol=1e-4)


def test_a_broken_or_cut_m4a_is_told_in_a_line(tmp_path):
    voice, rate = soundfile.read(DEMO_PROMPT, dtype="float32")
    encode_with_ffmpeg(tmp_path / "a.m4a", voice, rate)
    whole = (tmp_path / "a.m4a").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:16] + b"\0" * 1000):
        (tmp_path / "b.m4a").write_bytes(content)
        with pytest.raises(AudioError, match="b.m4a: cannot be read as audio") as caught:
            load_audio(tmp_path / "b.m4a", RATE)
        assert "\n" not in str(caught.value)


def test_a_streamed_flac_that_does_not_say_how_long_it_is_sounds_as_it_did(tmp_path):
    pytest.importorskip("av")
    voice, rate = soundfile.read(DEMO_PROMPT, dtype="float32")
    for count in (len(voice), rate // 4):
        soundfile.write(tmp_path / "a.flac", voice[:count], rate)
        content = bytearray((tmp_path / "a.flac").read_bytes())
        content[21] &= 0xF0
        content[22:26] = bytes(4)
        (tmp_path / "a.flac").write_bytes(content)
        np.testing.assert_allclose(load_audio(tmp_path / "a.flac", rate), voice[:count], atol=1e-4)
        assert audio_header(tmp_path / "a.flac") == (rate, 0.0)


# --- parts of a recording ---


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_a_part_of_a_recording_is_what_a_file_of_it_would_be(tmp_path, suffix):
    voice, rate = soundfile.read(DEMO_PROMPT, dtype="float32")
    save_audio(tmp_path / f"a{suffix}", voice, rate)
    whole = soundfile.read(tmp_path / f"a{suffix}", dtype="float32")[0]
    soundfile.write(tmp_path / "part.wav", whole[rate // 2 : rate], rate, subtype="FLOAT")
    with open(tmp_path / f"a{suffix}", "rb") as file:
        part = np.concatenate(list(audio_blocks(file, RATE, name="it", start_s=0.5, end_s=1.0)))
    np.testing.assert_allclose(part, load_audio(tmp_path / "part.wav", RATE), atol=1e-6)


def test_a_part_that_is_not_in_the_recording_is_told(tmp_path):
    save_audio(tmp_path / "a.wav", tone(), RATE)  # 1 s
    for start, end, words in ((0.5, 1.5, "up to 1.5 s, but ends at 1.00 s"), (2.0, 3.0, "from 2 s on, but ends at")):
        with pytest.raises(AudioError, match=f"a.wav: is to be used {words}"):
            list(audio_blocks(tmp_path / "a.wav", RATE, start_s=start, end_s=end))
    assert sum(map(len, audio_blocks(tmp_path / "a.wav", RATE, start_s=0.5, end_s=1.05))) == RATE // 2


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


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_an_open_file_without_its_samples_is_told_and_nothing_is_printed(capfd):
    file = io.BytesIO()
    soundfile.write(file, np.full(8000, 0.1), 8000, format="AIFF")
    broken = io.BytesIO(file.getvalue().replace(b"SSND", b"XXXX"))
    with pytest.raises(AudioError, match="^it: cannot be read as audio"):
        list(audio_blocks(broken, 8000, name="it"))
    assert capfd.readouterr().err == ""
