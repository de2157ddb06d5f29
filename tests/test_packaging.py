"""The package is what pyproject.toml says: each folder of modules ships and works; nothing forbidden is asked for."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HOUSES = ("model", "data", "inference", "train")
NAME = Path("inference/package")  # becomes codeclm/ itself
PACKAGES = PYPROJECT["tool"]["setuptools"]["packages"]


def modules() -> list[Path]:
    """Every .py file of the package folders, relative to the root."""
    return sorted(path.relative_to(ROOT) for house in HOUSES for path in (ROOT / house).rglob("*.py"))


def shipped(path: Path) -> Path:
    """Where a file of the repository lies in the wheel."""
    return "codeclm" / (path.relative_to(NAME) if path.is_relative_to(NAME) else path)


def dotted(folder: Path) -> str:
    return ".".join(shipped(folder).parts)


def setuptools_reads_pep639() -> bool:
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


def test_the_packages_listed_are_the_folders_with_an_init():
    folders = {dotted(path.parent) for path in modules() if path.name == "__init__.py"}
    assert sorted(PACKAGES) == sorted(folders)


def test_every_module_is_inside_a_listed_package():
    orphans = [str(path) for path in modules() if dotted(path.parent) not in PACKAGES]
    assert orphans == []


def test_no_module_lies_at_the_root():
    assert list(ROOT.glob("*.py")) == []


@pytest.mark.parametrize("name", ["torchaudio", "torchvision", "encodec", "moshi", "descript-audio-codec"])
def test_forbidden_packages_are_neither_required_nor_pinned(name):
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    required = [*PYPROJECT["project"]["dependencies"], *(item for extra in extras for item in extra)]
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in required + pinned if re.match(rf"{name}\b", line, re.IGNORECASE)] == []


def test_every_requirement_is_pinned_and_no_index_is_named():
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    required = [*PYPROJECT["project"]["dependencies"], *(item for extra in extras for item in extra)]
    names = {re.match(r"[\w.-]+", item)[0].lower() for item in required} - {"codeclm"}
    text = (ROOT / "constraints.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert names - {line.split("==")[0].lower() for line in lines} == set()
    assert "torch==2.13.0" in lines
    assert "://" not in text


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from copies, because a build leaves build/ and egg-info behind."""
    if not setuptools_reads_pep639():
        pytest.skip("building offline needs setuptools>=77 in this environment")
    folder = tmp_path_factory.mktemp("wheel")
    data = [path.relative_to(ROOT) for path in (ROOT / "model/pretrained").iterdir() if path.is_file()]
    for path in [
        *modules(),
        *data,
        NAME / "py.typed",
        *map(Path, ("pyproject.toml", "README.md", "LICENSE", "NOTICE")),
    ]:
        (folder / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / path).write_bytes((ROOT / path).read_bytes())
    command = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", command, folder], cwd=folder / "source", check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_the_licences(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if name.endswith(".py")} == {shipped(path).as_posix() for path in modules()}
    assert {Path(name).name for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}
    assert "codeclm/py.typed" in names and "codeclm/model/pretrained/prompt.flac" in names


@pytest.mark.slow
def test_the_wheel_works_where_the_repository_is_not(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    libraries = Path(pytest.__file__).parent.parent  # -S: without the repository, which a .pth file there names
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{libraries}"}

    def python(*args: str) -> str:
        command = [sys.executable, "-S", *args]
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout

    assert python("-m", "codeclm", "--version").startswith(f"codeclm {PYPROJECT['project']['version']} ")
    assert python("-c", "import codeclm; print(codeclm.load.__module__, codeclm.__path__[0])").split() == [
        "codeclm.inference.loading",
        str(tmp_path / "site/codeclm"),
    ]
    python("-m", "codeclm", "generate", "--duration", "0.2", "--out", "out.wav")
    assert (tmp_path / "out.wav").stat().st_size == 44 + 2 * 0.2 * 16_000
