"""model/strict.py: what a dataclass writes as JSON comes back as it was, and nothing of another type gets in."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeclm.model.codec_shapes import SpectralConfig
from codeclm.model.shapes import DepthConfig, TransformerConfig
from codeclm.model.strict import check_value, read_object, strict
from codeclm.train.codec_config import CodecTrainConfig
from codeclm.train.config import TrainConfig

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@dataclass(frozen=True)
class Inner:
    size: int = 1
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    loud: bool = False
    kind: Literal["a", "b"] = "a"
    inner: Inner = field(default_factory=Inner)
    limit: int | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    many: tuple[int, ...] = ()
    rows: list[Inner] = field(default_factory=list)
    table: dict[str, int] = field(default_factory=dict)


def through_json(values: Any) -> Any:
    return json.loads(json.dumps(values))


@pytest.mark.parametrize(
    "config",
    [
        Outer("x", True, "b", Inner(2, 3.0), 4, (5.0, 6.0), (7, 8), [Inner(9)], {"z": 1}),
        DepthConfig(weight_sets=(0, 1, 1)), TransformerConfig(), SpectralConfig(), TrainConfig(), CodecTrainConfig(),
    ],
    ids=lambda config: type(config).__name__,
)  # fmt: skip
def test_what_a_dataclass_writes_comes_back_equal(config):
    assert strict(type(config), through_json(asdict(config))) == config


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(nam="x"), "unknown setting 'nam'; did you mean 'name'?"),
        (dict(inner={"siz": 2}), "unknown setting 'inner.siz'; did you mean 'inner.size'?"),
        (dict(inner={"size": 1.5}), "inner.size is 1.5; it must be a whole number"),
        (dict(inner={"size": 2.0}), "inner.size is 2.0; it must be a whole number"),
        (dict(inner={"size": True}), "inner.size is True; it must be a whole number"),
        (dict(inner={"size": 10**30}), "it must be a whole number"),
        (dict(inner={"share": "0.5"}), "inner.share is '0.5'; it must be a number"),
        (dict(inner={"share": False}), "inner.share is False; it must be a number"),
        (dict(inner={"share": math.nan}), "inner.share is nan; it must be a number"),
        (dict(inner={"share": 10**400}), "it must be a number"),
        (dict(inner=3), "inner is 3; it must be an object of settings"),
        (dict(inner=None), "inner is None; it must be an object of settings"),
        (dict(name=1), "name is 1; it must be a text"),
        (dict(loud=1), "loud is 1; it must be true or false"),
        (dict(loud="false"), "loud is 'false'; it must be true or false"),
        (dict(kind="c"), "kind is 'c'; choose one of a, b"),
        (dict(limit="3"), "limit is '3'; it must be a whole number"),
        (dict(pair=[1.0]), r"pair is \[1.0\]; it must be a list of 2"),
        (dict(pair=1.0), "pair is 1.0; it must be a list"),
        (dict(many="12"), "many is '12'; it must be a list"),
        (dict(many=[1, 2.5]), r"many\[1\] is 2.5; it must be a whole number"),
        (dict(rows=[{"size": "x"}]), r"rows\[0\].size is 'x'"),
        (dict(table={"z": "1"}), "table.z is '1'; it must be a whole number"),
        (dict(table=[1]), "table is .*; it must be an object"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_name(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        strict(Outer, {"name": "x"} | change, "file.json")
    assert str(caught.value).startswith("file.json: ") and "\n" not in str(caught.value)


def test_a_setting_without_a_default_must_be_there():
    with pytest.raises(ValueError, match="file.json: setting 'name' is missing"):
        strict(Outer, {}, "file.json")


def test_whole_numbers_are_numbers_and_lists_become_tuples():
    found = strict(Outer, {"name": "x", "inner": {"share": 2}, "many": [1], "pair": (1, 2), "limit": None})
    assert isinstance(found.inner.share, float) and found.many == (1,) and found.pair == (1.0, 2.0)
    assert strict(DepthConfig, TransformerConfig(dim=8)).dim == 8  # a dataclass with these fields, too


@given(JSON)
def test_any_json_is_taken_or_refused_with_a_value_error(values):
    for kind in (Outer, TransformerConfig, DepthConfig, dict[str, int], tuple[int, ...], int | None, Path):
        try:
            check_value(kind, values, "name")
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 300


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not valid JSON"),
        (b"[]", "holds a list, not an object"),
        (b"null", "holds null, not an object"),
    ],
    ids=["empty", "cut", "binary", "deep", "long number", "list", "null"],
)
def test_a_file_without_an_object_is_refused(content, message, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"x.json: {message}"):
        read_object(tmp_path / "x.json")
