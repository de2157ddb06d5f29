"""The answer to a request for speech: whole, or piece by piece while it is made.

    waits for the first piece -> status 200 -> pieces -> end
      refused: one line           the client left, or takes nothing: the session is cancelled

An answer that breaks off after status 200 is told as such: its last line says why (jsonl), or the connection is closed
before the end that HTTP's chunks announce.
"""

import asyncio
import time
from collections.abc import Callable

from starlette.responses import JSONResponse

from .drawing import Piece, Session
from .formats import TYPES, Lines, line, whole, writer
from .refusal import Refusal, refusal_of
from .service import Receive, Scope, Send, Service
from .wishes import Continuation, Prompt


def refused(refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.to_dict(), refusal.status, refusal.headers())


class SpeechReply:
    """An ASGI application for one request that has been read."""

    def __init__(self, service: Service, wish: Continuation, prompt: Callable[[], Prompt]):
        """prompt: decodes the prompt that was sent."""
        self.service, self.wish, self.prompt = service, wish, prompt
        self.asked = time.monotonic()
        self.session: Session | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = asyncio.create_task(self.answer(scope, receive, send))
        watch = asyncio.create_task(until_left(receive))
        try:
            await asyncio.wait({answer, watch}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (answer, watch):
                task.cancel()
            await asyncio.gather(answer, watch, return_exceptions=True)
            if self.session is not None:
                self.session.cancel()
        if not answer.cancelled() and (error := answer.exception()) is not None:
            raise error

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        wish, service = self.wish, self.service
        rate = service.lm.codec.sample_rate
        about = service.about() | {"id": scope["state"]["id"], "seed": wish.seed, "samples": "s16le, base64"}
        # players do not read FLAC that does not say how long it is
        is_streamed = wish.stream and wish.format != "flac" or wish.format == "jsonl"
        try:
            made = writer(wish.format, rate, about)  # before anything is drawn: the format may not have this rate
            self.session = session = await service.begin(wish, self.prompt, self.asked)
            pieces = await service.first(session)
            if not is_streamed:
                pieces += await rest_of(session)
        except Exception as error:
            await refused(refusal_of(error))(scope, receive, send)
            return
        headers = {"content-type": TYPES[wish.format], "x-sample-rate": str(rate), "x-seed": str(wish.seed)}
        if not is_streamed:
            body = whole(wish.format, rate, pieces)
            headers |= {"x-finish-reason": session.finish_reason, "content-length": str(len(body))}
            await self.send(scope, send, start(headers))
            await self.send(scope, send, {"type": "http.response.body", "body": body})
            return
        await self.send(scope, send, start(headers))
        data = made.begin()
        while pieces:
            data += made.add(pieces)
            if data:
                await self.send(scope, send, {"type": "http.response.body", "body": data, "more_body": True})
            try:
                data, pieces = b"", await session.take()
            except Exception as error:
                if not isinstance(made, Lines):
                    refusal_of(error)  # logged; the reply ends before its end
                    return
                data = line(refusal_of(error).to_dict())
                await self.send(scope, send, {"type": "http.response.body", "body": data})
                return
        if session.finish_reason == "cancelled" and not isinstance(made, Lines):
            return
        data += made.end(session.finish_reason)
        await self.send(scope, send, {"type": "http.response.body", "body": data})

    async def send(self, scope: Scope, send: Send, message: dict[str, object]) -> None:
        """Raises Stalled for a client that takes nothing for too long; its connection is then gone."""
        try:
            async with asyncio.timeout(self.service.config.stall_s):
                await send(message)
        except TimeoutError:
            scope["state"]["abort"]()
            raise Stalled from None


class Stalled(Exception):
    """A client takes nothing of its reply."""


async def rest_of(session: Session) -> list[Piece]:
    """All pieces that still come. Raises the error of drawing, and Refusal if it was cancelled."""
    found: list[Piece] = []
    while pieces := await session.take():
        found += pieces
    if session.finish_reason == "cancelled":
        raise Refusal(503, "the server is going down; try again later", 5)
    return found


async def until_left(receive: Receive) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def start(headers: dict[str, str]) -> dict[str, object]:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": 200, "headers": raw}
