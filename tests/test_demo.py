"""`codeclm demo`: what it leaves in its folder, with matplotlib and without."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from codeclm.data.audio import load_audio
from codeclm.data.text_tokenizer import TextTokenizer
from codeclm.inference import demo
from codeclm.inference.demo_made import SENTENCE, make
from codeclm.inference.demo_page import MEANING, WITHOUT_TEXT, page_of, remarks
from codeclm.inference.loading import load, save_model
from codeclm.inference.sound.manipulate import pieces
from codeclm.model.pretrained import PROMPT
from codeclm.model.shapes import TextConfig
from codeclm.train.cli import main

SOUNDS = {"prompt.wav", "prompt-as-codec.wav", "continuation-0.wav", "prompt+continuation-0.wav", "said.wav"}


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
    page = (tmp_path / "index.html").read_text()
    assert MEANING in out and MEANING in page and WITHOUT_TEXT not in out + page
    assert SENTENCE in page and "It writes what it hears" in page
    assert ("look at demo.png" in out) == picture and ("codeclm[demo]" in out) != picture


def test_the_demos_voice_is_the_recording_in_pieces(tmp_path):
    recording = load_audio(PROMPT, 16_000)
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
    bundled = load_audio(PROMPT, 16_000)
    assert np.abs(recording - bundled).max() < 1e-3 and np.abs(rendered - bundled[: len(rendered)]).max() > 0.01
    assert len(list((Path(tmp_path) / demo.VOICE).iterdir())) >= 4


@pytest.fixture
def text_model(make_model, make_codec, tmp_path) -> Callable[[str], Path]:
    """A folder of a model with text in this layout, whose weights are random."""

    def saved(layout: str) -> Path:
        tokenizer = TextTokenizer.train(["come in and sit down, the soup is hot"], 280)
        codec = make_codec()
        text = TextConfig(tokenizer.vocab_size, layout=layout, tokenizer=tokenizer.fingerprint)
        model = make_model(codec=codec, dtype=torch.float32, text=text)
        save_model(model, codec, tmp_path / layout, tokenizer=tokenizer)
        return tmp_path / layout

    return saved


def test_a_model_with_text_says_a_sentence_and_writes_what_it_hears(text_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    folder, out = text_model("mixed"), tmp_path / "demo"
    main(["demo", "--out", str(out), "--duration", "0.2", "--seeds", "0", "--model", str(folder)])
    lm, metrics = load(folder), json.loads((out / "metrics.json").read_text())
    said, written = lm.say(SENTENCE, PROMPT, 0), lm.transcribe(PROMPT)
    stored, rate = soundfile.read(out / "said.wav")
    assert rate == lm.codec.sample_rate and np.abs(stored - said.audio).max() < 1e-3
    assert metrics["said"]["text"] == SENTENCE and metrics["said"]["duration_s"] == len(said.audio) / rate
    assert metrics["said"]["bits_per_second"] > 0 and metrics["said"]["heard"] is None
    assert metrics["written"] == {"text": written, "heard": None}
    page, told = (out / "index.html").read_text(), capsys.readouterr().out
    for heading in ("It goes on", "It says a sentence", "It writes what it hears"):
        assert f"<h2>{heading}</h2>" in page
    assert SENTENCE in page and "whisper writes" not in page
    assert f'it says "{SENTENCE}": said.wav' in told and f'it writes of the prompt: "{written}"\n' in told
    assert WITHOUT_TEXT not in page + told


def test_the_words_that_whisper_hears_stand_beside_those_of_the_model(text_model):
    """The words are made up: that whisper hears any is test_transcribe.py's."""
    lm = load(text_model("mixed"))
    made = make(lm, 0.1, [0], None)
    first, *others, last = made.sounds
    sounds = [replace(first, transcript="at the tone"), *others, replace(last, transcript="the soup")]
    made = replace(made, sounds=sounds)
    metrics = demo.metrics_of(made, lm)
    assert metrics["written"] == {"text": made.written, "heard": "at the tone"}
    assert metrics["said"]["heard"] == "the soup"
    assert "whisper writes: at the tone</p>" in page_of(made, lm.name).html()
    lines = "\n".join(demo.lines_of(made, metrics))
    assert '; whisper hears "at the tone"' in lines and '; whisper hears "the soup"' in lines


def test_a_model_with_text_on_one_side_only_shows_that_side(text_model, tmp_path):
    for layout, says in (("first", True), ("last", False)):
        lm = load(text_model(layout))
        made = make(lm, 0.1, [0], None)
        assert (made.said is not None, made.written is not None) == (says, not says)
        page, metrics = page_of(made, lm.name).html(), demo.metrics_of(made, lm)
        assert ("It says a sentence" in page, "It writes what it hears" in page) == (says, not says)
        assert ("said" in metrics, "written" in metrics) == (says, not says)
        assert WITHOUT_TEXT not in page


def test_a_model_without_text_says_that_others_have_it(text_model):
    lm = load(text_model("aligned"))
    made = make(lm, 0.1, [0], None)
    assert made.said is made.written is None
    assert WITHOUT_TEXT in page_of(made, lm.name).html() and remarks(made, lm.name) == [WITHOUT_TEXT]


def test_what_a_sentence_needs_is_named_and_the_rest_is_made(text_model, monkeypatch):
    def nothing_installed(*_: object, **__: object) -> None:
        raise ImportError("phonemes need: pip install 'codeclm[phonemes]'")

    lm = load(text_model("mixed"))
    monkeypatch.setattr(lm, "say", nothing_installed)
    made = make(lm, 0.1, [0], None)
    assert made.said is None and made.written is not None and len(made.continued) == 1
    assert remarks(made, lm.name) == ["it says a text, too, but phonemes need: pip install 'codeclm[phonemes]'"]
    page = page_of(made, lm.name).html()
    assert "It goes on" in page and "It writes what it hears" in page and "codeclm[phonemes]" in page


def test_a_sentence_that_ended_at_once_is_told_and_leaves_no_file(text_model, tmp_path):
    lm = load(text_model("mixed"))
    made = make(lm, 0.1, [0], None)
    assert made.said is not None
    made = replace(made, said=replace(made.said, audio=np.zeros(0, np.float32)), sounds=made.sounds[:-1])
    demo.save_sounds(made, tmp_path / "out")
    assert not (tmp_path / "out/said.wav").exists() and (tmp_path / "out/prompt.wav").exists()
    lines = demo.lines_of(made, demo.metrics_of(made, lm))
    assert any("nothing, it ended at once" in line for line in lines)
    assert "It says a sentence" in page_of(made, lm.name).html()
