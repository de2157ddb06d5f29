"""The page of continuations: tables and players of some prompts; names and transcripts are no markup."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from codeclm.data.audio_out import save_audio
from codeclm.inference.evaluate.quality.judges import Judges
from codeclm.inference.evaluate.quality.page import MOST_ITEMS, continuations_page
from codeclm.inference.evaluate.quality.run import Continuing, continuation_report

from .browser import needs_chromium, shown, wait_until
from .known_answer import RATE, KnownAnswer, by_pitch, speech
from .test_report_page import Reader

NASTY = '</script><script>alert("x")</script>&<b>'


class Listener:
    """Hears the same in everything."""

    def detect_language(self, audio: np.ndarray, sample_rate: int) -> str:
        return "en"

    def transcribe(self, audio: np.ndarray, sample_rate: int, language: str) -> str:
        return NASTY


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    for number in range(MOST_ITEMS + 1):
        save_audio(folder / f"voice{number}/<b>.wav", speech(120 + 20 * number, 3.0), RATE)
    (folder / "voice0/<b>.txt").write_text(NASTY)
    lm = KnownAnswer(speech(130))
    judges = Judges(lambda audio, rate: 3.5, by_pitch, Listener(), lambda text: (7.0, 5))  # type: ignore[arg-type]
    files = sorted(folder.rglob("*.wav"))
    report = continuation_report(lm, files, Continuing(1.0, 2.0), judges, folder / "out")  # type: ignore[arg-type]
    return continuations_page(report, folder / "out", lm).html()  # type: ignore[arg-type]


def test_the_page_has_the_tables_and_three_players_for_each_prompt_that_is_shown(html: str):
    reader = Reader(html)
    players = [str(audio["aria-label"]) for audio in reader.all("audio")]
    names = ["prompt and continuation", "the recording after the codec", "the recording"]
    assert players == names * (len(players) // 3) and 3 <= len(players) // 3 <= MOST_ITEMS
    assert len(reader.all("table")) == 5 and "another&#x27;s continuation" in html
    sounds = [json.loads(script) for script in reader.scripts[: len(players)]]
    assert {sound["prompt_s"] for sound in sounds} == {1.0}
    assert [round(sound["seconds"], 2) for sound in sounds[:3]] == [3.0, 3.0, 3.0]
    assert "MOS 3.50" in html and "<td>4 (4-4)</td>" in html  # exp(7 / 5)


def test_names_and_words_are_no_markup_and_nothing_is_loaded_from_elsewhere(html: str):
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html and "<b>" not in html
    assert not re.search(r"https?://|@import|url\(", html)


@pytest.mark.slow
@needs_chromium
def test_a_browser_plays_the_continuations_and_nothing_runs_over_the_edge(html: str, tmp_path: Path):
    (tmp_path / "page.html").write_text(html)
    for page in shown(tmp_path / "page.html"):
        wait_until(page, "[...document.querySelectorAll('audio')].every(a => a.readyState >= 2)")
        page.locator(".sound .tracks").first.focus()
        page.keyboard.press("Space")
        wait_until(page, "document.querySelector('audio').played.length > 0")
