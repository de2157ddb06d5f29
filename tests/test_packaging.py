"""The package is what pyproject.toml says: every folder of modules ships, and nothing forbidden is asked for."""

import importlib.metadata
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
PACKAGES = PYPROJECT["tool"]["setuptools"]["packages"]


def modules() -> list[Path]:
    """Every .py file of the package folders, relative to the root."""
    return sorted(path.relative_to(ROOT) for house in HOUSES for path in (ROOT / house).rglob("*.py"))


def dotted(folder: Path) -> str:
    return ".".join(["codeclm", *folder.parts])


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


@pytest.mark.skipif(not setuptools_reads_pep639(), reason="building offline needs setuptools>=77 in this environment")
def test_the_wheel_holds_every_module_and_the_licences(tmp_path):
    source = tmp_path / "source"  # a build leaves build/ and egg-info behind: not in the repository
    for path in [*modules(), *(Path(name) for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"))]:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes((ROOT / path).read_bytes())
    command = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", command, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name for name in names if name.endswith(".py")}
    assert shipped == {f"codeclm/{path.as_posix()}" for path in modules()}
    assert {Path(name).name for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}
