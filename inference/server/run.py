"""The process: uvicorn, with limits of its own for slow headers, for connections and for the last requests."""

import asyncio
import json
import logging
import socket
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..generator import SpeechGenerator
from .app import make_app
from .config import ServerConfig
from .refusal import Refusal
from .service import Service

HEADER_S = 10.0  # in which the headers of a request must have come
LARGEST_MESSAGE = 2**20  # bytes, of a WebSocket
SPARE_CONNECTIONS = 64  # beyond those that may work

logger = logging.getLogger(__name__)


class Protocol(H11Protocol):
    """Connections that send no whole request in time are closed, and so are those beyond a number."""

    header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}  # for a client that takes nothing
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            refuse(transport, Refusal(503, "too many connections are open; try again later", 2))
            return
        self.expect_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self.stop_timer()
        elif self.header_timer is None and self.conn.trailing_data[0]:
            self.expect_header()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self.stop_timer()
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        refuse(self.transport, Refusal(400, msg))

    def expect_header(self) -> None:
        self.header_timer = self.loop.call_later(HEADER_S, self.transport.abort)

    def stop_timer(self) -> None:
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None


def refuse(transport: asyncio.Transport, refusal: Refusal) -> None:
    """One line to a connection that gets no further than this."""
    body = json.dumps(refusal.to_dict()).encode()
    status = {400: "400 Bad Request", 503: "503 Service Unavailable"}[refusal.status]
    headers = "".join(f"{name}: {value}\r\n" for name, value in refusal.headers().items())
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{headers}"
    transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
    transport.close()


class Server(uvicorn.Server):
    """On SIGTERM: nobody new comes in, who is open has `drain_s`, and the status is 0."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service, loop = self.service, asyncio.get_running_loop()
        service.turnstile.is_draining = service.sockets.is_draining = True
        drawing = service.drawing
        end = loop.call_later(service.config.drain_s, lambda: drawing.order(drawing.cancel_all))
        await super().shutdown(sockets)
        end.cancel()

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # it was asked to end, and ends well


def make_server(lm: SpeechGenerator, config: ServerConfig, host: str) -> Server:
    """A server that runs on the sockets it is given."""
    app = make_app(lm, config, host)
    settings = uvicorn.Config(
        app, http=Protocol, ws="websockets-sansio", lifespan="on", log_config=None, access_log=False,
        server_header=False, proxy_headers=config.proxy, forwarded_allow_ips="127.0.0.1,::1", timeout_keep_alive=20,
        limit_concurrency=SPARE_CONNECTIONS + 2 * (config.max_sessions + config.max_waiting),
        timeout_graceful_shutdown=round(config.drain_s + 3), ws_max_size=LARGEST_MESSAGE, ws_per_message_deflate=False,
    )  # fmt: skip
    return Server(settings, app.service)


def serve(lm: SpeechGenerator, config: ServerConfig, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises OSError in one line where the address is taken or is not ours."""
    with bind(host, port) as bound:
        warm_up(lm, config)
        for name in ("uvicorn.error", "python_multipart"):
            logging.getLogger(name).setLevel(logging.ERROR)
        print(f"{lm.name} at {address_of(bound)}  (Ctrl-C ends it)", flush=True)
        lm.name = Path(lm.name).name  # where it lies is not for clients
        make_server(lm, config, host).run([bound])
    print("all requests are done", flush=True)


def address_of(bound: socket.socket) -> str:
    host, port, *_ = bound.getsockname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def bind(host: str, port: int) -> socket.socket:
    """A socket to listen at. port: 0 for any that is free."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise OSError(f"--host {host}: is no address of this machine") from None
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()  # who comes while the model is warmed up waits
    except OSError as error:
        bound.close()
        raise OSError(f"{host}:{port}: cannot be listened at ({error.strerror}); give another --port") from None
    return bound


def warm_up(lm: SpeechGenerator, config: ServerConfig) -> None:
    """Pay the first request's costs, so that nobody waits for them."""
    _ = lm.fingerprint  # a prefix is compared with it
    for _ in lm.stream(None if lm.model.config.bos else noise(lm), 0.2):
        pass
    if lm.device.type == "cuda":
        lm.warmup(config.max_sessions)


def noise(lm: SpeechGenerator) -> tuple[Any, int]:
    """A second that can be heard."""
    import numpy as np

    rate = lm.codec.sample_rate
    return 0.1 * np.random.default_rng(0).standard_normal(rate).astype(np.float32), rate
