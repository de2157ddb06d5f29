"""`codeclm demo`: what it leaves in its folder, with matplotlib and without."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from codeclm.data.audio import load_audio
from codeclm.inference import demo
from codeclm.inference.sound.manipulate import pieces
from codeclm.train.cli import main

SOUNDS = {"prompt.wav", "prompt-as-codec.wav", "continuation-0.wav", "prompt+continuation-0.wav"}


@pytest.mark.slow
@pytest.mark.parametrize("picture", [True, False])
def test_the_demo_leaves_sounds_numbers_and_a_picture_where_it_can(picture, tmp_path, monkeypatch, capsys):
    if picture:
        pytest.importorskip("matplotlib")
    else:
        monkeypatch.setattr(demo, "find_spec", lambda name: None)
    main(["demo", "--out", str(tmp_path), "--duration", "0.2", "--seeds", "0"])
    files = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert files == SOUNDS | {"metrics.json", "index.html"} | ({"demo.png"} if picture else set())
    assert json.loads((tmp_path / "metrics.json").read_text())["continuations"][0]["seed"] == 0
    out = capsys.readouterr().out
    assert ("look at demo.png" in out) == picture and ("codeclm[demo]" in out) != picture


def test_the_demos_voice_is_the_recording_in_pieces(tmp_path):
    recording = load_audio(demo.PROMPT, 16_000)
    found = pieces(recording, 16_000, demo.PIECE_S)
    assert np.array_equal(np.concatenate(found), recording) and len(found) >= 4
    assert all(0.6 < len(piece) / 16_000 < 2 for piece in found)


@pytest.mark.parametrize("seconds", [0.5, 1.6, 20.0])
def test_a_recording_of_any_length_can_be_cut(seconds):
    audio = np.random.default_rng(0).normal(size=round(seconds * 16_000)).astype(np.float32)
    found = pieces(audio, 16_000, demo.PIECE_S)
    assert np.array_equal(np.concatenate(found), audio) and all(len(piece) for piece in found)


@pytest.mark.slow
def test_the_prompt_that_is_written_is_the_recording_not_the_codecs_rendering(tmp_path):
    main(["demo", "--out", str(tmp_path), "--duration", "0.1", "--seeds", "0"])
    recording, rendered = (soundfile.read(tmp_path / name)[0] for name in ("prompt.wav", "prompt-as-codec.wav"))
    bundled = load_audio(demo.PROMPT, 16_000)
    assert np.abs(recording - bundled).max() < 1e-3 and np.abs(rendered - bundled[: len(rendered)]).max() > 0.01
    assert len(list((Path(tmp_path) / demo.VOICE).iterdir())) >= 4
