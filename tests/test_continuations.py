"""The continuation report, with a stand-in for the model that answers with known audio."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from codeclm.data.audio_out import save_audio
from codeclm.inference.evaluate import continuations as module
from codeclm.inference.evaluate.continuations import check_continuation, continuation_report
from codeclm.inference.sound.measures import measure_speech

RATE = 16_000


def speech(pitch_hz: float, duration_s: float = 2.0, level: float = 0.3) -> np.ndarray:
    """Voiced syllables with breath between: 60 % voiced."""
    time = np.arange(round(duration_s * RATE)) / RATE
    tone = sum(np.sin(2 * np.pi * k * pitch_hz * time + k * k) / k for k in range(1, 12)) / 2
    breath = 0.05 * np.random.default_rng(0).normal(size=len(time))
    return (level * np.where((time * 4) % 1 < 0.6, tone, breath)).astype(np.float32)


@dataclass
class Generation:
    audio: np.ndarray
    prompt_audio: np.ndarray
    sample_rate: int = RATE
    finish_reason: str = "length"


class FakeModel:
    """Continues every prompt with the same audio, and notes what it was asked."""

    def __init__(self, answer: np.ndarray):
        self.codec, self.answer, self.asked = SimpleNamespace(sample_rate=RATE), answer, []

    def generate(self, prompt: tuple[np.ndarray, int], duration_s: float = 8.0, seed: int = 0) -> Generation:
        self.asked.append((len(prompt[0]), prompt[1], duration_s, seed))
        return Generation(self.answer, prompt[0])


@pytest.fixture
def prompts(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "low.wav", tmp_path / "high.wav"]
    for path, pitch in zip(paths, (120, 240), strict=True):
        save_audio(path, speech(pitch, 3.0), RATE)
    return paths


def test_a_continuation_by_the_same_voice_passes_and_by_another_fails_on_pitch(prompts: list[Path], tmp_path: Path):
    lm = FakeModel(speech(130))
    report = continuation_report(lm, prompts, 1.5, 2.0, seed=7, asr=False, out=tmp_path / "out")
    assert lm.asked == [(24_000, RATE, 2.0, 7)] * 2
    assert [item.checks.failed for item in report.continuations] == [[], ["pitch"]]
    assert report.totals[0] == "1 of 2 pass all checks"
    assert {"2 of 2 loudness", "1 of 2 pitch"} <= set(report.totals)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["01-low.wav", "02-high.wav"]
    assert "FAILS pitch" in report.table() and "words" not in report.table()


@pytest.mark.parametrize(
    ("answer", "failed"),
    [
        (np.zeros(RATE, np.float32), {"not_silent", "loudness", "voicing", "pitch"}),
        (np.zeros(0, np.float32), {"not_silent", "loudness", "voicing", "pitch"}),
        (speech(120, level=0.1), {"loudness"}),
        (np.clip(speech(120, level=3.0), -1, 1), {"not_clipped", "loudness"}),
        (0.1 * np.random.default_rng(0).normal(size=RATE), {"voicing", "pitch"}),
        (0.2 * np.sin(2 * np.pi * 120 * np.arange(RATE) / RATE), {"voicing"}),
    ],
)
def test_what_is_wrong_with_a_continuation_is_named(answer: np.ndarray, failed: set[str]):
    prompt = measure_speech(speech(120), RATE)
    assert set(check_continuation(prompt, measure_speech(answer, RATE)).failed) == failed


def test_a_report_with_an_empty_continuation_is_valid_json(prompts: list[Path]):
    report = continuation_report(FakeModel(np.zeros(0, np.float32)), prompts, 1.0, 2.0, seed=0, asr=False)
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["continuations"][0]["continuation"]["loudness_dbfs"] is None
    assert plain["totals"][0] == "0 of 2 pass all checks"
    assert "FAILS" in report.table()


class Typist:
    """Stands in for the recogniser: one word for the first clip, four for the second."""

    def __init__(self) -> None:
        self.left = ["Hello.", "And he said, hello!"]

    def detect_language(self, audio: np.ndarray, sample_rate: int) -> str:
        return "en"

    def transcribe(self, audio: np.ndarray, sample_rate: int, language: str) -> str:
        return self.left.pop(0)


def test_transcripts_are_listed_and_their_words_counted(prompts: list[Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "Transcriber", Typist)
    report = continuation_report(FakeModel(speech(120)), prompts, 1.0, 2.0, seed=0, asr=True)
    assert [item.num_words for item in report.continuations] == [1, 4]
    assert report.totals[-1] == "1 of 2 with at least three words"
    assert "4 words: And he said, hello!" in report.table()


def test_a_prompt_that_is_too_short_is_skipped_by_name_and_none_left_is_an_error(prompts: list[Path], tmp_path: Path):
    save_audio(tmp_path / "short.wav", speech(120, 0.5), RATE)
    report = continuation_report(FakeModel(speech(120)), [*prompts, tmp_path / "short.wav"], 1.0, 2.0, 0, False)
    assert len(report.continuations) == 2
    assert "short.wav: 0.50 s long; the prompt needs 1 s" in report.skipped[0]
    with pytest.raises(ValueError, match="no prompt can be continued"):
        continuation_report(FakeModel(speech(120)), [tmp_path / "short.wav"], 1.0, 2.0, 0, False)
