"""Who may come in: a bounded number of requests at the same time, of all clients and of each, and a rate of each."""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .config import ServerConfig
from .refusal import Refusal

MOST_CLIENTS = 10_000  # whose rates are remembered; of those the ones that came last
BURST_S = 10.0  # seconds' worth of requests that may come at once


class Turnstile:
    def __init__(self, config: ServerConfig, noun: str = "requests", clock: Callable[[], float] = time.monotonic):
        """noun: for messages."""
        self.config, self.noun, self.clock = config, noun, clock
        self.num_inside = 0
        self.inside: Counter[str] = Counter()
        self.credits: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests to spare, and when that was so
        self.is_draining = False

    @contextmanager
    def place(self, client: str) -> Iterator[None]:
        """A place for one request, until the block ends. Raises Refusal if there is none."""
        if self.is_draining:
            raise Refusal(503, "the server is going down; try again later", 5)
        self.spend(client)
        config = self.config
        if self.inside[client] >= config.client_sessions:
            raise Refusal(
                429, f"{config.client_sessions} {self.noun} of yours are open already; wait until one of them ends", 1
            )
        if self.num_inside >= config.max_sessions + config.max_waiting:
            raise Refusal(
                503, f"{self.num_inside} {self.noun} are open, the most that this server takes; try again later", 2
            )
        self.num_inside += 1
        self.inside[client] += 1
        try:
            yield
        finally:
            self.num_inside -= 1
            self.inside[client] -= 1
            if not self.inside[client]:
                del self.inside[client]

    def spend(self, client: str) -> None:
        """Count a request against a client's rate. Raises Refusal if it is spent."""
        per_second = self.config.client_rate / 60
        if not per_second:
            return
        most, now = max(1.0, BURST_S * per_second), self.clock()
        left, then = self.credits.pop(client, (most, now))
        left = min(most, left + (now - then) * per_second)
        self.credits[client] = (left - 1 if left >= 1 else left), now
        if len(self.credits) > MOST_CLIENTS:
            self.credits.popitem(last=False)
        if left < 1:
            raise Refusal(
                429,
                f"{self.config.client_rate:g} requests a minute are allowed; wait a little",
                (1 - left) / per_second,
            )
