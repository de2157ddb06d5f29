"""train/run_page.py: a run's page shows its numbers, needs nothing else, and is written while the run goes on."""

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeclm.data.audio import load_audio
from codeclm.data.audio_out import save_audio
from codeclm.model.pretrained import PROMPT
from codeclm.train import canary, loop, run_page
from codeclm.train.charts import Line, chart, round_numbers
from codeclm.train.new_model import new_model

from .browser import needs_chromium, shown, wait_until
from .test_report_page import Reader
from .training import SHORT, metrics

pytestmark = pytest.mark.usefixtures("one_thread")
NASTY = '"><script>alert(1)</script>&<b>'
HEARD = replace(SHORT, canary=2, canary_share=1.0, evaluate_every=4)


@pytest.fixture(scope="module")
def folder(store, codec, tmp_path_factory) -> Path:
    """A run of 12 steps, looked at every four, with samples, and compared as a fine-tune is."""
    out = tmp_path_factory.mktemp("run") / "short"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canary, "PROMPT_S", 0.2)
        patch.setattr(canary, "DURATION_S", 0.4)
        patch.setattr(canary, "find_spec", lambda name: None)
        loop.train(new_model(store, HEARD), codec, store, out, HEARD)
    rows = [{"name": NASTY, "minutes": 2.0, "before": 1000.0, "after": 750.0}]
    (out / "comparison.json").write_text(json.dumps({"identity": {}, "rows": rows}))
    return out


def labels(text: str) -> list[str]:
    return [str(attributes["aria-label"]) for attributes in Reader(text).all("svg")]


def test_a_run_writes_its_page_and_the_curves_are_those_of_its_metrics(folder):
    text = (folder / "run.html").read_text()
    found = metrics(folder, "heldout_bits_per_second")
    assert list(found) == [0, 4, 8, 12]
    named = {label.partition(":")[0]: label for label in labels(text)}
    assert f"from {found[0]:.4g} at step 0 to {found[12]:.4g} at step 12" in named["Held-out speech, bits/s"]
    bits = metrics(folder, "heldout_bits_per_codebook")
    for k in range(2):
        assert f"from {bits[0][k]:.4g} at step 0 to {bits[12][k]:.4g} at step 12" in named[f"Codebook {k}"]
    assert set(named) >= {"Loss, nats per code", "Learning rate", "Gradient norm", "Speed, codes per second"}
    assert text.count('class="band"') == 2 and "<h2>Before and after</h2>" not in text


def test_the_band_is_where_the_bits_normally_are(folder):
    unigram, bits = metrics(folder, "unigram_bits_per_codebook")[0], metrics(folder, "heldout_bits_per_codebook")
    figure = re.findall(r"<figure><figcaption>Codebook 1</figcaption>.*?</figure>", (folder / "run.html").read_text())[
        0
    ]
    top, height = (float(value) for value in re.findall(r'class="band".*? y="(.*?)".*? height="(.*?)"', figure)[0])
    places = [tuple(map(float, place.split(","))) for place in re.findall(r'points="(.*?)"', figure)[0].split()]
    per_bit = (places[-1][1] - places[0][1]) / (bits[0][1] - bits[12][1])  # downwards
    assert top == pytest.approx(places[0][1] + per_bit * (bits[0][1] - 1.02 * unigram[1]), abs=0.3)
    assert height == pytest.approx(per_bit * (1.02 - 0.4) * unigram[1], abs=0.3)


def test_the_page_holds_the_samples_of_several_steps_and_asks_for_nothing(folder):
    reader = Reader(text := run_page.page(folder))
    sounds = [str(attributes["aria-label"]) for attributes in reader.all("audio")]
    assert len(sounds) == 6 and [sound.split(":")[0] for sound in sounds[:3]] == ["step 4", "step 8", "step 12"]
    sources = [value for _, attributes in reader.found for key, value in attributes.items() if key in ("src", "href")]
    assert len(sources) == 6 and all(str(source).startswith("data:audio/flac;base64,") for source in sources)
    assert not re.search(r"https?://|@import|url\(|<script", text)
    assert "<h2>Before and after</h2>" in text and "-25.0%" in text


def test_the_page_is_smaller_than_its_samples_however_many_there_are(folder, tmp_path):
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(folder / name, tmp_path)
    noise = 0.1 * np.random.default_rng(0).standard_normal(8000)
    for step in range(0, 100, 5):
        for number in range(4):
            save_audio(tmp_path / f"samples/step-{step:08d}/{number:02d}-{number}.wav", noise, 8000)
    reader = Reader(run_page.page(tmp_path))
    sounds = [str(attributes["aria-label"]).split(":")[0] for attributes in reader.all("audio")]
    assert len(sounds) == run_page.PROMPTS * run_page.LOOKS
    assert sounds[: run_page.LOOKS] == ["step 0", "step 25", "step 50", "step 70", "step 95"]


