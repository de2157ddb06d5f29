"""`codeclm generate PROMPTS.jsonl --out FOLDER`: a line, a file. Lines are requests of one Scheduler.

    {"prompt": "a.wav", "text": "...", "duration": 4, "seed": 1, "name": "a", "temperature": [0.9, 0.7], "top_k": 50}

Every key may be left out, then it is as the command line says; a prompt's path counts from the folder of the .jsonl.
The file of a line is NAME.wav: its "name", else its number and the prompt's. What is there is not made again.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.config import with_settings
from ..model.files import readable
from ..model.strict import check_names, shown
from .argument_checks import check_duration, check_prompt, check_seeds
from .config import SamplingConfig

if TYPE_CHECKING:
    from .generator import SpeechGenerator
    from .scheduler import Ticket

BATCH = 8  # lines that are drawn at once, if memory allows
OWN = {"prompt": str, "text": str, "duration": (int, float), "seed": int, "name": str}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Line:
    """What one line asks for."""

    number: int
    name: str
    prompt: Path | None
    text: str | None
    duration_s: float | None
    seed: int
    sampling: SamplingConfig

    def file_in(self, out: Path) -> Path:
        return out / f"{self.name}.wav"


class Failures:
    """Lines that could not be made, told as they are met, by number."""

    def __init__(self, path: Path):
        self.path, self.count = path, 0

    def add(self, number: int, error: Exception) -> None:
        self.count += 1
        logger.warning("%s line %d: %s", readable(self.path), number, error)


def read_lines(path: Path, defaults: Line, failures: Failures) -> tuple[list[Line], int]:
    """Lines that can be made, and the count of all that are not blank; the others are told. Needs no torch.

    Raises OSError for a file that cannot be read, ValueError for one without a line.
    """
    texts = [(number, text) for number, text in enumerate(path.read_bytes().split(b"\n"), 1) if text.strip()]
    if not texts:
        raise ValueError(f"{readable(path)}: holds no line; a line is as {{'prompt': 'a.wav'}}")
    found: dict[str, Line] = {}
    for number, text in texts:
        try:
            line = read_line(number, text, path.parent, defaults)
            if line.name in found:
                raise ValueError(f"name '{line.name}' is that of line {found[line.name].number}")
        except (ValueError, OSError) as error:
            failures.add(number, error)
        else:
            found[line.name] = line
    return list(found.values()), len(texts)


def read_line(number: int, text: bytes, folder: Path, defaults: Line) -> Line:
    """Raises ValueError or OSError in one line for what cannot be made."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"is {shown(values)}; it must be an object, {{...}}")
    settings = {field.name for field in fields(SamplingConfig)}
    check_names(values, [*OWN, *settings])
    for key, kind in OWN.items():
        if key in values and (not isinstance(values[key], kind) or isinstance(values[key], bool)):
            raise ValueError(f"{key} is {shown(values[key])}; it must be {'a text' if kind is str else 'a number'}")
    prompt = folder / values["prompt"] if "prompt" in values else defaults.prompt
    name = values.get("name", f"{number:04d}" + (f"-{prompt.stem}" if prompt else ""))
    if not 0 < len(name.encode("utf-8", "replace")) <= 200 or Path(name).name != name or not name.isprintable():
        raise ValueError(f"name is {shown(name)}; it must be the name of a file, without a folder, and not too long")
    duration_s, seed = values.get("duration", defaults.duration_s), values.get("seed", defaults.seed)
    if duration_s is not None:
        check_duration(duration_s)
    check_seeds(seed)
    check_prompt(prompt)
    sampling = with_settings(defaults.sampling, {key: values[key] for key in values if key in settings})
    return Line(number, name, prompt, values.get("text", defaults.text), duration_s, seed, sampling)


def generate_lines(lm: "SpeechGenerator", lines: Sequence[Line], out: Path, failures: Failures) -> int:
    """Make the files of these lines -> how many were made. A line that fails stops no other."""
    from ..data.progress import progress_bar
    from .scheduler import Scheduler

    scheduler, made = Scheduler(lm, BATCH), 0
    drawn: dict[Ticket, Line] = {}
    with progress_bar(total=len(lines), unit="file", desc="generate") as bar:

        def step(most: int) -> int:
            """Draw until this many lines are left at most -> how many were made."""
            made = 0
            while len(drawn) > most:
                scheduler.step()
                for ticket in [ticket for ticket in drawn if ticket.is_done]:
                    made += save(ticket, drawn.pop(ticket), out, failures)
                    bar.update()
            return made

        for line in lines:
            made += step(scheduler.max_rows - 1)
            try:
                ticket = scheduler.submit(line.prompt, line.duration_s, line.seed, line.sampling, line.text)
                drawn[ticket] = line
            except (ValueError, OSError) as error:
                failures.add(line.number, error)
                bar.update()
        return made + step(0)


def save(ticket: "Ticket", line: Line, out: Path, failures: Failures) -> bool:
    """Write the file of a line that is done -> whether that went well."""
    try:
        ticket.generation().save(line.file_in(out))
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:  # also: ended at once, or the disk is full
        failures.add(line.number, error)
        return False
    return True


def generate_many(path: Path, out: Path, defaults: Line, open_model: "Callable[[], SpeechGenerator]") -> str:
    """Make what a .jsonl file asks for -> what to tell. The model is opened if something is left to make.

    Raises ValueError in one line if some lines could not be made, once the others are.
    """
    failures = Failures(path)
    lines, total = read_lines(path, defaults, failures)
    left = [line for line in lines if not line.file_in(out).exists()]
    try:
        made = generate_lines(open_model(), left, out, failures) if left else 0
    except KeyboardInterrupt as interrupt:  # or its kind for SIGTERM
        raise type(interrupt)(f"interrupted; run the same command again to make what {readable(out)} lacks") from None
    there = len(lines) - len(left)
    done = f"{made} made" + (f", {there} there already" if there else "")
    if failures.count:
        raise ValueError(
            f"{readable(path)}: {failures.count} of {total} lines could not be made; {readable(out)}: {done}"
        )
    return f"{readable(out)}: {done}"
