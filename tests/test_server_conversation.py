"""WS /v1/stream: a microphone in, speech out, and whoever interrupts is heard."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from codeclm.inference import SamplingConfig
from codeclm.inference.generator import SpeechGenerator

from .serving import UNLIMITED, served, wait_for
from .serving import connect as bare_connection

RATE = 8000
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def lm(make_model, make_codec) -> SpeechGenerator:
    codec = make_codec(codebook_size=7)
    return SpeechGenerator(make_model(codec=codec, context_frames=40, dtype=torch.float32), codec, "tiny")


@pytest.fixture(scope="module")
def server(lm):
    with served(lm) as found:
        yield found


@contextmanager
def talk(server, **settings) -> Iterator[ClientConnection]:
    address = server[0].replace("http://", "ws://") + "/v1/stream"
    with connect(address, proxy=None, compression=None) as socket:
        socket.send(json.dumps({"type": "start", "sample_rate": RATE} | settings))
        ready = json.loads(socket.recv())
        assert ready["type"] == "ready" and ready["sample_rate"] == RATE and ready["num_codebooks"] == 3
        yield socket
    wait_for(lambda: not server[1].service.drawing.open)


def order(socket: ClientConnection, kind: str, **more) -> None:
    socket.send(json.dumps({"type": kind} | more))


def turn(socket: ClientConnection) -> tuple[np.ndarray, np.ndarray, dict]:
    """Samples [S], codes [K, T] and the last message of what is said next."""
    begun, pcm, codes = json.loads(socket.recv(timeout=30)), b"", []
    assert begun["type"] == "speech"
    while True:
        message = socket.recv(timeout=30)
        if isinstance(message, bytes):
            pcm += message
            continue
        values = json.loads(message)
        if values["type"] == "end":
            assert values["num_samples"] == len(pcm) // 2 and values["turn"] == begun["turn"]
            return np.frombuffer(pcm, "<i2") / 32767, np.array(codes).T, values
        codes += values.get("codes", [])


def sound(seconds: float, level: float = 0.1) -> np.ndarray:
    return (
        (32767 * level * np.random.default_rng(0).standard_normal(round(seconds * RATE)))
        .clip(-32768, 32767)
        .astype("<i2")
    )


def test_what_is_said_goes_on_from_what_the_microphone_heard(lm, server):
    heard = sound(0.7)
    with talk(server, duration=0.5, seed=3, max_prompt_s=0.4) as socket:
        for start in range(0, len(heard), 100):
            socket.send(heard[start : start + 100].tobytes())
        order(socket, "continue")
        audio, codes, end = turn(socket)
        assert end["finish_reason"] == "length"
        made = lm.generate((heard.astype(np.float32) / 32768, RATE), 0.5, 3, SamplingConfig(max_prompt_s=0.4))
        np.testing.assert_array_equal(codes, made.codes[:, made.num_prompt_frames :])
        np.testing.assert_allclose(audio, made.audio, rtol=0, atol=TOLERANCE)
        order(socket, "continue", seed=4, duration=0.2)  # nothing was heard since
        audio, codes, end = turn(socket)
        assert end["turn"] == 2
        np.testing.assert_array_equal(codes, lm.generate(None, 0.2, 4, SamplingConfig(max_prompt_s=0.4)).codes)


def test_speech_stops_the_models_and_so_does_a_word(server):
    with talk(server, duration=50) as socket:
        for reason in ("barge-in", "stopped"):
            order(socket, "continue")
            assert json.loads(socket.recv())["type"] == "speech"
            assert isinstance(socket.recv(timeout=30), bytes)
            if reason == "stopped":
                order(socket, "stop")
            else:
                socket.send(sound(0.2, 0.0001).tobytes())  # quiet
                socket.send(sound(0.3).tobytes())
            while (message := socket.recv(timeout=30)) and (isinstance(message, bytes) or "end" not in message[:15]):
                pass
            assert json.loads(message)["finish_reason"] == reason
            wait_for(lambda: not server[1].service.drawing.open)
            order(socket, "forget")


def test_in_auto_turns_the_model_goes_on_when_somebody_has_spoken_and_is_quiet(server):
    with talk(server, duration=0.1, turns="auto", barge_in=False) as socket:
        for seconds, level in ((1.0, 0.0001), (0.5, 0.1), (0.5, 0.0001), (0.5, 0.0001)):
            socket.send(sound(seconds, level).tobytes())
        *_, end = turn(socket)
        assert end["turn"] == 1 and end["finish_reason"] == "length"


def test_what_cannot_be_understood_is_told_and_the_conversation_goes_on(server):
    with talk(server, duration=0.1) as socket:
        wrong = ["no json", "[]", '{"type": "sing"}', '{"type": "start", "sample_rate": 1}', b"odd", "9" * 9999,
                 '{"type": "continue", "duration": -1}', "[" * 9000]  # fmt: skip
        for message in wrong:
            socket.send(message)
            told = json.loads(socket.recv(timeout=30))
            assert told["type"] == "error" and told["error"]["code"] == 400
            assert len(told["error"]["message"].splitlines()) == 1
        socket.send(sound(0.3, 0.0).tobytes())
        order(socket, "continue")
        assert [json.loads(socket.recv(timeout=30))["type"] for _ in range(3)] == ["speech", "error", "end"]  # silent
        order(socket, "continue")
        assert turn(socket)[2]["finish_reason"] == "length"


def test_a_client_that_leaves_in_the_middle_ends_its_drawing(server):
    for _ in range(2):
        with talk(server, duration=50) as socket:
            order(socket, "continue")
            assert json.loads(socket.recv())["type"] == "speech"
            socket.recv(timeout=30)
            socket.socket.close()
        wait_for(lambda: not server[1].service.sockets.num_inside)


def test_there_are_bounds_and_a_token_for_sockets_too(lm):
    config = replace(UNLIMITED, max_sessions=1, max_waiting=1, token="a-secret-of-sixteen")
    with served(lm, config) as (address, server):
        place = address.replace("http://", "ws://") + "/v1/stream"
        friend = ["codeclm", "token.a-secret-of-sixteen"]
        for status, more in (
            ("401", {}),
            ("401", {"subprotocols": ["codeclm", "token.wrong"]}),
            ("403", {"origin": "http://evil.example", "subprotocols": friend}),
        ):
            with pytest.raises(InvalidStatus, match=status):
                connect(place, proxy=None, **more)
        with connect(place, proxy=None, subprotocols=friend) as first, connect(place, proxy=None, subprotocols=friend):
            assert first.subprotocol == "codeclm"
            with pytest.raises(InvalidStatus, match="503"):
                connect(place, proxy=None, subprotocols=friend)
            first.send(b"0" * (2**20 + 2))
            with pytest.raises(ConnectionClosed, match="1009"):
                first.recv(timeout=30)
        wait_for(lambda: not server.service.sockets.num_inside)


def test_a_client_that_reads_nothing_is_cut_off(lm):
    with served(lm, replace(UNLIMITED, stall_s=1.0), send_buffer=4096) as server:
        bare = bare_connection(server[0], 4096)
        bare.sendall(
            b"GET /v1/stream HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert b" 101 " in bare.recv(1000)
        message = b'{"type": "continue", "duration": 50}'
        bare.sendall(bytes([0x81, 0x80 | len(message), 0, 0, 0, 0]) + message)  # masked by zeros
        wait_for(lambda: server[1].service.drawing.open)
        wait_for(lambda: not server[1].service.drawing.open and not server[1].service.sockets.num_inside)