def test_names_and_settings_are_no_markup(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text()) | {"command": NASTY}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("metrics.jsonl", "comparison.json"):
        shutil.copy(folder / name, tmp_path)
    save_audio(tmp_path / "samples/step-00000004/01-<b>&.wav", np.full(800, 0.1), 8000)
    text = run_page.page(tmp_path)
    assert "<script" not in text and "<b>" not in text and text.count("&lt;script&gt;") == 2


def test_a_run_of_an_older_version_has_a_page_of_what_it_knows(tmp_path, capsys):
    lines = [{"step": step, "heldout_bits_per_second": 100.0 - step} for step in (0, 10)]
    lines.append({"step": 20, "heldout_bits_per_second": None, "heldout_bits_per_codebook": [1.5, None]})
    (tmp_path / "config.json").write_text(json.dumps({"run": "the training of a language model", "steps": 20}))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3')
    (tmp_path / "comparison.json").write_text('{"rows": [{"voice": 1}]}')
    run_page.main([str(tmp_path)])
    assert "run.html: open it in a browser" in capsys.readouterr().out
    text = (tmp_path / "run.html").read_text()
    assert "This run does not say what is normal." in text and "1 line cannot be read" in text
    named = [label.partition(":")[0] for label in labels(text)]
    assert named == ["Held-out speech, bits/s", "Codebook 0"]


def test_a_page_is_made_of_whatever_lines_there_are_already(folder, tmp_path):
    shutil.copy(folder / "config.json", tmp_path)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    looks = [line for line in lines if "heldout_bits_per_second" in line]
    for some in ([], looks, *([line] for line in lines)):
        (tmp_path / "metrics.jsonl").write_text("".join(some))
        text = run_page.page(tmp_path)
        assert "<h1>Training run" in text and ("<svg" in text) == any("canary" not in line for line in some)


def test_what_is_no_run_is_told_in_a_line(tmp_path):
    with pytest.raises(SystemExit, match="this is no training run"):
        run_page.main([str(tmp_path)])
    with pytest.raises(SystemExit, match="usage"):
        run_page.main([])


def test_a_run_goes_on_where_its_page_cannot_be_written(store, codec, tmp_path, caplog):
    (tmp_path / "run.html").mkdir()
    with caplog.at_level(logging.WARNING):
        loop.train(new_model(store, SHORT), codec, store, tmp_path, SHORT)
    assert "run.html was not written" in caplog.text and (tmp_path / "model/config.json").is_file()


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(2, 6))
def test_axes_have_a_few_round_numbers_around_the_values(low, span, count):
    ticks = round_numbers(low, low + span, count)
    slack = 1e-6 * max(1.0, abs(low), span)
    assert 2 <= len(ticks) <= count + 2 and ticks[0] < ticks[1]
    assert ticks[0] <= low + slack and ticks[-1] >= low + span - slack
    assert len({round(step / (ticks[1] - ticks[0]), 3) for step in np.diff(ticks)}) == 1


def test_a_long_curve_is_drawn_by_the_means_of_its_pieces():
    steps = np.arange(100_000)
    points = Line("loss", steps, np.where(steps % 2, 1.0, 3.0), "red").points
    assert len(points) == 400 and np.allclose(points[:, 1], 2.0) and points[-1, 0] > 99_800
    figures = [chart("loss", [Line("loss", range(n), np.ones(n), "red", has_dots=True)]) for n in (60, 61, 100_000)]
    assert [figure.count("<circle") for figure in figures] == [60, 0, 0] and len(figures[2]) < 10_000
    assert chart("nothing", [Line("loss", [1, 2], [np.nan, np.inf], "red")]) == ""


@pytest.mark.slow
@needs_chromium
def test_a_browser_draws_the_page_and_plays_a_sample(folder, tmp_path):
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(folder / name, tmp_path)
    for step in (4, 12):
        save_audio(tmp_path / f"samples/step-{step:08d}/01-voice.wav", load_audio(PROMPT, 16_000)[:32_000], 16_000)
    run_page.main([str(tmp_path)])
    for page in shown(tmp_path / "run.html"):
        wait_until(page, "[...document.querySelectorAll('audio')].every(a => a.readyState >= 1)")
        sizes = page.evaluate("[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width)")
        width = page.viewport_size["width"]
        assert len(sizes) == 7 and min(sizes) > 100 and max(sizes) <= width
        page.evaluate("document.querySelector('audio').play()")
        wait_until(page, "document.querySelector('audio').played.length > 0")
        page.locator("summary").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("details").first.get_attribute("open") is not None
