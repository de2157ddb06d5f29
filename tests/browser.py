"""A page in headless Chromium, where it is installed."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)


def complaints_of(page) -> list[str]:
    """What the browser's console will say, and errors of scripts."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text))
    page.on("pageerror", lambda error: found.append(str(error)))
    return found


def wait_until(page, condition: str, seconds: float = 30.0) -> None:
    """Asked from outside: the page's own policy forbids that it evaluates text."""
    for _ in range(round(20 * seconds)):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise TimeoutError(condition)


def shown(path: Path) -> Iterator:
    """A page that lies at `path`, on a desktop in light colours and on a phone in dark ones.

    Nothing may run over its edge, nor be complained of, before the next one is asked for.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width, scheme in ((1280, "light"), (390, "dark")):
            page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
            complaints = complaints_of(page)
            page.goto(f"file://{path}")
            yield page
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert complaints == []
        browser.close()
