"""Words of the command line -> a verb with its arguments, or one line that says what is wrong with them."""

import difflib
import functools
import io
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import fields, is_dataclass
from typing import Any

import tyro

# a field's name in the message of a config's own check, where it stands for what was given
WORD = re.compile(
    r"(?<![\w.'-])[a-z]\w*(?:\.[a-z]\w*)*(?![\w.]*\w)"
    r"(?P<value>(?= is | must | \(| \[| '| -?[\d.]+[,; :]|, \w+_\w))?"
)
NUMBERS = {
    "invalid literal for int() with base 10: ": "a whole number",
    "could not convert string to float: ": "a number",
}


RULES = tyro.constructors.ConstructorRegistry()


@RULES.primitive_rule
def numbers_of_other_kinds(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """A number or None, which has no word; and a number or several: 0.9,0.7 is one word, so it takes none after it."""
    for kind, metavar in ((int, "INT"), (float, "FLOAT")):
        if info.type == kind | None:
            return number_spec(metavar, kind, int | kind | None)
        if info.type == kind | tuple[kind, ...]:
            return number_spec("N,...", one_or_several(kind), int | kind | tuple)
    return None


def one_or_several(kind: type) -> Callable[[str], Any]:
    return lambda word: tuple(map(kind, word.split(","))) if "," in word else kind(word)


def number_spec(metavar: str, read: Callable[[str], Any], kinds: Any) -> tyro.constructors.PrimitiveConstructorSpec:
    def written(value: Any) -> list[str]:
        return [",".join(map(str, value)) if isinstance(value, tuple) else str(value)]

    return tyro.constructors.PrimitiveConstructorSpec(
        1, metavar, lambda words: read(words[0]), lambda value: isinstance(value, kinds), written
    )


class UsageError(ValueError):
    """Arguments that the verb does not take; the message names the flag and says what to do, in one line."""


def choose(name: str, verbs: Sequence[str], prog: str) -> str:
    """`name` if it is a verb. Raises UsageError that names the nearest one."""
    if name in verbs:
        return name
    near = difflib.get_close_matches(name, verbs, 1, 0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(verbs)}"
    if name.startswith("-"):
        raise UsageError(f"option '{name}' is unknown here; give a verb first ({prog} --help)")
    raise UsageError(f"verb '{name}' is unknown; {hint} ({prog} --help)")


def parse(verb: Callable[..., None], prog: str, args: Sequence[str]) -> Callable[[], None]:
    """`verb` with the arguments that `args` stand for, ready to be called; --help ends in SystemExit(0).

    Raises UsageError for what the verb does not take, a setting out of its range included.
    """
    try:
        with redirect_stderr(io.StringIO()):
            return tyro.cli(deferred(verb), prog=prog, args=list(args), registry=RULES)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        reason = explained(box_of(verb, prog, args), verb)
    except ValueError as error:  # by a check of the config that has no name of its own
        reason = with_flags(str(error), flags(verb))
    raise UsageError(f"{reason} ({prog} --help)")


def deferred(verb: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """With the signature of `verb`; a call only notes the arguments: what fails later is not the parser's to tell."""

    @functools.wraps(verb)
    def note(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return functools.partial(verb, *args, **kwargs)

    return note


def box_of(verb: Callable[..., None], prog: str, args: Sequence[str]) -> str:
    """What tyro draws on stderr for arguments that it refuses, as it does where stdout takes UTF-8."""
    said = io.StringIO()
    with suppress(SystemExit), redirect_stderr(said), redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")):
        tyro.cli(deferred(verb), prog=prog, args=list(args), registry=RULES)
    return said.getvalue()


def explained(box: str, verb: Callable[..., None]) -> str:
    """What tyro draws a box around, as a line."""
    sections: list[list[str]] = [[]]
    for line in box.splitlines():
        inner = line.strip("│")
        if inner and set(inner) <= set("─ "):
            sections.append([])
        elif line.startswith("│"):
            sections[-1].append(inner.rstrip())
    first = " ".join(" ".join(sections[0]).split())
    if first.startswith("Unrecognized options: "):
        unknown = first.removeprefix("Unrecognized options: ").split(", ")
        meant = [s[1].split()[0] for s in sections[1:] if s and s[0].strip() == "Perhaps you meant:"]
        if not unknown[0].startswith("-"):
            return f"'{unknown[0]}' is one argument too many"
        return f"option '{unknown[0]}' is unknown" + (f"; did you mean {meant[0]}?" if meant else "")
    if first.startswith("Missing from "):
        names = [line.split()[0] for line in sections[0][1:] if re.match(r" {5}\S", line)]
        return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing"
    if first.startswith("Missing value for argument"):
        return f"{first.split(chr(39))[1]} needs a value"
    if found := re.fullmatch(r"invalid choice (.*) for argument '(.*)'\. Expected one of \((.*?),?\)\.", first):
        return f"{found[2]} {found[1]} is unknown; choose one of {found[3].replace(chr(39), '')}"
    if found := re.fullmatch(r"Error parsing (--\S+): (.*)", first):
        for start, number in NUMBERS.items():
            if found[2].startswith(start):
                return f"{found[1]} must be {number}, not {found[2].removeprefix(start)}"
        return f"{found[1]}: {found[2]}"
    if found := re.fullmatch(r"Error parsing (?:__tyro-dummy-inner__\.)?([\w.-]+): (.*)", first):
        parts = found[1].replace("-", "_").split(".")[1:]  # without the name of the config
        return with_flags(found[2], flags(verb), tuple(parts))
    return first


def with_flags(message: str, known: dict[tuple[str, ...], str], place: tuple[str, ...] = ()) -> str:
    """`message` of a config at `place` with flags where it names fields."""

    def flag(match: re.Match[str]) -> str:
        words = tuple(match[0].split("."))
        plain = len(words) == 1 and "_" not in words[0]
        if plain and match["value"] is None:
            return match[0]
        shared = [place[:length] + words for length in range(len(place), -1, -1)]
        return next((known[path] for path in shared if path in known), match[0])

    return WORD.sub(flag, message)


def flags(verb: Callable[..., None]) -> dict[tuple[str, ...], str]:
    """Where a setting lies -> its flag, for all settings of a verb's configs: ("optimizer", "betas") -> ..."""
    hints = typing.get_type_hints(verb)
    return {path: flag for kind in hints.values() if is_dataclass(kind) for path, flag in _flags(kind, ())}


def _flags(kind: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    hints = typing.get_type_hints(kind)
    for field in fields(kind):
        path = (*place, field.name)
        if is_dataclass(hints[field.name]):
            yield from _flags(hints[field.name], path)
        else:
            yield path, "--" + ".".join(path).replace("_", "-")
