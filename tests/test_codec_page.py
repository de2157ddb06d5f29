"""The page of the codec report: whole, self-contained, and deaf to markup in names."""

import base64
import io
import json
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from codeclm.inference.codec.page import page
from codeclm.inference.codec.report import CodecReport, TextErrors, codec_report
from codeclm.inference.sound.compare import ClipMeasures
from codeclm.model.codecs import load_codec
from codeclm.train.cli import main

RATE = 16_000
VOID = ("meta", "img")
NASTY = '<script>alert("x")</script>&'


class Reader(HTMLParser):
    """Elements with their attributes, and the text; every element must be closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def sources(self, tag: str) -> list[str]:
        return [str(attributes["src"]) for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def report(make_codec, make_clips, tmp_path_factory: pytest.TempPathFactory) -> CodecReport:
    paths = make_clips(tmp_path_factory.mktemp("clips"), ["clip0 & <b>.wav", "clip1 & <b>.wav"])
    codecs = {NASTY: make_codec(), "mulaw": load_codec("mulaw")}
    return codec_report(paths, codecs, anchors=False, num_samples=1)


def test_the_page_needs_nothing_from_elsewhere_and_its_sounds_play(report: CodecReport):
    reader = Reader(page(report, "title"))
    players = reader.sources("audio")
    assert len(players) == 3  # the original and two codecs, of one clip
    for player in players:
        kind, content = player.split(";base64,")
        audio, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
        assert (kind, rate, len(audio)) == ("data:audio/flac", RATE, RATE) and np.abs(audio).max() > 0.01
    original, tiny, _ = (soundfile.read(io.BytesIO(base64.b64decode(p.split(",")[1])))[0] for p in players)
    assert np.abs(original - report.samples[0].original).max() < 1e-4 and np.abs(original - tiny).max() > 0.01
    addresses = [v for _, attributes in reader.found for k, v in attributes.items() if k in ("src", "href")]
    assert all(str(address).startswith("data:") for address in addresses)
    assert "script" not in [name for name, _ in reader.found]


def test_pictures_are_drawn_and_differ_between_codecs(report: CodecReport):
    image = pytest.importorskip("matplotlib.image")
    pictures = [
        image.imread(io.BytesIO(base64.b64decode(source.split(",")[1])))
        for source in Reader(page(report, "title")).sources("img")
    ]
    assert len(pictures) == 3
    assert all(len(np.unique(picture.reshape(-1, 4), axis=0)) > 100 for picture in pictures)
    assert np.abs(pictures[0] - pictures[1]).mean() > 1e-3
    assert all(picture[0, 0, 3] == 0 for picture in pictures)  # clear ground: they suit a dark page too


def test_names_and_transcripts_are_shown_as_text_and_never_become_markup(report: CodecReport):
    clips = [replace(clip, transcript=NASTY, text=NASTY, language="en") for clip in report.clips]
    noisy = replace(report, clips=clips, skipped=[f"{NASTY}: broken"], left_out=[NASTY])
    content = page(noisy, NASTY)
    assert "<script" not in content and "<b>" not in content
    reader = Reader(content)
    # title, heading, table, codebooks (2), text, caption, transcript, skipped, left out
    assert reader.text.count(NASTY) == 10
    assert "clip0 & <b>.wav" in reader.text
    labels = [attributes["aria-label"] for name, attributes in reader.found if name == "audio"]
    assert labels == ["original", NASTY, "mulaw"]


def test_the_page_shows_the_table_and_says_what_is_missing(report: CodecReport):
    content = page(replace(report, unavailable=["pesq_wb"], left_out=["Opus 6k is left out: no ffmpeg"]), "title")
    text = Reader(content).text
    assert "needs the extra 'eval'" in text and "Opus 6k is left out: no ffmpeg" in text
    assert "PESQ-WB" in text and "64000" in text and "perplexity" in text


def test_errors_against_true_texts_stand_in_the_table_below_the_players_and_in_the_notes(report: CodecReport):
    def of(rate: float, measures: ClipMeasures) -> ClipMeasures:
        return replace(measures, word_error_rate=rate, text_error_rate=rate / 2)

    rows = [
        replace(row, mean=of(0.5, row.mean), measures=[of(0.1, clip) for clip in row.measures], transcripts=["yes", ""])
        for row in report.codecs
    ]
    clips = [replace(clip, text="Yes.", transcript="yes", language="en", text_error_rate=0) for clip in report.clips]
    shown = replace(report, codecs=rows, clips=clips, originals=TextErrors(2, 91, 0.033))
    reader = Reader(page(shown, "title"))
    assert "beside 2 clips (91 words); on the originals themselves whisper-base makes 3.3%." in reader.text
    assert reader.text.count("50.0%25.0%") == 2 and reader.text.count(", WER 10.0%, WER text 5.0%") == 2
    assert "1.0 s, WER text 0.0%" in reader.text and "Its text: \u201cYes.\u201d" in reader.text
    assert reader.text.count("\u201cyes\u201d") == 3 and "No words were heard." not in reader.text
    silent = replace(shown, codecs=[replace(row, transcripts=["", ""]) for row in rows])
    assert Reader(page(silent, "title")).text.count("No words were heard.") == 2
    text = Reader(page(report, "title")).text
    assert "WER text" not in text and "No words were heard." not in text


def test_the_command_writes_the_page_and_the_numbers_and_prints_the_table(make_clips, tmp_path: Path, capsys):
    make_clips(tmp_path, ["a.wav"])
    files = ("--html", str(tmp_path / "new/page.html"), "--json", str(tmp_path / "new/report.json"))
    main(["codec", "report", str(tmp_path / "a.wav"), "--codec", "mulaw", "mdct", "--no-anchors", *files])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:3]] == ["codec", "mulaw", "mdct"]
    assert len(Reader((tmp_path / "new/page.html").read_text()).sources("audio")) == 3
    values = json.loads((tmp_path / "new/report.json").read_text())
    assert [row["codec"] for row in values["codecs"]] == ["mulaw", "mdct"] and values["anchors"] == []
    assert any("one thread" in note for note in values["notes"])


def test_without_matplotlib_the_page_says_what_its_pictures_need(report: CodecReport, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    reader = Reader(page(report, "title"))
    assert reader.sources("img") == [] and len(reader.sources("audio")) == 3
    assert reader.text.count("needs the extra 'demo'") == 3
