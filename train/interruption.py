"""Ctrl-C, SIGTERM and a deadline while a run is going on: a flag between steps, to save what was learned."""

import logging
import math
import signal
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and stopped. `status`: the exit status that a shell expects, 130 or 143."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.status = 128 + number


class Interruption:
    """While the block lasts, the first SIGINT or SIGTERM only sets `number`; a second Ctrl-C ends at once.

    deadline: when, by time.monotonic(), it is set to SIGTERM without one.
    In a thread that is not the main one, which cannot have handlers, nothing changes. A signal that was ignored before
    (nohup) still is.
    """

    def __init__(self, deadline: float = math.inf) -> None:
        self.deadline = deadline
        self._number = 0  # number of the signal; 0: none came
        self._before: dict[int, Any] = {}

    @property
    def number(self) -> int:
        """0: go on."""
        return self._number or (signal.SIGTERM if time.monotonic() > self.deadline else 0)

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def check(self) -> None:
        """Raise Interrupted if a signal came, where there is nothing to save."""
        if self.number:
            raise Interrupted("interrupted; the same command goes on where it stood", self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._number:
            raise KeyboardInterrupt
        self._number = self._number or number
        if number == signal.SIGINT:
            with suppress(RuntimeError):  # the signal may have come in the middle of a line that is being printed
                log.info("stopping after this step; Ctrl-C again stops at once, without saving")
