"""Work in the background: a checkpoint is written while training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """One piece of work at a time, in a thread; the next waits for it. What it raises is raised by the next call here.

    `close` it.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "in-the-background")
        self._work: Future[object] | None = None

    def start(self, work: Callable[[], object]) -> None:
        self.wait()
        self._work = self._thread.submit(work)

    def check(self) -> None:
        """Raise what went wrong, if the work is over."""
        if self._work is not None and self._work.done():
            self.wait()

    def wait(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def close(self) -> None:
        self._thread.shutdown()
        self.wait()
