"""The READMEs tell the truth: commands parse, Python runs, the tree is the tree, links and targets exist."""

import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import codeclm
from codeclm.data.audio_out import save_audio
from codeclm.inference import demo
from codeclm.train import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ROOMS = sorted(path for house in ("model", "data", "inference", "train") for path in (ROOT / house).rglob("README.md"))
LARGE, LOG = ROOT / "train/recipes/large.md", ROOT / "train/recipes/embedded/log.md"
PAGES = {path: path.read_text() for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOMS, LARGE, LOG)}
EVERY = "\n".join(PAGES.values())
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", EVERY, re.MULTILINE | re.DOTALL)
SHELL = [
    line.split("#")[0].strip()
    for kind, text in BLOCKS
    if kind == "sh"
    for line in text.replace("\\\n", " ").splitlines()
]
COMMANDS = sorted(
    {line.split("--no-python ")[-1] for line in SHELL if re.match(r"codeclm |torchrun .*--no-python codeclm ", line)}
    | set(re.findall(r"`(codeclm (?:\w+ )+[^`]*)`", EVERY))
)
TREE = next(text for kind, text in BLOCKS if not kind and text.startswith("model/"))


def tree_paths() -> list[str]:
    """The paths that the commented tree names, files and folders, relative to the root."""
    found, folders = [], []
    for line in TREE.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = folders[:depth]
        found.append("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return found


def recorder(verb: Callable, calls: list) -> Callable:
    """A function with the signature of `verb` that only notes what it was called with."""

    def note(*args: object, **kwargs: object) -> None:
        calls.append((verb.__name__, inspect.signature(verb).bind(*args, **kwargs).arguments))

    note.__signature__ = inspect.signature(verb)  # type: ignore[attr-defined]
    note.__annotations__, note.__doc__, note.__name__ = verb.__annotations__, verb.__doc__, verb.__name__
    return note


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_are_real(line, monkeypatch):
    calls: list = []
    for verbs in (cli.VERBS, cli.CODEC_VERBS):
        for name, verb in verbs.items():
            monkeypatch.setitem(verbs, name, recorder(verb, calls))
    cli.main(shlex.split(line)[1:])
    assert len(calls) == 1


def test_the_commands_read_what_the_demo_or_an_earlier_command_left(monkeypatch):
    calls: list = []
    for verbs in (cli.VERBS, cli.CODEC_VERBS):
        for name, verb in verbs.items():
            monkeypatch.setitem(verbs, name, recorder(verb, calls))
    known = {"prompt.wav", demo.VOICE, "hearing", "probes"}  # in runs/demo/; suites that are made, not read
    known |= {"openslr/librispeech_asr", "parler-tts/mls_eng", "facebook/multilingual_librispeech"}  # of the hub
    for line in [line for line in SHELL if line.startswith("codeclm ")]:
        cli.main(shlex.split(line)[1:])
        given = calls[-1][1]
        read = [given[name] for name in ("prompt", "audio", "data", "file", "baseline_data") if given.get(name)]
        paths = [Path(path) for one in read for path in (one if isinstance(one, tuple) else [one])]
        unknown = [path for path in paths if str(path) not in known and path.parts[0] != "datasets"]
        assert [path for path in unknown if path.parts[0] != "runs"] == [], line
        known |= {str(given["out"])} if "out" in given else set()


def test_every_verb_is_shown():
    shown = {" ".join(line.split()[1:3]) for line in COMMANDS}
    assert all(any(line.split()[0] == verb for line in shown) for verb in cli.VERBS if verb != "demo")
    assert {f"codec {verb}" for verb in cli.CODEC_VERBS} <= shown


@pytest.mark.slow
def test_the_python_runs_where_the_demo_was(tmp_path):
    """Every block in order, as one script; runs/both, which takes a corpus with transcripts, is a tiny stand-in."""
    demo.run(tmp_path, 0.1, [0])
    train_with_text(tmp_path / "runs/both", tmp_path / "transcribed")
    (tmp_path / "script.py").write_text("".join(text for kind, text in BLOCKS if kind == "python"))
    result = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out.wav").is_file() and "bits/s" in result.stdout


def train_with_text(out: Path, data: Path) -> None:
    """A model that was trained, for a step, with text before audio, after it and without."""
    for number in range(6):
        save_audio(data / f"{number}.wav", 0.1 * np.random.default_rng(number).standard_normal(16_000), 16_000)
        (data / f"{number}.txt").write_text("a text of several words to learn a few tokens from")
    text = {"layout": "mixed", "vocab_size": 280}
    codeclm.train.train(data, out, steps=1, model={"preset": "tiny", "text": text}, batch={"heldout_share": 0.2})


def test_the_shell_blocks_are_shell():
    for kind, text in BLOCKS:
        if kind == "sh":
            subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_every_file_of_the_tree_exists():
    assert [path for path in tree_paths() if not (ROOT / path).exists()] == []


def test_every_folder_of_modules_is_in_the_tree():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"].items()
    rooms = {
        path.parent.relative_to(ROOT).as_posix() + "/" for _, house in packages for path in (ROOT / house).rglob("*.py")
    }
    assert rooms - set(tree_paths()) == set()


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for line in SHELL if line.startswith("make ")} | set(re.findall(r"`make (\w+)", EVERY))
    assert named and named <= targets


def test_every_extra_and_module_that_is_named_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"'\.\[(\w+)\]'", EVERY) + re.findall(r"extra `(\w+)`", EVERY)) <= set(extras)
    for module in re.findall(r"python -m (codeclm[\w.]+)", EVERY):
        place = ROOT / module.removeprefix("codeclm.").replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere_and_files_that_are_named_exist(page):
    linked = [link.split("#")[0] for link in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page])]
    assert [link for link in linked if not (page.parent / link).exists()] == []
    named = re.findall(r"`([\w.]*/[\w/]+\.(?:py|toml|md|ipynb|flac))`", PAGES[page])
    assert [path for path in named if not (ROOT / path).exists() and not (page.parent / path).exists()] == []


def test_every_room_readme_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\(([\w/]+README\.md)\)", README))
    assert linked == {path.relative_to(ROOT).as_posix() for path in ROOMS}
