"""Real servers on loopback: in a process of their own, or in a thread where they are to be watched."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.server.config import ServerConfig
from codeclm.inference.server.run import Server, address_of, bind, make_server

COMMAND = Path(sys.executable).parent / "codeclm"
UNLIMITED = ServerConfig(client_sessions=1000, client_rate=0)


@contextmanager
def served(
    lm: SpeechGenerator, config: ServerConfig = UNLIMITED, send_buffer: int | None = None
) -> Iterator[tuple[str, Server]]:
    """The address of a server in a thread, and the server. send_buffer: bytes that the system keeps for a reader."""
    server = make_server(lm, config, "127.0.0.1")
    with bind("127.0.0.1", 0) as bound:
        if send_buffer is not None:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        wait_for(lambda: server.started)
        try:
            yield address_of(bound), server
        finally:
            server.should_exit = True
            thread.join(timeout=60)
            assert not thread.is_alive()


@contextmanager
def process(model: str | Path, *options: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of `codeclm serve`, and its process, whose output is text."""
    command = [COMMAND, "serve", "--model", model, "--port", "0", *options]
    # as the suite runs it: one thread
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        assert " at http://" in line, line + started.stdout.read()
        yield line.split(" at ")[1].split()[0], started
    finally:
        started.kill()
        started.wait()


def wait_for(is_so, seconds: float = 30.0) -> None:
    """Until `is_so()`. Raises AssertionError if it is not in time."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def write_prompt(path: Path, seconds: float = 0.4, rate: int = 8000) -> Path:
    samples = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate))
    soundfile.write(path, samples, rate)
    return path


def connect(address: str, receive_buffer: int | None = None) -> socket.socket:
    """A bare connection, for what no client of HTTP does. receive_buffer: bytes that the system keeps for it."""
    host, port = address.removeprefix("http://").rsplit(":", 1)
    bare = socket.socket()
    bare.settimeout(30)
    if receive_buffer is not None:
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    bare.connect((host, int(port)))
    return bare
