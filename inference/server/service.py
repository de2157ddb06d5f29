"""The parts that all endpoints share."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from ...model.shapes import SPEAKS, WRITES
from ..generator import SpeechGenerator
from ..request import text_layout
from .config import ServerConfig
from .drawing import Drawing, Session
from .metrics import Metrics
from .refusal import Refusal
from .turnstile import Turnstile
from .wishes import Continuation, Prompt, order_of

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass
class Service:
    lm: SpeechGenerator
    config: ServerConfig
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.turnstile = Turnstile(self.config)
        self.sockets = Turnstile(self.config, "WebSockets")
        self.drawing = Drawing(self.lm, self.config, self.metrics)

    async def begin(self, wish: Continuation, prompt: Callable[[], Prompt], asked: float) -> Session:
        """A session that is being drawn. prompt: is called where it keeps nobody waiting.

        Raises ValueError or Refusal in one line.
        """
        order = await self.drawing.read(lambda: order_of(self.lm, self.config, wish, prompt()))
        return self.drawing.begin(order.request, order.seed, order.sampling, asked)

    async def first(self, session: Session) -> list[Any]:
        """The first pieces of a session. Raises Refusal if they do not come in time, and the error of drawing."""
        try:
            async with asyncio.timeout(self.config.wait_s):
                return await session.take()
        except TimeoutError:
            raise Refusal(503, f"no place was free in {self.config.wait_s:g} s; try again later", 5) from None

    def about(self) -> dict[str, Any]:
        """The facts of the model that its codes and samples need."""
        codec = self.lm.codec
        return {
            "sample_rate": codec.sample_rate,
            "frame_rate": codec.frame_rate,
            "num_codebooks": self.lm.model.num_codebooks,
            "codebook_size": codec.codebook_size,
        }

    @property
    def speaks_text(self) -> bool:
        """Whether it says a text that is given."""
        return text_layout(self.lm) in SPEAKS

    @property
    def writes_text(self) -> bool:
        """Whether it writes down what it hears."""
        return text_layout(self.lm) in WRITES
