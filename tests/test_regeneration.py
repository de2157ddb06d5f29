"""inference/evaluate/regeneration.py: what is heard of each version of a recording, with a stand-in for whisper."""

import numpy as np
import pytest
import torch

from codeclm.data.audio_out import save_audio
from codeclm.inference.evaluate.regeneration import error_table, versions
from codeclm.inference.evaluate.transcribed import with_text
from codeclm.inference.generator import SpeechGenerator

RATE = 8000


@pytest.fixture
def recordings(tmp_path):
    for number in range(4):
        save_audio(tmp_path / f"{number}.wav", 0.1 * np.random.default_rng(number).standard_normal(RATE), RATE)
        if number:
            (tmp_path / f"{number}.txt").write_text("one two three four five" if number > 1 else "two words")
    return tmp_path


class Ears:
    """Hears the last word wrong in whatever is not the recording itself, which comes first of each file."""

    language = "en"

    def __init__(self, versions: int):
        self.versions, self.count = versions, 0

    def transcribe(self, audio: np.ndarray, sample_rate: int) -> str:
        assert sample_rate == RATE and len(audio) == RATE
        self.count += 1
        return "One, two, three, four, five." if self.count % self.versions == 1 else "one two three four six"


def test_the_words_of_each_version_are_compared_with_the_true_text(make_model, make_codec, recordings):
    codec = make_codec()
    lm = SpeechGenerator(make_model(codec=codec, dtype=torch.float32), codec, "tiny")
    files, _ = with_text(recordings, 10, RATE)
    assert [file.source.name for file in files] == ["2", "3"]
    ears = Ears(4)
    lines = error_table(lm, ears, files, [2], seed=0).splitlines()
    assert lines[0] == "2 recordings, 10 words, seed 0: whisper-base's word errors"
    names, rates = zip(*(line.rsplit(None, 1) for line in lines[1:]), strict=True)
    assert [name.strip() for name in names] == [
        "recording",
        "codec round trip",
        "2 of 3 codebooks kept",
        "2 kept, noise for the others",
    ]
    assert rates == ("0.0%", "20.0%", "20.0%", "20.0%")
    heard = [audio for _, audio in versions(lm, files[0].audio, [2], 0)]
    assert len({audio.tobytes() for audio in heard}) == 4


def test_recordings_without_texts_are_refused(recordings):
    for text in recordings.glob("*.txt"):
        text.unlink()
    with pytest.raises(
        ValueError,
        match=r"none of 4 recordings has a text of 5 words \(in NAME.txt, in a folder of audio\), and 15 s or less",
    ):
        with_text(recordings, 3, RATE)
