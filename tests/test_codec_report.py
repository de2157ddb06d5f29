"""The codec report on tiny codecs: the numbers, the table, and what is left out by name."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from codeclm.data.audio_out import save_audio
from codeclm.inference.codec import report as module
from codeclm.inference.codec.report import CodecReport, TextErrors, codebook_use, codec_report
from codeclm.inference.codec.table import table
from codeclm.model.codecs import Codec, load_codec

RATE = 16_000


@pytest.fixture(scope="module")
def codecs(make_codec) -> dict[str, Codec]:
    return {"tiny": make_codec(), "mulaw": load_codec("mulaw")}


@pytest.fixture(scope="module")
def clips(make_clips, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_clips(tmp_path_factory.mktemp("clips"), ["clip0.wav", "clip1.wav"])


@pytest.fixture(scope="module")
def report(clips: list[Path], codecs: dict[str, Codec]) -> CodecReport:
    broken, silent = (clips[0].with_name(name) for name in ("broken.wav", "silent.wav"))
    broken.write_bytes(b"not audio")
    save_audio(silent, np.zeros(RATE), RATE)
    return codec_report([clips[0], broken, silent, clips[1]], codecs, anchors=False)


def test_every_clip_is_measured_for_every_codec_and_unusable_ones_are_named(report: CodecReport):
    assert [clip.name for clip in report.clips] == ["clip0.wav", "clip1.wav"]
    assert [row.codec for row in report.rows] == ["tiny", "mulaw"]
    assert len(report.skipped) == 2 and "broken.wav" in report.skipped[0] and "silent.wav" in report.skipped[1]
    for row in report.rows:
        values = [clip.log_mel_distance for clip in row.measures]
        assert row.mean.log_mel_distance == pytest.approx(np.mean(values)) and len(values) == 2
        assert np.isnan(row.mean.word_error_rate)


def test_the_codec_that_keeps_more_is_rated_higher_and_pays_in_bits(report: CodecReport):
    tiny, mulaw = report.codecs
    assert (tiny.bitrate, tiny.frame_rate, tiny.num_frames) == (900, 100, 200)
    assert (mulaw.bitrate, mulaw.frame_rate, mulaw.num_frames) == (64_000, 8_000, 16_000)
    assert mulaw.mean.si_sdr_db > 5 > tiny.mean.si_sdr_db
    assert mulaw.mean.stoi > 0.9 > tiny.mean.stoi
    assert mulaw.mean.pesq_wb < 4.3  # the half of the spectrum that 8 kHz cannot hold counts as lost
    assert [len(row.codebooks) for row in report.codecs] == [3, 1]


def test_speed_and_memory_are_measured_and_how_is_said(report: CodecReport):
    for row in report.codecs:
        assert row.cost.encode_speed > 0 and row.cost.decode_speed > 0
        assert row.cost.peak_memory_mb >= 0 or not Path("/proc/self/clear_refs").exists()
    text = table(report)
    assert "wall clock, one thread of torch" in text and "resident memory (RSS)" in text


def test_the_table_has_a_line_for_each_codec_and_codebook(report: CodecReport):
    lines = table(report).splitlines()
    assert lines[0].split()[:5] == ["codec", "bits/s", "frames/s", "codes", "Hz"] and "WER" not in lines[0]
    assert lines[1].split()[:7] == ["tiny", "900", "100", "3", "x", "8", "8000"]
    assert lines[2].split()[:7] == ["mulaw", "64000", "8000", "1", "x", "256", "8000"]
    assert [line.split()[0] for line in lines[5:8]] == ["0", "1", "2"]
    assert "Means over 2 clips, 2.0 s." in lines and lines[-1].startswith("skipped")


def test_the_report_is_valid_json_though_some_measures_are_not_defined(report: CodecReport):
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["codecs"][0]["mean"]["word_error_rate"] is None
    assert values["codecs"][0]["measures"][0]["stoi"] < 1
    assert len(values["clips"]) == 2 and "samples" not in values


class Typist:
    """Stands in for the recogniser: of each clip the language once, and what is heard in it and in each output."""

    def __init__(self, *clips: tuple[str, list[str]]):
        self.languages = [language for language, _ in clips]
        self.texts = [text for _, texts in clips for text in texts]
        self.language = ""

    def detect_language(self, audio: np.ndarray, sample_rate: int) -> str:
        self.language = self.languages.pop(0)
        return self.language

    def transcribe(self, audio: np.ndarray, sample_rate: int, language: str) -> str:
        assert language == self.language
        return self.texts.pop(0)


def test_the_mean_word_error_rate_is_pooled_over_words(
    clips: list[Path], codecs: dict[str, Codec], monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("jiwer")
    heard = ("en", ["one two three", "one two three"]), ("en", ["four", "five six"])
    monkeypatch.setattr(module, "Transcriber", lambda language: Typist(*heard))
    report = codec_report(clips, {"tiny": codecs["tiny"]}, asr=True, anchors=False)
    row = report.codecs[0]
    assert [clip.word_error_rate for clip in row.measures] == [0, 2]
    assert row.mean.word_error_rate == 0.5
    assert row.transcripts == ["one two three", "five six"] and report.clips[1].transcript == "four"
    text = table(report)
    assert "50.0%" in text and "clip1.wav" in text  # one codec: clip by clip too
    assert "WER text" not in text and report.to_dict()["originals"] is None


@pytest.fixture
def texts(make_clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three clips, two of them with a true text, and what will be heard in them and in one codec's output."""
    pytest.importorskip("jiwer")
    clips = make_clips(tmp_path, ["five.wav", "none.wav", "yes.wav"])
    clips[0].with_suffix(".txt").write_text("Five words are\nsaid here.\n")
    clips[2].with_suffix(".txt").write_text("Yes!")
    heard = (
        ("en", ["5 words are set here", "five birds are set"]),
        ("fr", ["cinq mots", "sept mots"]),
        ("en", ["yes", "no"]),
    )
    monkeypatch.setattr(module, "Transcriber", lambda language: Typist(*heard))
    return clips


