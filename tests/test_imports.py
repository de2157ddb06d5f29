"""Imports go one way only, model <- data <- inference <- train, and what needs nothing heavy loads nothing heavy."""

import ast
import importlib
import importlib.util
import operator
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterator
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


# the language model and what uses it: the codec laboratory knows none of it, and no codec does
LANGUAGE_MODEL = (
    "model.SpeechLM",
    "model.SpeechLMConfig",
    "model.convert",
    "model.delay_pattern",
    "model.depth",
    "model.flatten",
    "model.layout",
    "model.lm",
    "model.speech_lm_config",
    "model.walk",
    "data.dataset",
    "data.grids",
    "inference.SpeechGenerator",
    "inference.cli",
    "inference.compress",
    "inference.convert",
    "inference.demo",
    "inference.engine",
    "inference.evaluate",
    "inference.generator",
    "inference.load",
    "inference.loading",
    "inference.options.open_model",
    "inference.share",
    "inference.verify",
)


def imported(source: str, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, name) of each import, also inside functions; ours without "codeclm.". package: the module's folders."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["codeclm", *package[: len(package) - node.level + 1]] if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.module else base
            targets = [[*module, alias.name] for alias in node.names]
        else:
            continue
        yield from ((node.lineno, ".".join(target).removeprefix("codeclm.")) for target in targets)


def imports_below(folder: str) -> Iterator[tuple[str, str]]:
    """("file:line", name) of each import in the modules of a folder."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for line, name in imported(path.read_text(), path.relative_to(ROOT).parent.parts):
            if path.parent != NAME:
                yield f"{path.relative_to(ROOT)}:{line}", name


def is_part(name: str, parts: Collection[str]) -> bool:
    """Whether a dotted name is one of `parts`, or lies in one."""
    return any(f"{name}.".startswith(f"{part}.") for part in parts)


def file_of(name: str) -> Path | None:
    """The file of ours that a dotted name is imported from."""
    words = name.split(".")
    for length in range(len(words), 0, -1):
        path = ROOT.joinpath(*words[:length])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if words[0] in ORDER and file.is_file():
                return file
    return None


def loaded_by(folder: str) -> set[str]:
    """Names of all modules that are there once every module of a folder has been imported."""
    names = [
        f"codeclm.{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}" for path in (ROOT / folder).glob("*.py")
    ]
    code = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "source, names",
    [
        ("from ..train.loop import train", ["train.loop.train"]),
        ("from .. import train", ["train"]),
        ("import codeclm.train.loop as loop", ["train.loop"]),
        ("from codeclm import train, data", ["train", "data"]),
        ("def f():\n    from codeclm.train.loop import train", ["train.loop.train"]),
        ("from .lm import SpeechLM\nimport torch.nn", ["inference.lm.SpeechLM", "torch.nn"]),
    ],
)
def test_the_import_reader_sees_every_way_to_import(source, names):
    assert [name for _, name in imported(source, ("inference",))] == names


@pytest.mark.parametrize("house", ORDER)
def test_imports_go_one_way(house):
    above = ORDER[ORDER.index(house) + 1 :]
    assert [f"{place} imports {name}" for place, name in imports_below(house) if is_part(name, above)] == []


@pytest.mark.parametrize("folder", ["model/codecs", "inference/codec"])
def test_codecs_and_their_laboratory_never_import_the_language_model(folder):
    own = folder.replace("/", ".")
    wrong = [f"{place} imports {name}" for place, name in imports_below(folder) if is_part(name, LANGUAGE_MODEL)]
    assert wrong == [] and any(is_part(name, [own]) for _, name in imports_below(folder))
    loaded = {name.removeprefix("codeclm.") for name in loaded_by(folder)}
    assert own in loaded and [name for name in loaded if is_part(name, LANGUAGE_MODEL)] == []


def test_every_name_of_the_language_model_is_one():
    for name in LANGUAGE_MODEL:
        module, _, attribute = f"codeclm.{name}".rpartition(".")
        there = hasattr(importlib.import_module(module), attribute)
        assert there or importlib.util.find_spec(f"{module}.{attribute}"), name


def test_sound_never_imports_torch_or_transformers():
    """Neither where it begins nor inside functions, nor through modules of ours, nor through others' at import."""
    seen: set[Path] = set()
    todo = sorted((ROOT / "inference/sound").glob("*.py"))
    while todo:
        path = todo.pop()
        seen.add(path)
        names = [name for _, name in imported(path.read_text(), path.relative_to(ROOT).parent.parts)]
        assert [name for name in names if is_part(name, ("torch", "transformers"))] == [], path
        todo += [file for name in names if (file := file_of(name)) and file not in seen]
    assert {ROOT / "data/audio.py", ROOT / "model/files.py"} < seen
    assert not {"torch", "transformers"} & loaded_by("inference/sound")


@pytest.mark.parametrize(
    "source",
    [
        "import codeclm",
        "import codeclm; codeclm.__version__; dir(codeclm)",
        "from codeclm import data, inference, model, train; data.PrepareConfig, train.FINETUNE",
    ],
)
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
    for_checkers = {name for _, name in imported((NAME / "__init__.py").read_text(), ()) if name.split(".")[0] in ORDER}
    assert {name.split(".")[-1] for name in for_checkers} == set(codeclm.__all__) - {"__version__"}
    assert all(operator.attrgetter(name)(codeclm) is getattr(codeclm, name.split(".")[-1]) for name in for_checkers)


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
