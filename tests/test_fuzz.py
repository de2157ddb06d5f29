"""Whatever a config.json says ends in a model, or in a ValueError or OSError of one line: never in another class."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codeclm.inference.codec.random_codecs import EVERY_KIND, save_tiny
from codeclm.inference.convert import import_folder
from codeclm.inference.loading import load_speech_lm
from codeclm.model.checksums import CHECKSUMS
from codeclm.model.codecs import load_codec
from codeclm.model.shapes import TextConfig

from .checkpoints import csm, moshi

pytestmark = pytest.mark.slow

# the same examples every time: a suite must not turn red by chance (more of them, at random, with derandomize=False)
LIMITS = settings(max_examples=40, derandomize=True, suppress_health_check=list(HealthCheck))
NUMBERS = [0, 1, -1, 2, 3, 7, 2**15, 2**31 - 1, 2**40, 10**12, 2**63, 10**30, 10**400, 1.5, 1e9, 1e-6, -1.0, 1e308]
WORDS = ["", "0", "1e-06", "depth", "\n", "silu"]
LISTS = [[], [0], [1, 2], [[1]], [1.5], ["a"], [10**12], {}, {"a": 1}, {"dim": 10**12}, {"rope_type": "default"}]
VALUES = st.sampled_from([*NUMBERS, float("nan"), float("inf"), None, True, False, *WORDS, *LISTS])


def places(values: Any, at: tuple = ()) -> list[tuple]:
    """The way to every value within, lists' too."""
    found = [at] if at else []
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        found += places(value, (*at, key))
    return found


def changed(values: dict, draw: st.DataObject) -> dict:
    """One to three values replaced, left out, or given another name."""
    values = copy.deepcopy(values)
    for _ in range(draw.draw(st.integers(1, 3))):
        *way, last = draw.draw(st.sampled_from(places(values) or [("a",)]))
        inner = values
        for key in way:
            inner = inner[key]
        kind = draw.draw(st.sampled_from(["replace", "replace", "replace", "drop", "rename"]))
        if kind == "replace" or isinstance(inner, list):
            inner[last] = copy.deepcopy(draw.draw(VALUES))
        else:
            value = inner.pop(last, None)
            if kind == "rename":
                inner[f"{last}x"] = value
    return values


def try_config(folder: Path, draw: st.DataObject, use: Callable[[], object]) -> None:
    """Change FOLDER/config.json, use it, and change it back."""
    path = folder / "config.json"
    content = path.read_text()
    try:
        path.write_text(json.dumps(changed(json.loads(content), draw)))
        use()
    except (ValueError, OSError) as error:
        assert "\n" not in str(error) and len(str(error)) < 800, str(error)
    finally:
        path.write_text(content)


@pytest.fixture(scope="module")
def models(make_model, tmp_path_factory) -> list[Path]:
    options = [dict(delays=(0, 1, 1)), dict(pattern="flatten", text=TextConfig(11)), dict(user_codebooks=2, gaps="bos")]
    folders = [tmp_path_factory.mktemp("model") for _ in options]
    for folder, option in zip(folders, options, strict=True):
        make_model(**option, dtype=torch.float32).save_pretrained(folder)
        (folder / CHECKSUMS).unlink()
    return folders


@pytest.fixture(scope="module")
def codecs(tmp_path_factory) -> dict[str, Path]:
    folders = {name: save_tiny(name, tmp_path_factory.mktemp("codec")) for name in EVERY_KIND}
    for folder in folders.values():
        (folder / CHECKSUMS).unlink(missing_ok=True)
    return folders


@LIMITS
@given(draw=st.data())
def test_a_models_config(models, draw):
    folder = draw.draw(st.sampled_from(models))
    try_config(folder, draw, lambda: load_speech_lm(folder))


@pytest.mark.parametrize("name", EVERY_KIND)
@LIMITS
@given(draw=st.data())
def test_a_codecs_config(codecs, name, draw):
    try_config(codecs[name], draw, lambda: load_codec(codecs[name]).frame_rate)


@pytest.mark.parametrize("kind", ["csm", "moshi"])
@LIMITS
@given(draw=st.data())
def test_a_checkpoints_config_on_its_way_to_us(tmp_path_factory, kind, draw):
    folder = tmp_path_factory.getbasetemp() / f"fuzz-{kind}"
    if not folder.exists():
        (csm if kind == "csm" else moshi)(folder)
    out = folder.with_name(f"{folder.name}-out")
    try_config(folder, draw, lambda: (import_folder(kind, folder, out), load_speech_lm(out)))
    assert not out.with_name(f".{out.name}.partial").exists()
    shutil.rmtree(out, ignore_errors=True)
