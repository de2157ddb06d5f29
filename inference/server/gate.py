"""The gate of every request, before and after the application: its sender, its size and speed, and its headers.

A request to draw or score takes a place at the `Turnstile` before its body is read, so that bodies in memory are
bounded, too. Errors that nobody expected become one line here.
"""

import asyncio
import hmac
import logging
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from urllib.parse import urlsplit

from .config import LOOPBACK
from .refusal import Refusal, log_error, refusal_of
from .replies import Stalled, refused
from .service import Message, Receive, Scope, Send, Service

OPEN_PATHS = ("/", "/health", "/openapi.json", "/docs")  # without a token; the page's files, too
PAGE = "/page/"
WORK = "/v1/"  # below it a POST needs a place
SUBPROTOCOL = "token."  # how a browser sends the token of a WebSocket: ["codeclm", "token.TOKEN"]
UPLOAD_S = 120.0  # a whole request comes in this time
DRAIN_S = 2.0  # in which the rest of a refused request is read: a client that still sends would not see the reply
HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "media-src 'self' blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cache-control": "no-store",
}

logger = logging.getLogger(__name__)


class Gate:
    """An ASGI application around another."""

    def __init__(self, app: Callable[[Scope, Receive, Send], object], service: Service, host: str):
        """host: that the server is bound to."""
        self.app, self.service, self.host = app, service, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)  # pyright: ignore[reportGeneralTypeIssues]
            return
        scope["state"]["id"] = secrets.token_hex(8)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["type"] == "websocket":
            await self.socket(scope, receive, send, headers)
        else:
            await self.request(scope, receive, send, headers)

    async def socket(self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str]) -> None:
        try:
            self.check(scope, headers)
            with self.service.sockets.place(client_of(scope)):
                await self.app(scope, receive, send)  # pyright: ignore[reportGeneralTypeIssues]
        except Refusal as refusal:
            await refused(refusal)(scope, receive, send)
        except Exception as error:
            log_error(error)

    async def request(self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str]) -> None:
        body = Body(receive, self.service, headers)
        exchange = Exchange(scope, send, body, headers)
        try:
            try:
                self.check(scope, headers)
                with self.place(scope):
                    body.check_length()
                    await self.app(scope, body, exchange)  # pyright: ignore[reportGeneralTypeIssues]
            except Stalled:
                logger.info("%s: its client took nothing for %g s", scope["state"]["id"], self.service.config.stall_s)
            except Exception as error:
                if exchange.status:
                    log_error(error)
                else:
                    await refused(refusal_of(error))(scope, body, exchange)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", None) or "other"  # not the path that was asked for: there is no end of those
            self.service.metrics.requests.labels(path, exchange.status or "none").inc()

    def place(self, scope: Scope) -> AbstractContextManager[None]:
        is_work = scope["method"] == "POST" and scope["path"].startswith(WORK)
        return self.service.turnstile.place(client_of(scope)) if is_work else nullcontext()

    def check(self, scope: Scope, headers: dict[str, str]) -> None:
        """Raise Refusal for another site's page in a browser, a name that is not ours, and a missing token."""
        config, host = self.service.config, headers.get("host", "")
        if not config.proxy and self.host in LOOPBACK and host_name(host) not in LOOPBACK:
            raise Refusal(403, "this server is for this machine only; it is called localhost or 127.0.0.1")
        origin = headers.get("origin")
        if origin is not None and origin.lower().partition("://")[2] != host.lower():
            raise Refusal(403, "a page of another site may not use this server")
        is_open = scope["type"] == "http" and (scope["path"] in OPEN_PATHS or scope["path"].startswith(PAGE))
        if config.token and not is_open and not hmac.compare_digest(token_of(headers).encode(), config.token.encode()):
            raise Refusal(401, 'the token is missing or wrong; send it as "Authorization: Bearer TOKEN"')


class Body:
    """The `receive` of a request whose size and speed are bounded."""

    def __init__(self, receive: Receive, service: Service, headers: dict[str, str]):
        self.receive, self.config, self.headers = receive, service.config, headers
        self.num_bytes = 0
        self.is_over = "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"
        self.deadline = asyncio.get_running_loop().time() + UPLOAD_S

    def check_length(self) -> None:
        """Raise Refusal where the header promises too much."""
        length = self.headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > self.config.max_body):
            raise self.too_large()

    def too_large(self) -> Refusal:
        return Refusal(413, f"a request may have {self.config.max_body_mb:g} MB at most")

    async def __call__(self) -> Message:
        if self.is_over:
            return await self.receive()  # that the client has left
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(min(self.deadline, loop.time() + self.config.stall_s)):
                message = await self.receive()
        except TimeoutError:
            raise Refusal(408, f"nothing more came for {self.config.stall_s:g} s, or not all in time") from None
        if message["type"] == "http.request":
            self.num_bytes += len(message.get("body", b""))
            self.is_over = not message.get("more_body", False)
            if self.num_bytes > self.config.max_body:
                raise self.too_large()
        else:
            self.is_over = True
        return message

    async def drain(self) -> None:
        """Read the rest, for a short while, so that the client comes to reading the reply."""
        if self.is_over or self.headers.get("expect"):
            return
        most = self.num_bytes + self.config.max_body
        try:
            async with asyncio.timeout(DRAIN_S):
                while not self.is_over and self.num_bytes < most:
                    message = await self.receive()
                    self.num_bytes += len(message.get("body", b""))
                    self.is_over = not message.get("more_body", False)
        except TimeoutError:
            pass


class Exchange:
    """The `send` of a request: headers are added, and the status is noted."""

    def __init__(self, scope: Scope, send: Send, body: Body, headers: dict[str, str]):
        self.scope, self.plain_send, self.body = scope, send, body
        self.status = 0  # before the reply has begun

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                await self.body.drain()
            self.status = message["status"]
            own = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in message["headers"]}
            own = HEADERS | {"x-request-id": self.scope["state"]["id"]} | own
            if not self.body.is_over:
                own["connection"] = "close"
            raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in own.items()]
            message = {**message, "headers": raw}
        await self.plain_send(message)


def client_of(scope: Scope) -> str:
    """Its address; of IPv6 the part that names a network, as one machine has many of the others."""
    address = (scope.get("client") or ("unknown",))[0]
    return ":".join(address.split(":")[:4]) if address.count(":") > 1 else address


def host_name(host: str) -> str:
    """ "localhost:8000" -> "localhost", "[::1]:8000" -> "::1"."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def token_of(headers: dict[str, str]) -> str:
    """The token that a client sent, or nothing."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return token.strip()
    for word in headers.get("sec-websocket-protocol", "").split(","):
        if word.strip().startswith(SUBPROTOCOL):
            return word.strip().removeprefix(SUBPROTOCOL)
    return ""
