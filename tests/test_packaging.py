"""The package is what pyproject.toml says: each folder of modules ships and works; nothing forbidden is asked for."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
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
    held = [
        *(ROOT / "model/pretrained").iterdir(),
        *(ROOT / "inference/report").glob("page.*"),
        *(ROOT / "inference/server/page").iterdir(),
    ]
    data = [path.relative_to(ROOT) for path in held if path.is_file()]
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


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """A folder of installed packages with ours in it."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.fixture
def installed(site, tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python in an empty folder with the wheel, not the repository. before: a folder ahead of it on the path."""
    libraries = Path(pytest.__file__).parent.parent  # -S: without the repository, which a .pth file there names

    def python(*args: str, before: Path | None = None) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(map(str, filter(None, (before, site, libraries))))
        return subprocess.run(
            [sys.executable, "-S", *args],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
        )  # fmt: skip

    return python


@pytest.mark.slow
def test_the_installed_wheel_generates_evaluates_and_fine_tunes(installed, site, tmp_path):
    script = """
import codeclm
print(codeclm.__file__)
lm = codeclm.load()
lm.generate("prompt.wav", duration_s=0.2, seed=0).save("out.wav")
print(lm.evaluate("my_voice/").model.bits_per_second)
tuned = codeclm.load(codeclm.train.finetune(lm, "my_voice/", "runs/x", steps=4))
print(tuned.evaluate("my_voice/").model.bits_per_second)
"""
    version = installed("-m", "codeclm", "--version").stdout
    assert version.startswith(f"codeclm {PYPROJECT['project']['version']} ")
    left = installed("-m", "codeclm", "demo", "--out", ".", "--duration", "0.1", "--seeds", "0")
    assert left.returncode == 0, left.stderr
    result = installed("-c", script)
    assert result.returncode == 0, result.stderr
    place, before, after = result.stdout.split()
    assert place == str(site / "codeclm/__init__.py")
    assert float(after) < float(before) < 2000  # bits/s of the very speech that it was tuned on; of the raw codes
    assert (tmp_path / "out.wav").stat().st_size == 44 + 2 * 0.2 * 16_000


@pytest.mark.slow
def test_a_folder_of_our_name_without_init_does_not_hide_the_installed_wheel(installed, site, tmp_path):
    """In the working directory, and before us on the path, as another package's leftovers or its checkout would be."""
    (tmp_path / "codeclm/model").mkdir(parents=True)
    (tmp_path / "codeclm/model/lm.py").write_text("")
    for before in (None, tmp_path):
        result = installed(
            "-c", "import codeclm, codeclm.model.lm as lm; print(codeclm.load, lm.__file__)", before=before
        )
        assert result.stdout.endswith(f" {site / 'codeclm/model/lm.py'}\n"), result.stderr
        assert installed("-m", "codeclm", "--version", before=before).returncode == 0


@pytest.mark.slow
def test_another_package_of_our_name_hides_ours_wholly_and_not_silently(installed, tmp_path):
    (tmp_path / "other/codeclm").mkdir(parents=True)
    (tmp_path / "other/codeclm/__init__.py").write_text("")
    for args in (("-c", "import codeclm; codeclm.load"), ("-c", "import codeclm.model"), ("-m", "codeclm")):
        result = installed(*args, before=tmp_path / "other")
        assert result.returncode == 1 and "codeclm" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_an_installed_wheel_and_this_checkout_are_never_mixed(site, tmp_path):
    code = """
import sys, codeclm.train.cli, codeclm.train.runs
print(*(module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "codeclm"), sep="\\n")
"""
    for path, place in ((str(site), site), ("", ROOT)):
        environment = os.environ | {"PYTHONPATH": path}
        command = [sys.executable, "-c", code]
        found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout.split()
        assert len(found) > 50 and all(Path(file).is_relative_to(place) for file in found)


def test_the_command_and_the_modules_work_where_a_folder_has_our_name(tmp_path):
    """Also of an editable install, where such a folder, as a clone's parent has it, does hide `codeclm.load`."""
    (tmp_path / "codeclm").mkdir()
    command = Path(sys.executable).with_name("codeclm")
    code = "from codeclm.inference import SamplingConfig"
    for args in ([str(command), "--version"], [sys.executable, "-m", "codeclm", "-V"], [sys.executable, "-c", code]):
        result = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
