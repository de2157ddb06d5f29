"""Reading ahead: what the next step needs is read while the device computes this one."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


class Ahead(Generic[T]):
    """`read` of steps 0, 1, .., in a thread of its own: while one is used, the next is read. `close` it.

    `read` must depend on the step alone; nobody else may call it meanwhile. Another step than the next one is read
    when it is asked for. What `read` raises, raises where its step is asked for.
    """

    def __init__(self, read: Callable[[int], T], stop: int):
        """stop: the step that is not read ahead."""
        self._read, self._stop = read, stop
        self._thread = ThreadPoolExecutor(1, "reading-ahead")
        self._next: tuple[int, Future[T]] | None = None
        self.waited_s = 0.0  # for the newest step

    def __call__(self, step: int) -> T:
        before, self._next = self._next, None
        found = before[1] if before and before[0] == step else self._thread.submit(self._read, step)
        started = time.monotonic()
        result = found.result()
        self.waited_s = time.monotonic() - started
        if step + 1 < self._stop:
            self._next = step + 1, self._thread.submit(self._read, step + 1)
        return result

    def aside(self, other: Callable[[], U]) -> U:
        """What `other` returns, which must not run while a step is read."""
        return self._thread.submit(other).result()

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
