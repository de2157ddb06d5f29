"""The page of recordings: it holds all that it shows, names are no markup, and a browser draws and plays it."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from codeclm.data.audio import load_audio
from codeclm.inference.report.page import Page, Section, Table
from codeclm.inference.report.tracks import Sound, Word, surprising_moments, tracks
from codeclm.model.pretrained import PROMPT
from codeclm.train.cli import main

from .browser import needs_chromium, shown, wait_until

RATE, FRAME_RATE = 16_000, 25.0
NASTY = '</script><script>alert("x")</script>&<b>'


class Reader(HTMLParser):
    """Elements with their attributes, and the text of each script."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and data.strip():
            self.scripts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def speech() -> np.ndarray:
    return load_audio(PROMPT, RATE)[: 2 * RATE]


def sound(name: str = "recording") -> Sound:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1024, (8, 50))
    bits = rng.exponential(5.0, (8, 50))
    words = [Word(NASTY, 0.1, 0.5), Word("there", 0.6, 1.0)]
    return Sound(name, speech(), RATE, NASTY, FRAME_RATE, codes, bits, 1.0, words, "hello there")


@pytest.fixture(scope="module")
def html() -> str:
    table = Table("codebooks", [["a", "b"], [NASTY, "1"]])
    return Page(NASTY, [NASTY], [Section(NASTY, [], [sound(NASTY), sound("other")], [table])]).html()


def test_the_page_asks_for_nothing_from_elsewhere(html: str):
    reader = Reader(html)
    sources = [value for _, attributes in reader.found for key, value in attributes.items() if key in ("src", "href")]
    assert len(sources) == 2 and all(str(source).startswith("data:audio/flac;base64,") for source in sources)
    assert not re.search(r"https?://|@import|url\(", html)


def test_only_the_pages_own_script_may_run(html: str):
    reader = Reader(html)
    policy = str(next(m["content"] for m in reader.all("meta") if m.get("http-equiv") == "Content-Security-Policy"))
    kinds = [attributes.get("type") for attributes in reader.all("script")]
    assert kinds == ["application/json", "application/json", None] and "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy and "unsafe-inline'; script-src" in policy


def test_names_and_words_are_shown_and_are_no_markup(html: str):
    assert "<script>alert" not in html and html.count("&lt;script&gt;alert") >= 6 and "<b>" not in html


def test_the_tracks_are_those_of_the_sound(html: str):
    values = json.loads(Reader(html).scripts[0])
    assert values == json.loads(json.dumps(tracks(sound())))
    assert (
        np.allclose(values["surprise"], sound().surprise_bits, atol=0.01) and values["codes"] == sound().codes.tolist()
    )  # type: ignore[union-attr]
    levels = np.frombuffer(base64.b64decode(values["spectrogram"]["levels"]), np.uint8)
    assert len(levels) == values["spectrogram"]["bands"] * values["spectrogram"]["columns"] and levels.max() == 255
    assert 60 < np.median([hz for hz in values["pitch"] if hz]) < 400


def test_the_sound_on_the_page_is_the_recording(html: str):
    source = str(Reader(html).all("audio")[0]["src"])
    audio, rate = soundfile.read(io.BytesIO(base64.b64decode(source.partition(",")[2])), dtype="float32")
    assert rate == RATE and np.abs(audio - speech()).max() < 1e-4


def test_surprising_moments_are_the_dearest_frames_that_lie_apart():
    bits = np.zeros((2, 100))
    bits[0, 10], bits[1, 12], bits[0, 60] = 9.0, 8.0, 5.0
    found = surprising_moments(bits, FRAME_RATE, most=2, apart_s=0.4)
    assert [(moment.time_s, moment.bits) for moment in found] == [(0.4, 9.0), (2.4, 5.0)]


@pytest.mark.slow
def test_a_minute_of_speech_is_a_page_of_under_5_megabytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    minute = np.tile(load_audio(PROMPT, RATE), 13)[: 60 * RATE]
    soundfile.write(tmp_path / "minute.wav", minute, RATE)
    out = tmp_path / "page"
    main(["report", str(tmp_path / "minute.wav"), "--out", str(out), "--duration", "1", "--continuations", "1"])
    page = (out / "report.html").read_text()
    assert len(page) < 5e6 and "report.html" in capsys.readouterr().out
    reader = Reader(page)
    rendering = json.loads(reader.scripts[1])
    assert len(reader.all("audio")) == 3 and len(rendering["surprise"][0]) == 60 * FRAME_RATE
    assert 1700 < rendering["spectrogram"]["columns"] <= 1801


@pytest.mark.slow
def test_a_recording_that_cannot_be_used_is_named_and_the_others_are_shown(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", speech(), RATE)
    soundfile.write(tmp_path / "b.wav", np.zeros(RATE), RATE)
    main(["report", str(tmp_path), "--out", str(tmp_path / "page"), "--continuations", "0"])
    page = (tmp_path / "page/report.html").read_text()
    assert "skipped" in page and "b.wav: silent" in page and len(Reader(page).all("audio")) == 2


@pytest.mark.slow
@needs_chromium
def test_a_browser_draws_every_track_plays_the_sound_and_obeys_the_keyboard(html: str, tmp_path: Path):
    (tmp_path / "page.html").write_text(html)
    for page in shown(tmp_path / "page.html"):
        wait_until(page, "[...document.querySelectorAll('audio')].every(a => a.readyState >= 2)")
        drawn = page.evaluate(
            "[...document.querySelectorAll('canvas')].map(c => new Set("
            "c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size)"
        )
        assert len(drawn) == 8 and min(drawn) > 2
        sound = page.locator(".sound").first
        tracks_of = sound.locator(".tracks")
        tracks_of.focus()
        page.keyboard.press("End")
        page.keyboard.press("ArrowLeft")
        assert float(tracks_of.get_attribute("aria-valuenow")) == pytest.approx(2.0 - 1 / FRAME_RATE, abs=0.02)
        sound.locator(".moments button").first.click()
        wait_until(page, "document.querySelector('audio').played.length > 0")
