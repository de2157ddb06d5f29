"""Imports go one way only, model <- data <- inference <- train, and what needs nothing heavy loads nothing heavy."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ("model", "data", "inference", "train")
NAME = ROOT / "inference/package"  # `import codeclm` itself: above all four, so it may import any and none imports it
HEAVY = (
    "torch",
    "transformers",
    "soundfile",
    "soxr",
    "sentencepiece",
    "matplotlib",
    "faster_whisper",
    "gguf",
    "tensorboard",
)


def imported_houses(source: str, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, top folder) of each import of our own modules. package: the folders the module lies in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["codeclm", *package[: len(package) - node.level + 1]] if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.module else base
            targets = [[*module, alias.name] for alias in node.names]
        else:
            continue
        yield from ((node.lineno, target[1]) for target in targets if target[0] == "codeclm" and len(target) > 1)


@pytest.mark.parametrize(
    "source, houses",
    [
        ("from ..train.loop import train", ["train"]),
        ("from .. import train", ["train"]),
        ("import codeclm.train.loop as loop", ["train"]),
        ("from codeclm import train, data", ["train", "data"]),
        ("def f():\n    from codeclm.train.loop import train", ["train"]),
        ("from .lm import SpeechLM\nimport torch", ["inference"]),
    ],
)
def test_the_import_reader_sees_every_way_to_import(source, houses):
    assert [house for _, house in imported_houses(source, ("inference",))] == houses


@pytest.mark.parametrize("house", ORDER)
def test_imports_go_one_way(house):
    allowed = ORDER[: ORDER.index(house) + 1]
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for path in sorted((ROOT / house).rglob("*.py"))
        if path.parent != NAME
        for line, target in imported_houses(path.read_text(), path.relative_to(ROOT).parent.parts)
        if target not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("source", ["import codeclm", "import codeclm; codeclm.__version__; dir(codeclm)"])
def test_importing_the_package_loads_nothing_heavy(source):
    code = f"import sys; {source}; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


def test_the_package_offers_what_it_names():
    import codeclm

    assert all(getattr(codeclm, name) for name in codeclm.__all__) and set(codeclm.__all__) <= set(dir(codeclm))
    assert codeclm.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    with pytest.raises(AttributeError, match="module 'codeclm' has no attribute 'lod'"):
        _ = codeclm.lod


@pytest.mark.parametrize("arguments", [None, ["--help"], ["--version"], ["generate", "--help"]])
def test_the_command_line_loads_nothing_heavy_before_it_is_told_what_to_do(arguments: list[str] | None):
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["codeclm"]
    module, function = entry.split(":")
    code = f"import sys, atexit, {module} as cli\n"
    code += f"atexit.register(lambda: print([name for name in {HEAVY!r} if name in sys.modules]))\n"
    if arguments is not None:
        code += f"sys.argv = ['codeclm', *{arguments!r}]\ncli.{function}()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
