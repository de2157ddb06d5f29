"""Bad requests to a server, each drawn from a seed: wrong fields, broken forms and audio, clients that leave."""

import io
import json
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import httpx2
import numpy as np
import soundfile
from websockets.sync.client import connect as connect_websocket

from .serving import connect

HUGE = (
    "9" * 5000,
    "1e308",
    "-1e308",
    str(2**63),
    str(2**64),
    "1e-320",
    "nan",
    "inf",
    "-inf",
    "0x10",
    "",
    " ",
    "٣",
    "1_0",
    "null",
)

Answer = tuple[str, str]  # kind of request, and what came of it


FORM, END = "multipart/form-data; boundary=B", b"--B--\r\n"


def part(name: str, value: bytes, file: str | None = None) -> bytes:
    """A field of a form."""
    named = f'name="{name}"' + ("" if file is None else f'; filename="{file}"')
    return f"--B\r\ncontent-disposition: form-data; {named}\r\n\r\n".encode() + value + b"\r\n"


class BadRequests:
    def __init__(self, address: str, audio: dict[str, bytes]):
        self.address, self.audio = address, audio
        self.host = address.removeprefix("http://")

    def one(self, seed: int) -> Answer:
        rng = random.Random(seed)
        kinds: list[Callable[[random.Random], str]] = [
            *[self.wrong_field] * 3, *[self.cut_audio] * 2, *[self.fuzzed_form] * 2, *[self.fuzzed_json] * 2,
            *[self.leaves_early] * 2, self.noise_for_audio, self.wrong_prefix, self.fuzzed_http, self.fuzzed_path,
            self.drips, self.reads_nothing, self.fuzzed_socket, self.large_body,
        ]  # fmt: skip
        kind = rng.choice(kinds)
        try:
            return kind.__name__, kind(rng)
        except (httpx2.HTTPError, OSError) as error:
            return kind.__name__, type(error).__name__

    def post(self, path: str, **content: object) -> str:
        with httpx2.Client(base_url=self.address, timeout=60, trust_env=False) as client:
            return told(client.post(path, **content))

    def form(self, rng: random.Random, files: dict[str, object]) -> str:
        path = rng.choice(["/v1/continuations", "/v1/continuations", "/v1/likelihood", "/v1/audio/transcriptions"])
        if path.endswith("transcriptions"):
            files = {
                {"audio": "file", "format": "response_format"}.get(name, name): told for name, told in files.items()
            }
        return self.post(path, files={"duration": (None, "0.2")} | files)

    def wrong_field(self, rng: random.Random) -> str:
        names = ["duration", "seed", "temperature", "top_k", "top_p", "min_p", "repetition_share", "repetition_frames",
                 "num_codebooks", "guidance", "stop_at_end", "max_prompt_s", "text", "format", "stream", "audio",
                 "path", "model", "__class__", "a" * 500, "\x00"]  # fmt: skip
        values = [
            *HUGE,
            "-1",
            "0",
            "1,2,3,4,5,6,7,8,9",
            ",",
            "/etc/passwd",
            "http://localhost/",
            "\x00\xff",
            "true",
            "a" * 70_000,
        ]
        return self.form(rng, {rng.choice(names): (None, rng.choice(values)) for _ in range(rng.randint(1, 3))})

    def cut_audio(self, rng: random.Random) -> str:
        content = bytearray(rng.choice(list(self.audio.values())))
        if rng.random() < 0.5:
            content = content[: rng.randrange(len(content))]
        for _ in range(rng.randint(0, 20)):
            if content:
                content[rng.randrange(min(len(content), 200))] = rng.randrange(256)
        return self.form(rng, {"audio": bytes(content)})

    def noise_for_audio(self, rng: random.Random) -> str:
        starts = [
            b"",
            b"RIFF",
            b"OggS",
            b"fLaC",
            b"ID3",
            b"\x1a\x45\xdf\xa3",
            b"\0\0\0\x20ftypM4A ",
            b"FORM",
            b"\x80\x04K\x01.",
        ]
        return self.form(rng, {"audio": rng.choice(starts) + rng.randbytes(rng.randint(0, 5000))})

    def wrong_prefix(self, rng: random.Random) -> str:
        header = json.dumps(
            {"codes": {"dtype": rng.choice(["I64", "F32", "X"]), "shape": [3, 2**60], "data_offsets": [0, 8]}}
        )
        whole = len(header).to_bytes(8, "little") + header.encode() + b"0" * 8
        return self.form(rng, {"prefix": rng.choice([whole, whole[:9], b"\xff" * 8 + b"{}", rng.randbytes(100)])})

    def fuzzed_form(self, rng: random.Random) -> str:
        body = bytearray(part("duration", b"0.1") + part("audio", self.audio["wav"][:500], "../../x") + END)
        for _ in range(rng.randint(1, 30)):
            place = rng.randrange(len(body))
            body[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        kinds = [FORM, FORM, FORM, "multipart/form-data", FORM + "B" * 300, FORM + "; charset=utf-7", "text/plain"]
        headers = {"content-type": rng.choice([*kinds, "application/x-www-form-urlencoded"])}
        return self.post("/v1/continuations", content=bytes(body), headers=headers)

    def fuzzed_json(self, rng: random.Random) -> str:
        values = [None, 1, -1, 1e308, "x", [], {}, True, "a" * 5000, [1] * 5000, {"a": {"b": [None]}}]
        names = [
            "model",
            "input",
            "voice",
            "response_format",
            "speed",
            "duration",
            "seed",
            "temperature",
            "top_k",
            "instructions",
        ]
        content = json.dumps({rng.choice(names): rng.choice(values) for _ in range(rng.randint(0, 6))}).encode()
        content = rng.choice(
            [content, content, content[:-1], b"[" * 100_000, rng.randbytes(50), b"\xff\xfe{}", b"NaN", b""]
        )
        return self.post("/v1/audio/speech", content=content, headers={"content-type": "application/json"})

    def fuzzed_http(self, rng: random.Random) -> str:
        post = b"POST /v1/continuations HTTP/1.1\r\nhost: localhost\r\n"
        lines = [
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 9999 + b"\r\n",
            b"POST /v1/continuations HTTP/1.1\r\n\r\n",
            post + b"content-length: -5\r\n\r\n",
            post + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
            post + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            b"\x16\x03\x01\x02\x00" + rng.randbytes(200),
            rng.randbytes(300),
        ]
        with connect(self.address) as bare:
            bare.sendall(rng.choice(lines))
            bare.shutdown(socket.SHUT_WR)
            content = bare.recv(65536)
        return content.split(b"\r\n")[0].decode("latin-1")[9:12] or "closed"

    def fuzzed_path(self, rng: random.Random) -> str:
        paths = [
            "/page/../../../etc/passwd",
            "/page/%2e%2e/app.py",
            "/%00",
            "/v1/continuations",
            "/v1/" + "x" * 5000,
            "//",
            "/page/\\..\\x",
        ]
        with httpx2.Client(base_url=self.address, timeout=60, trust_env=False) as client:
            return told(
                client.request(rng.choice(["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "BREW"]), rng.choice(paths))
            )

    def large_body(self, rng: random.Random) -> str:
        begin = part("audio", b"", "x")[:-2]
        content = (piece for piece in [begin, *[b"0" * 2**16] * 40])
        return self.post("/v1/continuations", content=content, headers={"content-type": FORM})

    def request(self, duration: float) -> bytes:
        body = part("duration", str(duration).encode()) + part("stream", b"true") + END
        head = f"POST /v1/continuations HTTP/1.1\r\nhost: localhost\r\ncontent-type: {FORM}\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    def leaves_early(self, rng: random.Random) -> str:
        content = self.request(20)
        with connect(self.address) as bare:
            bare.sendall(content[: rng.choice([0, 10, 200, 300, len(content), len(content)])])
            if rng.random() < 0.5:
                bare.settimeout(rng.random())
                with suppress(TimeoutError):
                    bare.recv(100)
            if rng.random() < 0.5:  # with a reset
                bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        return "left"

    def drips(self, rng: random.Random) -> str:
        """A slow loris: a byte at a time, and never the last one."""
        content, end = self.request(1), time.monotonic() + 3 * rng.random()
        with connect(self.address) as bare:
            bare.sendall(content[: rng.choice([0, 30, 250])])
            for byte in content[250:-1]:
                if time.monotonic() > end:
                    break
                bare.sendall(bytes([byte]))
                time.sleep(0.02)
        return "left"

    def reads_nothing(self, rng: random.Random) -> str:
        with connect(self.address, 4096) as bare:
            bare.sendall(self.request(5))
            time.sleep(3 * rng.random())
        return "left"

    def fuzzed_socket(self, rng: random.Random) -> str:
        objects = [
            {"type": "start", "sample_rate": 10**30},
            {"type": "continue", "duration": 0.1},
            {"type": "continue", "seed": "x"},
            {"type": "stop"},
            {"type": ["start"]},
        ]
        messages = [
            *map(json.dumps, objects),
            "",
            "[]",
            "{",
            "\x00",
            "[" * 9999,
            rng.randbytes(99),
            rng.randbytes(20_000),
        ]
        with connect_websocket(f"ws://{self.host}/v1/stream", proxy=None, close_timeout=5) as websocket:
            for _ in range(rng.randint(1, 8)):
                websocket.send(rng.choice(messages))
            if rng.random() < 0.3:
                websocket.socket.close()
        return "left"


def told(reply: httpx2.Response) -> str:
    """The status; with a mark where an error is not one line of JSON."""
    if reply.status_code < 400 or reply.request.method == "HEAD":
        return str(reply.status_code)
    try:
        message = reply.json()["error"]["message"]
        is_line = isinstance(message, str) and message and len(message.splitlines()) == 1 and "Traceback" not in message
    except (ValueError, KeyError, TypeError):
        is_line = False
    return str(reply.status_code) if is_line else f"{reply.status_code} NO LINE {reply.text[:200]!r}"


def recordings() -> dict[str, bytes]:
    """A second of sound in each format."""
    found, samples = {}, 0.1 * np.random.default_rng(0).standard_normal(8000)
    for name, (container, subtype) in {
        "wav": ("WAV", "PCM_16"), "float": ("WAV", "FLOAT"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"),
        "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III"), "aiff": ("AIFF", "PCM_16"), "caf": ("CAF", "PCM_16"),
    }.items():  # fmt: skip
        file = io.BytesIO()
        soundfile.write(file, samples, 8000, format=container, subtype=subtype)
        found[name] = file.getvalue()
    return found