def test_originals_and_codecs_are_compared_with_the_texts_beside_the_clips(texts: list[Path], codecs: dict[str, Codec]):
    report = codec_report(texts, {"tiny": codecs["tiny"]}, asr=True, anchors=False)
    row = report.codecs[0]
    assert report.originals == TextErrors(2, 6, pytest.approx(1 / 6))
    assert row.mean.text_error_rate == pytest.approx(4 / 6)
    assert [clip.text_error_rate for clip in row.measures] == pytest.approx([3 / 5, np.nan, 1], nan_ok=True)
    assert row.mean.word_error_rate == pytest.approx((3 + 1 + 1) / 8)  # as ever: "5" is not "five"
    assert [clip.text for clip in report.clips] == ["Five words are said here.", "", "Yes!"]
    assert [clip.language for clip in report.clips] == ["en", "fr", "en"]
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["originals"] == {"num_clips": 2, "num_words": 6, "word_error_rate": pytest.approx(1 / 6)}
    assert [clip["text_error_rate"] for clip in values["clips"]] == [0.2, None, 0]


def test_the_table_shows_errors_against_texts_and_those_on_the_originals(texts: list[Path], codecs: dict[str, Codec]):
    lines = table(codec_report(texts, {"tiny": codecs["tiny"]}, asr=True, anchors=False)).splitlines()
    assert lines[0].split()[-6:] == ["WER", "WER", "text", "encode", "decode", "MB"]
    assert lines[1].split()[-5:-3] == ["62.5%", "66.7%"]
    assert lines[3].split()[-4:] == ["WER", "WER", "text", "(original)"]
    assert [line.split()[-2:] for line in lines[4:7]] == [["60.0%", "20.0%"], ["-", "-"], ["100.0%", "0.0%"]]
    note = "against the transcripts beside 2 clips (6 words); on the originals themselves whisper-base makes 16.7%."
    assert note in "\n".join(lines)


def test_the_language_is_what_the_user_says_it_is(
    clips: list[Path], codecs: dict[str, Codec], monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("jiwer")
    heard = [("fr", ["un", "un"]), ("fr", ["deux", "deux"])]
    monkeypatch.setattr(module, "Transcriber", lambda language: {"fr": Typist(*heard)}[language])
    report = codec_report(clips, {"tiny": codecs["tiny"]}, asr=True, anchors=False, language="fr")
    assert report.codecs[0].mean.word_error_rate == 0
    with pytest.raises(ValueError, match="'fr' is only of use to transcripts"):
        codec_report(clips, {"tiny": codecs["tiny"]}, anchors=False, language="fr")


def test_a_text_that_cannot_be_read_leaves_its_clip_out_by_name(texts: list[Path], codecs: dict[str, Codec]):
    texts[0].with_suffix(".txt").write_bytes(b"\xff\xfe")
    assert codec_report(texts[:1], {"tiny": codecs["tiny"]}, anchors=False).skipped == []  # not needed: not read
    with pytest.raises(ValueError, match="five.txt is not UTF-8"):
        codec_report(texts[:1], {"tiny": codecs["tiny"]}, asr=True, anchors=False)


def test_without_the_extra_its_columns_are_left_out_by_name_and_the_rest_is_measured(
    clips: list[Path], codecs: dict[str, Codec], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "pesq", None)
    report = codec_report(clips[:1], {"tiny": codecs["tiny"]}, anchors=False)
    assert report.unavailable == ["pesq_wb"] and report.to_dict()["codecs"][0]["mean"]["pesq_wb"] is None
    assert report.codecs[0].mean.stoi > 0
    heading, *_, last = table(report).splitlines()
    assert "STOI" in heading and "PESQ-WB" not in heading
    assert last == "PESQ-WB is left out: it needs the extra 'eval'."


def test_a_clip_that_one_codec_cannot_render_is_left_out_for_all(
    clips: list[Path], codecs: dict[str, Codec], monkeypatch: pytest.MonkeyPatch
):
    calls = []

    def through(codec: Codec, audio: np.ndarray):
        calls.append(codec)
        if codec is codecs["mulaw"] and calls.count(codec) == 2:  # the first call warms up
            raise ValueError("mulaw gave up")
        return real(codec, audio)

    real = module.through
    monkeypatch.setattr(module, "through", through)
    report = codec_report(clips, codecs, anchors=False)
    assert [clip.name for clip in report.clips] == ["clip1.wav"]
    assert [len(row.measures) for row in report.rows] == [1, 1]
    assert report.codecs[0].num_frames == 100 and "clip0.wav: mulaw gave up" in report.skipped[0]


def test_no_usable_clip_is_an_error_that_says_why(codecs: dict[str, Codec], tmp_path: Path):
    with pytest.raises(ValueError, match="no such file"):
        codec_report([tmp_path / "missing.wav"], codecs, anchors=False)
    with pytest.raises(ValueError, match="no codec was given"):
        codec_report([tmp_path / "missing.wav"], {})


def test_codebook_use_of_even_and_of_single_entries():
    assert codebook_use(np.array([5, 5, 0, 0])).used_share == 0.5
    assert codebook_use(np.array([5, 5, 0, 0])).perplexity == pytest.approx(2)
    assert codebook_use(np.array([0, 9, 0, 0])).perplexity == pytest.approx(1)
