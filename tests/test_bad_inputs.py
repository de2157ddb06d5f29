"""Each mistake of bad_inputs.py is one clear line, exit status 2, and changes nothing; most are told before torch."""

import contextlib
import hashlib
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from codeclm.train.cli import CODEC_VERBS, VERBS, main

from .bad_inputs import EARLY, LATE, cases
from .bad_world import make_world

COMMAND = Path(sys.executable).parent / "codeclm"
# runs every command it is given in one process -> what each left on stderr, its status, and what was imported by then
DRIVER = """
import contextlib, io, json, shlex, sys
from codeclm.train.cli import main
found = {}
for command in json.load(sys.stdin):
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(shlex.split(command))
        except SystemExit as end:
            status = end.code
        except BaseException as error:
            status = repr(error)
    heavy = [name for name in ("torch", "transformers", "accelerate", "sentencepiece") if name in sys.modules]
    found[command] = status, out.getvalue(), err.getvalue(), heavy
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


def content(folder: Path) -> dict[str, str]:
    """What each file in a folder holds, and where each link leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "pipe"
    return found


@pytest.fixture(scope="module")
def early(world) -> tuple[dict[str, list], dict[str, str], dict[str, str]]:
    """What became of the commands of EARLY, and the world before and after."""
    before = content(world)
    commands = json.dumps([command for command, _ in cases(EARLY)])
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=world, input=commands, capture_output=True, text=True, check=True
    )
    return json.loads(driver.stdout), before, content(world)


@pytest.mark.parametrize("command, words", cases(EARLY))
def test_a_mistake_is_told_before_torch_is_imported(command, words, early):
    status, out, err, heavy = early[0][command]
    assert status == 2 and out == "", (status, out, err)
    assert err.startswith("codeclm: ") and err.count("\n") == 1 and words in err, err
    assert heavy == []


def test_mistakes_that_are_told_early_change_nothing(early):
    _, before, after = early
    assert after == before


@pytest.mark.slow
@pytest.mark.parametrize("command, words", cases(LATE))
def test_a_mistake_that_only_loading_finds_is_one_line_and_changes_nothing(command, words, world, monkeypatch):
    monkeypatch.chdir(world)
    before, err = content(world), io.StringIO()
    with contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        main(shlex.split(command))
    lines = [line for line in err.getvalue().replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]
    lines = [line for line in lines if not line.startswith("warning: ")]
    assert caught.value.code == 2
    assert len(lines) == 1 and lines[0].startswith("codeclm: ") and words in lines[0], lines
    after = content(world)
    made = {name: after.pop(name) for name in list(after) if name == "new" or name.startswith("new/")}
    for name in sorted(made, reverse=True):
        (world / name).rmdir() if made[name] == "folder" else (world / name).unlink()
    assert after == before and "new/store.json" not in made and "new/model" not in made


@pytest.mark.parametrize(
    "name", ["a\nb.wav", "quo'te\".wav", "a b.wav", "😀.wav", "%s{}.wav", "--x.wav", b"caf\xe9.wav"]
)
def test_a_missing_file_of_any_name_is_named_in_one_line(name, tmp_path):
    for environment in ({}, {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}):
        path = b"./" + name if isinstance(name, bytes) else f"./{name}"
        done = subprocess.run(
            [COMMAND, "generate", path], cwd=tmp_path, capture_output=True, env=os.environ | environment
        )
        line = done.stderr.decode()
        assert done.returncode == 2 and done.stdout == b"" and line.count("\n") == 1, line
        assert line.startswith("codeclm: ") and line.endswith(".wav: no such file\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("place", ["/proc", "/sys/kernel"])
def test_a_place_where_nobody_can_write_is_told(place, tmp_path):
    if not Path(place).is_dir():
        pytest.skip(f"this machine has no {place}")
    done = subprocess.run([COMMAND, "generate", "--duration", "0.1", "--out", f"{place}/a.wav"], capture_output=True)
    assert done.returncode == 2 and f"codeclm: {place}/a.wav: cannot be written".encode() in done.stderr


def test_there_are_mistakes_for_every_verb_and_more_than_a_hundred():
    commands = [command for command, _ in [*cases(EARLY), *cases(LATE)]]
    verbs = [*VERBS, *(f"codec {verb}" for verb in CODEC_VERBS)]
    assert [verb for verb in verbs if not any(line.startswith(f"{verb} ") for line in commands)] == []
    assert len(set(commands)) == len(commands) > 100


def test_with_codeclm_debug_the_traceback_is_shown(tmp_path):
    environment = os.environ | {"CODECLM_DEBUG": "1"}
    done = subprocess.run(
        [COMMAND, "generate", "no.wav"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "codeclm: no.wav: no such file"
