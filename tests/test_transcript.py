"""Recordings of any length are written down passage by passage: by the embedded model, and in every format."""

import itertools
import json

import numpy as np
import pytest
import soundfile

from codeclm.data.audio import AudioError, load_audio
from codeclm.inference import load
from codeclm.inference.config import BeamConfig
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.loading import EMBEDDED_MODEL
from codeclm.inference.passage import Passage, lines
from codeclm.train.cli import main

PROMPT = EMBEDDED_MODEL / "prompt.flac"
FAST = BeamConfig(beam_size=2)
FOUND = [Passage(0.0, 12.34, "so they say"), Passage(12.34, 3675.5, "„ja“")]


@pytest.fixture(scope="module")
def lm() -> SpeechGenerator:
    return load()


@pytest.fixture(scope="module")
def speech(lm) -> np.ndarray:
    return load_audio(PROMPT, lm.codec.sample_rate)


@pytest.fixture(scope="module")
def long(lm, speech) -> np.ndarray:
    """Speech, a pause, the same speech louder, and silence that no passage could hold."""
    rate = lm.codec.sample_rate
    return np.concatenate([speech, np.zeros(rate // 2, np.float32), 1.2 * speech, np.zeros(9 * rate, np.float32)])


def test_a_long_recording_is_cut_in_its_pauses_and_its_passages_say_what_each_says_alone(lm, speech, long):
    rate, seconds = lm.codec.sample_rate, len(speech) / lm.codec.sample_rate
    first, second = lm.passages((long, rate), seconds + 0.5, FAST)
    assert first.start_s == 0 and seconds <= first.end_s <= seconds + 0.5 and second.start_s == first.end_s
    cuts = [round(rate * at) for at in (0, first.end_s, second.end_s)]
    for passage, (start, stop) in zip((first, second), itertools.pairwise(cuts), strict=True):
        assert passage.text == lm.transcribe((long[start:stop], rate), beam=FAST) and len(passage.text) > 20


def test_a_file_is_read_while_it_is_written_down(lm, speech, tmp_path):
    """So the beginning of one that is broken later is there."""
    rate = lm.codec.sample_rate
    broken = np.zeros(70 * rate, np.float32)
    broken[: len(speech)], broken[-1] = speech, np.nan
    soundfile.write(tmp_path / "broken.wav", broken, rate, subtype="FLOAT")
    found = lm.passages(tmp_path / "broken.wav", 5.0, FAST)
    assert next(found).start_s == 0
    with pytest.raises(AudioError, match="NaN"):
        list(found)
    with pytest.raises(AudioError, match="silent"):
        lm.transcribe((np.zeros(rate, np.float32), rate))


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("text", "so they say\n„ja“"),
        ("srt", "1\n00:00:00,000 --> 00:00:12,340\nso they say\n\n2\n00:00:12,340 --> 01:01:15,500\n„ja“\n"),
        ("vtt", "WEBVTT\n\n00:00:00.000 --> 00:00:12.340\nso they say\n\n00:00:12.340 --> 01:01:15.500\n„ja“\n"),
    ],
)
def test_passages_as_text_and_subtitles(kind, told):
    assert "\n".join(lines(FOUND, kind)) == told


def test_the_command_tells_times_as_json(lm, long, tmp_path, capsys):
    rate = lm.codec.sample_rate
    soundfile.write(tmp_path / "long.wav", long[: 6 * rate], rate)
    main(["transcribe", str(tmp_path / "long.wav"), "--format", "jsonl", "--max-s", "5.3", "--beam-size", "2"])
    (line,) = capsys.readouterr().out.splitlines()
    passage = Passage(**json.loads(line))
    assert passage.start_s == 0 and 4.5 < passage.end_s <= 5.3 and len(passage.text) > 20
    assert list(lines([passage], "jsonl")) == [line]
