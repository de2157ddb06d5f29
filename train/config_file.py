"""The config.json of a run, given back to a run: `--config runs/a/config.json`. Flags beside it count for more."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

from ..model.strict import strict
from .config import RunConfig
from .run_folder import LANGUAGE_MODEL

Config = TypeVar("Config", bound=RunConfig)
FLAG, SHAPE = "--config", "shape"
RECORDS = ("run", "model", "data", "start", "versions", "command")  # what a run only notes


def read_config(path: Path, kind: type[Config]) -> Config:
    """The settings in a config.json. Raises ValueError or OSError, in one line, unless it says exactly all of them."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{FLAG}: {path}: no such file") from None
    except ValueError:
        raise ValueError(f"{FLAG}: {path}: is not valid JSON") from None
    if not isinstance(content, dict) or content.get("run") != LANGUAGE_MODEL:
        raise ValueError(f"{FLAG}: {path}: is not the config.json of {LANGUAGE_MODEL}")
    values = {name: value for name, value in content.items() if name not in (*RECORDS, SHAPE)}
    if "model" in kind.__dataclass_fields__ and SHAPE in content:
        values["model"] = content[SHAPE]
    try:
        config = strict(kind, values)
    except ValueError as error:
        raise ValueError(f"{FLAG}: {path}: {error}") from None
    missing = sorted(set(paths(asdict(config))) - set(paths(values)))
    if missing:
        raise ValueError(f"{FLAG}: {path}: does not say {missing[0]}; it is of another command or an earlier version")
    return config


def paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from paths(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def with_config_file(verb: Callable[..., Any], args: Sequence[str]) -> Callable[..., Any]:
    """`verb` with the file's settings as the defaults of its flags, if `args` name a file."""
    words = [word for arg in args for word in (arg.split("=", 1) if arg.startswith(f"{FLAG}=") else [arg])]
    default = signature(verb).parameters.get("config")
    if FLAG not in words[:-1] or default is None or not isinstance(default.default, RunConfig):
        return verb
    config = read_config(Path(words[words.index(FLAG) + 1]), type(default.default))

    @wraps(verb)
    def read(*args: Any, **kwargs: Any) -> Any:
        return verb(*args, **kwargs)

    own = signature(verb)
    parameters = [p.replace(default=config) if p.name == "config" else p for p in own.parameters.values()]
    read.__signature__ = own.replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
    return read
