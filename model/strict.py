"""Settings as JSON has them, read strictly: every name is a field's, every value is of its field's type.

Standard library only: model/ also runs where pydantic is not installed. What values must be beyond their type is
checked by the dataclasses themselves.
"""

import difflib
import json
import sys
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Settings = TypeVar("Settings")

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
LARGEST = 2**63  # no setting is this large, and no arithmetic library counts further
FLOAT_LIMIT = sys.float_info.max


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError for anything else, OSError for a file that cannot be read."""
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: is not valid JSON") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds {kind_of(values)}, not an object of settings")
    return values


def strict(kind: type[Settings], values: Any, where: str = "", name: str = "") -> Settings:
    """`values`, a JSON object or a dataclass with such fields, as the dataclass `kind`.

    where: what messages begin with, such as the name of a file. name: of the setting that `values` is.
    Raises ValueError in one line: a setting unknown (the nearest known one is named), missing, or not of its type.
    """
    try:
        return _settings(kind, values, name)
    except ValueError as error:
        if not where:
            raise
        raise ValueError(f"{where}: {error}") from None


def check_value(kind: Any, value: Any, name: str) -> Any:
    """`value` as `kind`: int, float, bool, str, a dataclass, Literal, X | None, tuple[X, ...], list[X], dict[str, X].

    Lists become tuples where those are asked for, whole numbers floats. Raises ValueError if it is none.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _settings(kind, value, name)  # pyright: ignore[reportArgumentType]
    if origin is Literal:
        if not any(value == legal and type(value) is type(legal) for legal in inner):
            raise ValueError(f"{name} is {shown(value)}; choose one of {', '.join(map(str, inner))}")
        return value
    if origin in (Union, types.UnionType):
        return _first_that_fits(inner, value, name)
    if origin in (tuple, list):
        return _sequence(origin, inner, value, name)
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise ValueError(f"{name} is {shown(value)}; it must be an object")
        return {key: check_value(inner[1], item, f"{name}.{shown(key)[1:-1]}") for key, item in value.items()}
    return _plain(kind, value, name)


@contextmanager
def refusing(where: str) -> Iterator[None]:
    """Errors of any class, which the config of another library makes in use, become a ValueError of one line."""
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{where}: holds a setting that cannot be used ({type(error).__name__}: {reason})") from None


def check_names(names: Iterable[str], known: Iterable[str], name: str = "") -> None:
    """Raise ValueError that names the nearest of `known` unless all `names` are known."""
    known, prefix = list(known), f"{name}." if name else ""
    for key in names:
        if key not in known:
            nearest = (difflib.get_close_matches(str(key), known, 1) or known or ["no setting"])[0]
            unknown = shown(f"{prefix}{key}")
            raise ValueError(f"unknown setting {unknown}; did you mean '{prefix}{nearest}'?")


def kind_of(value: Any) -> str:
    """The JSON word for a value's type."""
    if value is None:
        return "null"
    words = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return words.get(type(value), type(value).__name__)


def shown(value: Any, width: int = 60) -> str:
    """A value for a message: one line, and not a long one."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of too many digits, a list of too many levels
        text = kind_of(value)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _settings(kind: Any, values: Any, name: str) -> Any:
    if isinstance(values, kind):
        return values
    if is_dataclass(values):  # a plain TransformerConfig for the depth decoder, which adds to it
        values = {field.name: getattr(values, field.name) for field in fields(values)}
    if not isinstance(values, dict):
        raise ValueError(f"{name or kind.__name__} is {shown(values)}; it must be an object of settings")
    known = {field.name: field for field in fields(kind) if field.init}
    check_names(values, known, name)
    missing = [key for key, field in known.items() if key not in values and not _has_default(field)]
    if missing:
        raise ValueError(f"setting '{name and name + '.'}{missing[0]}' is missing")
    hints, prefix = get_type_hints(kind), f"{name}." if name else ""
    return kind(**{key: check_value(hints[key], value, f"{prefix}{key}") for key, value in values.items()})


def _has_default(field: Field) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _first_that_fits(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    reasons = []
    for kind in kinds:
        if kind is type(None):
            if value is None:
                return None
            continue
        try:
            return check_value(kind, value, name)
        except ValueError as error:
            reasons.append(error)
    raise reasons[-1]


def _sequence(origin: type, inner: tuple[Any, ...], value: Any, name: str) -> Any:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {shown(value)}; it must be a list")
    if origin is list or inner[-1] is Ellipsis:
        kinds = [inner[0]] * len(value)
    elif len(value) != len(inner):
        raise ValueError(f"{name} is {shown(value)}; it must be a list of {len(inner)}")
    else:
        kinds = list(inner)
    pairs = enumerate(zip(kinds, value, strict=True))
    return origin(check_value(kind, item, f"{name}[{index}]") for index, (kind, item) in pairs)


def _plain(kind: Any, value: Any, name: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        int: is_number and isinstance(value, int) and abs(value) < LARGEST,
        float: is_number and abs(value) < FLOAT_LIMIT,  # an int may be beyond every float; NaN is below nothing
        Path: isinstance(value, str | Path),
    }
    if not fits.get(kind, isinstance(value, kind)):
        raise ValueError(f"{name} is {shown(value)}; it must be {WORDS.get(kind, kind.__name__)}")
    return kind(value) if kind in fits else value
