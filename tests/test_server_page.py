"""The server's page in a real browser: a microphone, a continuation, and the sound that the browser plays."""

import base64
import json
import re
import time
import wave
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest

from codeclm.inference.loading import save_model

from .browser import CHROMIUM, complaints_of, needs_chromium, wait_until
from .serving import process, write_prompt

RATE = 8000
# every player's sound also goes to a recorder, whose samples are kept, and so are the forms that are sent
TAP = """
window.heard = [];
window.sent = [];
const ask = window.fetch;
window.fetch = (path, options = {}) => {
  if (options.body) window.sent.push(options.body);
  return ask(path, options);
};
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (target, ...rest) {
  if (this instanceof AudioWorkletNode && target === this.context.destination) {
    const tap = new AudioWorkletNode(this.context, "recorder", { numberOfOutputs: 0 });
    tap.port.onmessage = ({ data }) => window.heard.push(...data);
    connect.call(this, tap);
  }
  return connect.call(this, target, ...rest);
};
"""

SENT = """() => Promise.all(window.sent.map(async (form) => {
  const values = {};
  for (const [name, value] of form)
    values[name] = value instanceof Blob ? [...new Uint8Array(await value.arrayBuffer())] : value;
  return values;
}))"""

pytestmark = [
    pytest.mark.slow,
    needs_chromium,
]


@pytest.fixture(scope="module")
def address(tmp_path_factory, make_model, make_codec):
    folder, codec = tmp_path_factory.mktemp("paged") / "model", make_codec(codebook_size=7)
    save_model(make_model(codec=codec, context_frames=40), codec, folder)
    with process(str(folder), "--client-rate", "0") as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    playwright = pytest.importorskip("playwright.sync_api")
    speech = write_prompt(tmp_path_factory.mktemp("microphone") / "speech.wav")
    options = [
        "--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={speech}", "--autoplay-policy=no-user-gesture-required",
    ]  # fmt: skip
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["desktop", "phone"])
def page(request, browser, address):
    """Ready to be used; that nothing was complained of, and nothing runs over the edge, is seen afterwards."""
    width, scheme = request.param
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, permissions=["microphone"]
    )
    page = context.new_page()
    page.add_init_script(TAP)
    complaints = complaints_of(page)
    page.goto(address)
    page.wait_for_selector("#go:enabled")
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # the browser itself tells of a refusal, which the page then shows
    assert [complaint for complaint in complaints if "a status of 400" not in complaint] == []
    context.close()


def continued(page) -> list[dict]:
    """Press the button and wait for all versions. -> the forms that were sent for them."""
    page.click("#go")
    page.wait_for_selector("#stop:disabled")
    assert all("done" in text for text in page.locator(".status").all_inner_texts())
    return page.evaluate(SENT)


def answer(address: str, form: dict) -> np.ndarray:
    """What the server gives to whoever sends that form: int16 [S]."""
    audio = bytes(form.pop("audio"))
    assert len(audio) > 2 * RATE, "the recording was not sent"
    reply = httpx.post(f"{address}/v1/continuations", data=form, files={"audio": audio})
    pieces = [json.loads(line).get("audio", "") for line in reply.text.splitlines()]
    return np.frombuffer(b"".join(map(base64.b64decode, pieces)), "<i2")


def saved(page, index: int, folder: Path) -> np.ndarray:
    """The file of a version: int16 [S]."""
    with page.expect_download() as download:
        page.locator(".save").nth(index).click()
    download.value.save_as(folder / "saved.wav")
    with wave.open(str(folder / "saved.wav")) as file:
        assert (file.getframerate(), file.getnchannels()) == (RATE, 1)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def sounding(samples: np.ndarray) -> np.ndarray:
    """Without zeros: the silence before, after, and where the browser had to wait."""
    return samples[samples != 0]


def test_a_microphone_is_recorded_and_the_page_plays_the_bytes_that_the_server_gives(page, address, tmp_path):
    page.click("#record")
    wait_until(page, "document.getElementById('prompt-name').textContent.startsWith('Recording: 1')")
    page.click("#record")
    assert page.inner_text("#prompt-name") == "Your recording"
    page.fill("#setting-duration", "2")
    for index, form in enumerate(continued(page)):
        given, kept = answer(address, form), saved(page, index, tmp_path)
        # asked again it is drawn alone: float32 sums in another order
        assert len(given) == len(kept) == 2 * RATE and np.abs(given.astype(int) - kept).max() <= 8
        if index == 1:  # the first one played by itself while it came
            page.evaluate("window.heard.length = 0")
            page.locator(".play").nth(1).click()
        # float32 has room for 16 bits: what is heard is what was sent
        wanted = sounding(kept)
        wait_until(page, f"window.heard.filter((value) => value !== 0).length >= {len(wanted)}")
        heard = np.array(page.evaluate("window.heard")) * 32768
        assert np.array_equal(sounding(heard), wanted)


def test_a_version_is_drawn_while_it_comes_and_the_keyboard_moves_through_it(page):
    page.fill("#versions", "1")
    page.fill("#setting-duration", "2")
    page.focus("#go")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop:disabled")
    colours = page.evaluate(
        "[...document.querySelectorAll('canvas')].map(c => new Set("
        "c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size)"
    )
    assert len(colours) == 2 and min(colours) > 10
    page.focus(".place")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert re.fullmatch(r"0\.\d of 2\.0 seconds", page.get_attribute(".place", "aria-valuetext"))
    assert "bits/s" in page.inner_text(".status")


def test_what_the_server_refuses_is_said_and_stopping_stops(page, address):
    page.fill("#versions", "1")
    page.fill("#setting-duration", "1000")
    page.click("#go")
    wait_until(page, "document.querySelector('.status')?.textContent.includes('this server gives at most')")
    page.fill("#setting-duration", "50")
    page.click("#go")
    wait_until(page, "document.querySelector('.status')?.textContent.startsWith('speaking')")
    page.click("#stop")
    wait_until(page, "document.querySelector('.status').textContent.startsWith('stopped')")
    for _ in range(100):
        if httpx.get(f"{address}/health").json()["open"] == 0:
            return
        time.sleep(0.1)
    raise AssertionError("the session goes on")


def test_a_file_is_a_prompt_and_can_be_taken_back(page, tmp_path):
    write_prompt(tmp_path / "mine.wav")
    page.set_input_files("#file", tmp_path / "mine.wav")
    assert page.inner_text("#prompt-name") == "mine.wav" and page.is_visible("#prompt-sound")
    page.click("#forget")
    assert "begins by itself" in page.inner_text("#prompt-name") and not page.is_visible("#prompt-sound")
