"""Word error rates, and the real speech recogniser where its packages are installed."""

import importlib.util
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from codeclm.data.audio import load_audio
from codeclm.inference.sound import transcribe
from codeclm.inference.sound.transcribe import (
    Transcriber,
    normalised_words,
    spoken_words,
    whisper_folder,
    word_error_rate,
)


def real_clip() -> Path:
    beside = Path(__file__).parent / "assets" / "prompt.flac"
    clip = beside if beside.is_file() else Path(str(resources.files("codeclm.model.pretrained") / "prompt.flac"))
    if not clip.is_file():
        pytest.skip("no bundled prompt.flac")
    return clip


def needs_whisper() -> None:
    for package in ("faster_whisper", *transcribe.WHISPER_PARTS):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def test_case_and_punctuation_do_not_count_as_errors():
    pytest.importorskip("jiwer")
    assert normalised_words("It\u2019s twenty-five, sir!") == ["its", "twenty", "five", "sir"]
    assert word_error_rate("Press 1; it's OK.", "press 1 its ok") == 0


def test_english_numbers_to_999_and_titles_are_words_as_they_are_said():
    said = spoken_words("Mr. Lee and Mrs. Poe, 21 to 40; OK?", "en")
    assert said == ["mister", "lee", "and", "missus", "poe", "twenty", "one", "to", "forty", "okay"]
    for number, words in {0: "zero", 12: "twelve", 80: "eighty", 99: "ninety-nine", 100: "one hundred"}.items():
        assert spoken_words(f"Dr {number}!", "en") == spoken_words(f"Doctor {words}.", "en")
    assert spoken_words("550 men", "en") == spoken_words("five hundred and fifty men", "en")
    assert spoken_words("a hundred and a half", "en") == ["a", "hundred", "and", "a", "half"]
    assert spoken_words("1984, the 5th", "en") == ["1984", "the", "5th"]


def test_in_other_languages_only_the_dots_of_abbreviations_are_respelled():
    assert spoken_words("A las 5 de la tarde, Dr. P.D.", "es") == ["a", "las", "5", "de", "la", "tarde", "dr", "pd"]
    assert spoken_words("at 10 A.M. in the U.S.A. 3.5", "") == ["at", "10", "am", "in", "the", "usa", "3", "5"]
    assert normalised_words("5 A.M., Mr") == ["5", "a", "m", "mr"]  # nothing of it counts for other word error rates


def test_word_error_rate_counts_edits_per_reference_word_and_pools_over_clips():
    pytest.importorskip("jiwer")
    assert word_error_rate("a b c d", "a x c") == 0.5
    assert word_error_rate("a b c d", "") == 1
    assert word_error_rate(["a b c", "d"], ["a b c", "x"]) == 0.25
    with pytest.raises(ValueError, match="no words"):
        word_error_rate("...", "a")
    with pytest.raises(ValueError, match="2 references"):
        word_error_rate(["a", "b"], ["a"])


def test_the_model_is_joined_once_from_both_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for package, files in zip(
        transcribe.WHISPER_PARTS, (("model.bin.part1",), ("model.bin.part2", *transcribe.WHISPER_FILES)), strict=True
    ):
        (tmp_path / package / "data").mkdir(parents=True)
        for name in files:
            (tmp_path / package / "data" / name).write_text(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(transcribe.resources, "files", lambda package: tmp_path / package)
    folder = whisper_folder()
    assert folder == tmp_path / "cache" / "codeclm" / "whisper-base"
    assert (folder / "model.bin").read_text() == "model.bin.part1model.bin.part2"
    (folder / "model.bin").write_text("kept")
    assert (whisper_folder() / "model.bin").read_text() == "kept"
    (folder / "tokenizer.json").unlink()
    assert (whisper_folder() / "model.bin").read_text() == "model.bin.part1model.bin.part2"
    assert [path.name for path in folder.parent.iterdir() if path.suffix != ".lock"] == ["whisper-base"]


@pytest.mark.slow
def test_real_speech_becomes_words_and_silence_none():
    needs_whisper()
    clip = real_clip()
    transcriber = Transcriber()
    audio = load_audio(clip, 24_000)
    text = transcriber.transcribe(audio, 24_000)
    assert len(normalised_words(text)) >= 3
    assert transcriber.transcribe(audio, 24_000) == text
    assert transcriber.detect_language(audio, 24_000) == "en"
    assert transcriber.transcribe(np.zeros(16_000, np.float32), 16_000) == ""


def test_a_language_is_given_once_for_all_clips_or_refused():
    needs_whisper()
    assert Transcriber("fr").detect_language(load_audio(real_clip(), 24_000), 24_000) == "fr"  # not asked
    with pytest.raises(ValueError, match="'french' is not one that whisper knows: af, am, "):
        Transcriber("french")
