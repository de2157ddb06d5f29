"""What the command says while it works: log lines that do not tear progress bars, and one line for what went wrong."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

DEBUG = "CODECLM_DEBUG"  # set: an error shows where in the code it came from
logger = logging.getLogger("codeclm")


@contextmanager
def log_lines() -> Iterator[None]:
    """Inside the block the lines of the logger "codeclm" appear: what was done on stdout, warnings on stderr."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # file names need not be UTF-8
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    handler, level = _Lines(logging.INFO), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        is_warning = record.levelno >= logging.WARNING
        stream = sys.stderr if is_warning else sys.stdout
        line = f"warning: {record.getMessage()}" if is_warning else record.getMessage()
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            tqdm.write(line, file=stream)
        else:
            print(line, file=stream)


class Terminated(KeyboardInterrupt):
    """SIGTERM, as `kill`, a container or a queue sends it: what is half-written goes, as with Ctrl-C."""

    status = 143  # that a shell expects


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM inside the block raises Terminated, where nothing else has been arranged for it."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def say_loading(what: str) -> None:
    """A sign of life on a terminal before the seconds in which torch and a model are loaded."""
    if sys.stderr.isatty():
        print(f"loading {what} ...", file=sys.stderr, flush=True)


def say_error(error: BaseException | str) -> None:
    """One line on stderr, below any progress bar; with `CODECLM_DEBUG` set the traceback is before it."""
    close_progress_bars()
    if isinstance(error, BaseException) and os.environ.get(DEBUG):
        import traceback

        traceback.print_exception(error)
    print(f"codeclm: {one_line(error)}", file=sys.stderr)


def close_progress_bars() -> None:
    """End the lines of bars that are still open, so that a message gets a line of its own."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()


def one_line(error: BaseException | str) -> str:
    """What went wrong, for people: the system's own errors as "file: reason", control characters made visible."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        text = f"{name}: {error.strerror.lower()}" if name else error.strerror
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")  # names that are not UTF-8
    words = " ".join(text.split()) or type(error).__name__
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in words)
