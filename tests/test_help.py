"""Help: every option of every verb says in a whole phrase what it is, and usage shows what may be left out."""

import contextlib
import io
import re

import pytest

from codeclm.train.cli import CODEC_VERBS, VERBS, main

ALL = [[verb] for verb in VERBS] + [["codec", verb] for verb in CODEC_VERBS]


def help_of(verb: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What --help prints."""
    monkeypatch.setenv("COLUMNS", "100")
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as caught:
        main([*verb, "--help"])
    assert caught.value.code == 0
    out.seek(0)
    return out.read()


def options(text: str) -> dict[str, str]:
    """Option or argument -> its help, without the default, from what --help prints."""
    found, name = {}, ""
    for line in text.splitlines():
        inner = line.strip("│").rstrip()
        if inner.startswith(" -") or re.match(r" {1,2}\[?[A-Z]{2,}", inner):
            name, _, rest = inner.strip().partition("  ")
            found[name] = rest.strip()
        elif name and inner.startswith("    "):
            found[name] += " " + inner.strip()
        else:
            name = ""
    return {name: re.sub(r" ?\((default: .*|required|sets: .*|fixed.*|repeatable)\)$", "", text.strip()).strip()
            for name, text in found.items()}  # fmt: skip


@pytest.mark.parametrize("verb", ALL, ids=" ".join)
def test_every_option_says_what_it_is(verb, monkeypatch):
    found = options(help_of(verb, monkeypatch))
    assert len(found) >= 3 and "-h, --help" in found
    bad = {
        name: text
        for name, text in found.items()
        if len(text) < 4 or re.search(r"[:,;(]$", text) or text.startswith(("of ", "Of ")) or "so many" in text
    }
    assert not bad, "\n".join(f"{name}: {text!r}" for name, text in bad.items())


@pytest.mark.parametrize("verb, shown", [("generate", "[PROMPT]"), ("verify", "[MODEL]"), ("codec bench", "[CODEC")])
def test_usage_brackets_what_may_be_left_out(verb, shown, monkeypatch):
    usage = help_of(verb.split(), monkeypatch).splitlines()[0]
    assert usage.startswith(f"usage: codeclm {verb} ") and shown in usage
