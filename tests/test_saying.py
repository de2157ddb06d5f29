"""inference/evaluate/saying.py: what is said and written, with stand-ins for whisper and for the judge of voices."""

import numpy as np
import pytest
import torch

from codeclm.data.audio_out import save_audio
from codeclm.data.text_tokenizer import TextTokenizer
from codeclm.inference import SamplingConfig
from codeclm.inference.evaluate.saying import IN_VOICE, RECORDING, SAID, WRITTEN, saying_table
from codeclm.inference.generator import SpeechGenerator
from codeclm.model.shapes import TextConfig

RATE = 8000
TEXT = "one two three four five"


class Ears:
    """Hears the last word wrong in all that is not loud."""

    language = "en"

    def transcribe(self, audio: np.ndarray, sample_rate: int) -> str:
        assert sample_rate == RATE
        return TEXT if np.abs(audio).max() > 0.5 else "one two three four six"


def loudest(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """A "voice" of two numbers, by the sign of the mean."""
    return np.eye(2)[int(audio.mean() > 0)]


@pytest.fixture
def recordings(tmp_path):
    for speaker, offset in (("ann", 0.3), ("bob", -0.3)):
        for number in range(2):
            noise = 0.25 * np.random.default_rng(number).standard_normal(4 * RATE).clip(-1.5, 1.5)
            save_audio(tmp_path / f"{speaker}/{number}.wav", offset + noise, RATE)
            (tmp_path / f"{speaker}/{number}.txt").write_text(TEXT)
    return tmp_path


def rows(table: str) -> dict[str, list[str]]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[4:]]
    return {name: cells for name, *cells in lines}


@pytest.fixture
def lm(make_model, make_codec):
    codec, tokenizer = make_codec(), TextTokenizer.train([TEXT, "one two three four six"], 275)
    text = TextConfig(tokenizer.vocab_size, layout="mixed")
    return SpeechGenerator(make_model(codec=codec, text=text, dtype=torch.float32), codec, "tiny", tokenizer)


def test_each_way_is_heard_beside_the_recording(lm, recordings, tmp_path):
    table = saying_table(lm, Ears(), recordings, 10, 0, loudest, tmp_path / "kept")
    told = f"4 recordings of {recordings}, 20 words, seed 0, temperature 0.3, guidance 3.0; heard by whisper-base\n"
    assert table.startswith(told)
    found = rows(table)
    assert list(found) == [RECORDING, "codec round trip", SAID, IN_VOICE, WRITTEN]
    assert found[RECORDING][:2] == ["0.0%", "0.0%"]  # in these the peaks are loud
    assert "20.0%" in (found[SAID][0], found["codec round trip"][0])
    for row in found.values():
        assert row[:2] in (["0.0%", "0.0%"], ["20.0%", "13.0%"]) or row is found[WRITTEN]  # three of 23 characters
    own, other, nearer = found[RECORDING][2:]
    assert own.startswith("1.00") and other.startswith("0.00") and nearer.startswith("100%")
    assert found[SAID][2:] == found[WRITTEN][2:] == ["-", "-", "-"]  # in nobody's voice
    assert found[IN_VOICE][2] != "-"


def test_a_table_names_the_settings_that_were_chosen_and_says_by_them(lm, recordings, monkeypatch):
    drawn, say = [], lm.say

    def heard(text, voice=None, seed=0, sampling=SamplingConfig(), best_of=1):
        drawn.append((sampling.guidance, sampling.temperature, best_of))
        return say(text, voice, seed, sampling)

    monkeypatch.setattr(lm, "say", heard)
    table = saying_table(lm, Ears(), recordings, 1, 0, sampling=SamplingConfig(0.6, guidance=2.5), best_of=4)
    assert "seed 0, temperature 0.6, guidance 2.5, the best of 4; heard" in table and drawn == [(2.5, 0.6, 4)] * 2
    table = saying_table(lm, Ears(), recordings, 1, 0)
    assert "seed 0, temperature 0.3, guidance 3.0; heard" in table and drawn[2:] == [(3.0, 0.3, 1)] * 2


def test_recordings_of_nobody_lend_no_voice(lm, recordings, tmp_path):
    for number, path in enumerate(sorted(recordings.glob("*/*.wav"))):
        for suffix in (".wav", ".txt"):
            target = tmp_path / f"plain/{number}{suffix}"
            target.parent.mkdir(exist_ok=True)
            path.with_suffix(suffix).rename(target)
    assert list(rows(saying_table(lm, Ears(), tmp_path / "plain", 2, 0))) == [
        RECORDING, "codec round trip", SAID, WRITTEN,
    ]  # fmt: skip


def test_a_model_without_a_text_is_refused(make_model, make_codec, recordings):
    codec = make_codec()
    lm = SpeechGenerator(make_model(codec=codec, dtype=torch.float32), codec, "tiny")
    with pytest.raises(ValueError, match="tiny: neither says nor writes; train a model with --model.text.layout mixed"):
        saying_table(lm, Ears(), recordings, 2, 0)
