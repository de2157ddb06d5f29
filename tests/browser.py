"""A page in headless Chromium, where it is installed."""

import shutil

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
