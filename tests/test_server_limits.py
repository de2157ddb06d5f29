"""inference/server: nobody gets more than the limits give, nobody holds the others up, and strangers stay outside."""

import contextlib
import io
import math
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from codeclm.inference.client import Client, ServerError
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.server import run
from codeclm.inference.server.config import ServerConfig
from codeclm.inference.server.refusal import Refusal
from codeclm.inference.server.turnstile import MOST_CLIENTS, Turnstile

from .serving import UNLIMITED, connect, served, wait_for, write_prompt

LONG_S = 50.0  # more speech than any test waits for


@pytest.fixture(scope="module")
def lm(make_model, make_codec) -> SpeechGenerator:
    codec = make_codec(codebook_size=7)
    return SpeechGenerator(make_model(codec=codec, context_frames=40, dtype=torch.float32), codec, "tiny")


@pytest.fixture(scope="module")
def prompt(tmp_path_factory) -> Path:
    return write_prompt(tmp_path_factory.mktemp("prompt") / "prompt.wav")


def form(fields: dict[str, str], content: bytes = b"") -> tuple[bytes, bytes]:
    """Header and body of a request, byte by byte."""
    parts = [f'--B\r\ncontent-disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()]
    if content:
        parts.append(b'--B\r\ncontent-disposition: form-data; name="audio"; filename="a"\r\n\r\n' + content + b"\r\n")
    body = b"".join(parts) + b"--B--\r\n"
    head = (
        "POST /v1/continuations HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=B\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode(), body


def everything(bare: socket.socket) -> bytes:
    """All that comes before the server closes."""
    found = b""
    while content := bare.recv(65536):
        found += content
    return found


def test_a_client_gets_its_rate_and_no_more_and_is_told_when_to_come_again():
    now = [0.0]
    turnstile = Turnstile(ServerConfig(client_rate=30), clock=lambda: now[0])
    for _ in range(5):  # ten seconds' worth
        turnstile.spend("a")
    with pytest.raises(Refusal, match="30 requests a minute") as refused:
        turnstile.spend("a")
    assert refused.value.status == 429 and refused.value.headers()["Retry-After"] == "2"
    turnstile.spend("b")
    now[0] = 2.0
    turnstile.spend("a")
    for number in range(2 * MOST_CLIENTS):
        turnstile.spend(str(number))
    assert len(turnstile.credits) == MOST_CLIENTS


def test_more_than_a_client_or_the_server_may_is_refused_before_its_body_is_read(lm):
    config = replace(UNLIMITED, max_sessions=1, max_waiting=1, client_sessions=1)
    with served(lm, config) as (address, server), Client(address) as client:
        first = client.stream(duration_s=LONG_S)
        next(first)
        with pytest.raises(ServerError, match="^1 requests of yours are open") as refused:
            client.generate(duration_s=0.1)
        assert refused.value.status == 429 and refused.value.retry_after == 1
        server.service.turnstile.inside.clear()  # as if the next ones came from elsewhere
        second = client.http.build_request("POST", "/v1/continuations", files={"duration": (None, "5")})
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(lambda: Client(address).http.send(second))
            wait_for(lambda: server.service.turnstile.num_inside == 2)
            server.service.turnstile.inside.clear()
            bare = connect(address)
            bare.sendall(form({}, b"x")[0])  # and nothing of its body
            reply = everything(bare)
            assert b" 503 " in reply and b"retry-after: 2" in reply and b"2 requests are open" in reply
            first.close()
            assert waiting.result().status_code == 200


def test_a_request_that_waits_too_long_for_its_place_is_told(lm):
    with served(lm, replace(UNLIMITED, max_sessions=1, wait_s=1.0)) as (address, server), Client(address) as client:
        first = client.stream(duration_s=LONG_S)
        next(first)
        with pytest.raises(ServerError, match="no place was free in 1 s") as refused:
            client.generate(duration_s=0.1)
        assert refused.value.status == 503 and refused.value.retry_after == 5
        first.close()
        wait_for(lambda: not server.service.drawing.open)
        assert len(client.generate(duration_s=0.1).audio) == 800


def test_a_body_that_is_too_large_is_refused_while_it_comes(lm):
    with served(lm, replace(UNLIMITED, max_body_mb=1)) as (address, _), Client(address) as client:
        begin = b'--B\r\ncontent-disposition: form-data; name="audio"; filename="a"\r\n\r\n'
        # with a length, and without
        for content in (begin + b"0" * 2**21, (part for part in [begin, *[b"0" * 2**16] * 32])):
            reply = client.http.post(
                "/v1/continuations", content=content, headers={"content-type": "multipart/form-data; boundary=B"}
            )
            assert reply.status_code == 413 and reply.json()["error"]["message"] == "a request may have 1 MB at most"
        long = io.BytesIO()
        soundfile.write(long, np.tile(0.1 * np.sin(np.arange(8000)), 130), 8000, format="OGG", subtype="OPUS")
        assert len(long.getvalue()) < 2**20
        reply = client.http.post("/v1/continuations", files={"audio": long.getvalue()})
        assert reply.status_code == 413 and "longer than 120 s" in reply.json()["error"]["message"]


def test_a_client_that_sends_too_slowly_is_told_and_its_place_is_free(lm, monkeypatch):
    monkeypatch.setattr(run, "HEADER_S", 0.3)
    with served(lm, replace(UNLIMITED, stall_s=1.0)) as (address, server):
        silent, header, body = (connect(address) for _ in range(3))
        header.sendall(b"POST /v1/continuations HTTP/1.1\r\nhost: local")
        head, content = form({"duration": "0.1"}, b"x" * 1000)
        body.sendall(head + content[:100])
        wait_for(lambda: server.service.turnstile.num_inside == 1)
        assert b" 408 " in everything(body)
        wait_for(lambda: server.service.turnstile.num_inside == 0)
        for cut in (silent, header):
            with contextlib.suppress(ConnectionResetError):
                assert cut.recv(1) == b""
        wait_for(lambda: not server.server_state.connections)


def test_a_client_that_does_not_read_holds_nobody_up_and_is_cut_off(lm, prompt):
    config = replace(UNLIMITED, stall_s=1.0, max_sessions=2)
    with served(lm, config, send_buffer=4096) as (address, server), Client(address) as client:
        deaf = connect(address, 4096)
        head, body = form({"duration": "50", "format": "jsonl"}, prompt.read_bytes())
        deaf.sendall(head + body)
        wait_for(lambda: server.service.drawing.open)
        made = client.generate(prompt, 0.5, 3)
        np.testing.assert_array_equal(made.codes, lm.generate(prompt, 0.5, 3).codes[:, -50:])
        wait_for(lambda: not server.service.drawing.open and not server.service.turnstile.num_inside, 60)
        wait_for(lambda: len(server.server_state.connections) <= 1)


def test_a_client_that_leaves_ends_its_drawing_wherever_it_is(lm, prompt):
    with served(lm, replace(UNLIMITED, max_sessions=1)) as (address, server), Client(address) as client:
        head, body = form({"duration": "50", "stream": "true"}, prompt.read_bytes())
        for sent in (head, head + body[:50], head + body):
            bare = connect(address)
            bare.sendall(sent)
            if sent == head + body:
                assert bare.recv(10)
            bare.close()
            wait_for(lambda: not server.service.drawing.open and not server.service.turnstile.num_inside)
        assert len(client.generate(duration_s=0.1).audio) == 800


def test_who_has_no_token_gets_nothing_but_the_page(lm):
    token = "a-secret-of-sixteen"
    with (
        served(lm, replace(UNLIMITED, token=token)) as (address, _),
        Client(address) as stranger,
        Client(address, token + "x") as wrong,
        Client(address, token) as friend,
    ):
        for client in (stranger, wrong):
            for path in ("/v1/model", "/metrics", "/v1/stream"):
                assert client.http.get(path).status_code == 401
            with pytest.raises(ServerError, match="token"):
                client.generate(duration_s=0.1)
            assert client.http.get("/").status_code == client.http.get("/health").status_code == 200
        assert len(friend.generate(duration_s=0.1).audio) == 800


@pytest.mark.parametrize("headers", [
    {"host": "evil.example"}, {"host": "[::"}, {"origin": "https://evil.example"}, {"origin": "null"},
    {"origin": "http://127.0.0.1:1"},
])  # fmt: skip
def test_pages_of_other_sites_and_other_names_for_this_machine_are_refused(lm, address, headers):
    with Client(address) as client:
        reply = client.http.post("/v1/continuations", files={"duration": (None, "0.1")}, headers=headers)
        assert reply.status_code == 403 and len(reply.json()["error"]["message"].splitlines()) == 1
        own = client.http.post("/v1/continuations", files={"duration": (None, "0.1")}, headers={"origin": address})
        assert own.status_code == 200


@pytest.fixture(scope="module")
def address(lm):
    with served(lm) as (address, _):
        yield address


def test_a_prefix_of_broken_numbers_fails_alone(lm, address, prompt, tmp_path):
    lm.prefix(prompt).save(tmp_path / "voice.safetensors")
    tensors = load_file(tmp_path / "voice.safetensors")
    owner = {"format": "codeclm prefix 1"} | lm.prefix(prompt).owner
    save_file(tensors | {"caches": tensors["caches"] * math.nan}, tmp_path / "nan.safetensors", owner)
    save_file(tensors | {"caches": torch.full_like(tensors["caches"], 3e38)}, tmp_path / "large.safetensors", owner)
    save_file(tensors | {"codes": tensors["codes"] + 99}, tmp_path / "codes.safetensors", owner)
    save_file(tensors | {"codes": tensors["codes"].float()}, tmp_path / "float.safetensors", owner)
    with Client(address) as client, ThreadPoolExecutor(1) as pool:
        beside = pool.submit(client.generate, prompt, 1.5, 4)
        for name in ("nan", "large", "codes", "float"):
            with pytest.raises(ServerError) as refused:
                client.generate(tmp_path / f"{name}.safetensors", 0.5)
            assert refused.value.status == (500 if name == "large" else 400)
        np.testing.assert_array_equal(beside.result().codes, lm.generate(prompt, 1.5, 4).codes[:, -150:])


def test_an_error_that_nobody_foresaw_is_one_line_and_the_next_request_is_answered(lm, caplog, monkeypatch):
    with served(lm) as (address, server), Client(address) as client:
        real = server.service.drawing.scheduler.step
        monkeypatch.setattr(server.service.drawing.scheduler, "step", lambda: 1 // 0)
        with pytest.raises(ServerError, match="^something went wrong in the server; its log says what$"):
            client.generate(duration_s=0.1)
        monkeypatch.undo()
        assert len(client.generate(duration_s=0.1).audio) == 800 and real
    assert "ZeroDivisionError: integer division or modulo by zero" in caplog.text
    assert "Traceback" not in caplog.text


def test_many_connections_that_ask_nothing_leave_room_for_those_that_do(lm, monkeypatch):
    monkeypatch.setattr(run, "SPARE_CONNECTIONS", 4)
    with served(lm, replace(UNLIMITED, max_sessions=1, max_waiting=0)) as (address, server):
        idle = [connect(address) for _ in range(10)]
        wait_for(lambda: len(server.server_state.connections) == 5)
        told = [b"too many connections are open" in one.recv(65536) for one in idle[6:]]
        assert all(told)
        for one in idle:
            one.close()
        wait_for(lambda: not server.server_state.connections)
        assert httpx2.get(f"{address}/health", trust_env=False).json()["status"] == "ok"


@pytest.mark.parametrize("proxy, counted", [(False, "127.0.0.1"), (True, "192.0.2.7")])
def test_the_address_that_a_proxy_tells_is_believed_only_where_there_is_one(lm, proxy, counted):
    with served(lm, replace(UNLIMITED, client_rate=60, proxy=proxy)) as (address, server), Client(address) as client:
        headers = {"x-forwarded-for": "192.0.2.7"} | ({"host": "speech.example.org"} if proxy else {})
        reply = client.http.post("/v1/continuations", files={"duration": (None, "0.1")}, headers=headers)
        assert reply.status_code == 200 and list(server.service.turnstile.credits) == [counted]
