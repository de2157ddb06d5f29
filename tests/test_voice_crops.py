"""The crops that a codec is trained on: whose voice, at which pitch, and what is left out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from codeclm.data.audio import AudioError
from codeclm.data.audio_out import save_audio
from codeclm.inference.sound.measures import pitch_track
from codeclm.train.crop_changes import move_formants
from codeclm.train.voice_crops import VoiceCrops

from .codec_voices import RATE, crops_of, low_and_high, voice

pytestmark = pytest.mark.slow


def test_the_pitch_that_is_drawn_is_that_of_the_crop(tmp_path: Path):
    crops = crops_of(low_and_high(tmp_path / "voices"), tmp_path)
    audio, pitch = crops.draw(16, 8000, np.random.default_rng(0))
    errors = []
    for row, drawn in zip(audio.numpy(), pitch.numpy(), strict=True):
        found, drawn = pitch_track(row, RATE)[1:], drawn[:-1]  # every 10 ms: where the hops of 80 samples end
        both = (found > 0) & (drawn > 0)
        errors += list(np.abs(np.log2(found[both] / drawn[both])))
    assert len(errors) > 500
    assert np.quantile(errors, 0.9) < 0.03  # octaves; a wrong speed or place of the crop gives about 0.1


def test_moved_formants_leave_the_pitch_where_it_was():
    """Pulses at 125 Hz through one resonance at 1 kHz."""
    pulses = torch.zeros(16_000)
    pulses[::128] = 1.0
    frequencies = torch.linspace(0, 8000, 8001)
    resonance = torch.exp(-(((frequencies - 1000) / 500) ** 2)) + 0.01
    audio = torch.fft.irfft(torch.fft.rfft(pulses) * resonance, n=16_000)
    for factor in (0.8, 1.0, 1.25):
        moved = move_formants(audio, factor, 16_000)
        power = torch.fft.rfft(moved[1600:-1600]).abs().square()  # 100 periods
        assert abs(float(power.argmax()) * 16_000 / 12_800 - 1000 * factor) < 130  # the nearest of the harmonics
        pitch = pitch_track(moved.numpy(), 16_000)
        assert np.median(pitch[10:-10]) == pytest.approx(125, rel=0.01)


def test_an_unusable_file_or_voice_is_named_and_left_out_and_nothing_usable_is_an_error(tmp_path: Path, caplog):
    caplog.set_level("INFO", "codeclm")
    good, bad = tmp_path / "data" / "anna" / "good.wav", tmp_path / "data" / "anna" / "bad.wav"
    save_audio(good, voice(150.0, 2.0, 0), RATE)
    bad.write_bytes(b"not audio")
    crops = VoiceCrops(tmp_path / "data", tmp_path / "first", RATE, 1.0, 80)
    assert [len(samples) for samples in crops.voices] == [2 * RATE]
    assert "bad.wav: cannot be read as audio" in caplog.text
    other = tmp_path / "data" / "bert" / "bad.wav"
    other.parent.mkdir()
    other.write_bytes(b"not audio")
    assert len(VoiceCrops(tmp_path / "data", tmp_path / "second", RATE, 1.0, 80).voices) == 1
    assert "voice bert: left out" in caplog.text
    good.unlink()
    with pytest.raises(AudioError, match="no file of any voice can be used"):
        VoiceCrops(tmp_path / "data", tmp_path / "third", RATE, 1.0, 80)


def test_speakers_of_a_list_are_voices(tmp_path: Path):
    for number, speaker in enumerate(("anna", "bert", "anna")):
        save_audio(tmp_path / "audio" / f"{number}.wav", voice(150.0, 1.0, number), RATE)
        with (tmp_path / "talks.jsonl").open("a") as lines:
            lines.write(json.dumps({"audio": f"audio/{number}.wav", "speaker": speaker}) + "\n")
    crops = VoiceCrops(tmp_path / "talks.jsonl", tmp_path / "c", RATE, 1.0, 80)
    assert [len(samples) for samples in crops.voices] == [2 * RATE, RATE]


def test_a_folder_without_sub_folders_is_one_voice(tmp_path: Path):
    for number in range(3):
        save_audio(tmp_path / "data" / f"{number}.wav", voice(150.0, 1.0, number), RATE)
    assert [len(samples) for samples in VoiceCrops(tmp_path / "data", tmp_path / "c", RATE, 1.0, 80).voices] == [
        3 * RATE
    ]


def test_more_voices_are_the_same_ones_and_others(tmp_path: Path):
    for number in range(6):
        save_audio(tmp_path / "data" / f"{number}" / "a.wav", voice(100.0 + 20 * number, 1.0, number), RATE)
    heard = [
        {samples.tobytes() for samples in VoiceCrops(tmp_path / "data", tmp_path / "c", RATE, 1.0, 80, most).voices}
        for most in (1, 2, 4, 0)
    ]
    assert [len(voices) for voices in heard] == [1, 2, 4, 6]
    assert heard[0] < heard[1] < heard[2] < heard[3]
