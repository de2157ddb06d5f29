"""A program's side of `codeclm serve`: prompts out, continuations back. It needs neither torch nor a model.

    client = codeclm.Client("http://127.0.0.1:8000")
    client.generate("prompt.wav", duration_s=8, seed=0).save("out.wav")
    for chunk in client.stream("prompt.wav", duration_s=8):  # while it is made
        play(chunk)

K codebooks, T frames, S samples.
"""

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .generation import Generation

Prompt = str | Path | tuple[np.ndarray, int] | None  # a file of audio or of `codeclm prefix`; (samples [S], Hz)


class ServerError(RuntimeError):
    """A refusal of the server, in one line. status: HTTP's, 0: the reply broke off."""

    def __init__(self, message: str, status: int = 0, retry_after: float | None = None):
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class Client:
    def __init__(self, address: str = "http://127.0.0.1:8000", token: str | None = None, timeout_s: float = 60.0):
        """timeout_s: how long a server may be silent. Raises ImportError without httpx2 (extra `serve`)."""
        try:
            import httpx2 as httpx
        except ImportError:
            raise ImportError("a Client needs more packages: pip install 'codeclm[serve]'") from None
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.http = httpx.Client(base_url=address, headers=headers, timeout=timeout_s, trust_env=False)
        self.broken = httpx.HTTPError

    def close(self) -> None:
        self.http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def model(self) -> dict[str, Any]:
        """The model that is served, the limits, and the settings of a request with their defaults."""
        return self._json("GET", "/v1/model")

    def generate(
        self,
        prompt: Prompt = None,
        duration_s: float | None = None,
        seed: int = 0,
        text: str | None = None,
        **settings: Any,
    ) -> Generation:
        """The continuation of `prompt`, as `SpeechGenerator.generate` gives it, but for the prompt itself.

        settings: fields of SamplingConfig. Raises ServerError in one line, and OSError where no server answers.
        """
        about, pcm, codes, bits, end = {}, [], [], [], {}
        for values in self._lines(prompt, duration_s, seed, text, settings):
            if "error" in values:
                raise ServerError(values["error"]["message"], values["error"]["code"])
            if "audio" in values:
                pcm.append(base64.b64decode(values["audio"]))
                codes += values["codes"]
                bits += values["bits"]
            elif "finish_reason" in values:
                end = values
            else:
                about = values
        if not end:
            raise ServerError("the reply broke off")
        shape = -1, about["num_codebooks"]
        return Generation(
            audio=samples_of(b"".join(pcm)),
            prompt_audio=np.zeros(0, np.float32),
            sample_rate=about["sample_rate"],
            codes=np.array(codes, np.int64).reshape(shape).T,
            nll=np.array(bits, np.float32).reshape(shape).T * np.log(2),
            num_prompt_frames=0,
            finish_reason=end["finish_reason"],
            seed=about["seed"],
        )

    def stream(
        self,
        prompt: Prompt = None,
        duration_s: float | None = None,
        seed: int = 0,
        text: str | None = None,
        **settings: Any,
    ) -> Iterator[np.ndarray]:
        """Chunks [S] float32 of it, as soon as they are made. A loop that ends early ends the drawing, too."""
        fields = {"format": "pcm", "stream": "true"}
        with self._asked(prompt, duration_s, seed, text, settings | fields) as reply:
            pieces = PcmPieces()
            for content in reply.iter_bytes():
                if len(samples := pieces.add(content)):
                    yield samples

    def speak(self, text: str, duration_s: float | None = None, seed: int = 0, **settings: Any) -> Generation:
        """`text` as speech, of a model that speaks text."""
        return self.generate(None, duration_s, seed, text, **settings)

    def transcribe(self, audio: str | Path | tuple[np.ndarray, int]) -> str:
        """What is said in a recording, of a model that writes text."""
        return self._json("POST", "/v1/audio/transcriptions", files={"file": content_of(audio)})["text"]

    def likelihood(self, audio: str | Path | tuple[np.ndarray, int]) -> dict[str, Any]:
        """The bits that a recording costs the model: a second, and each code of each frame."""
        return self._json("POST", "/v1/likelihood", files={"audio": content_of(audio)})

    def _lines(self, prompt: Prompt, duration_s: float | None, seed: int, text: str | None, settings: dict[str, Any]):
        with self._asked(prompt, duration_s, seed, text, settings | {"format": "jsonl"}) as reply:
            for line in reply.iter_lines():
                yield json.loads(line)

    @contextmanager
    def _asked(
        self, prompt: Prompt, duration_s: float | None, seed: int, text: str | None, settings: dict[str, Any]
    ) -> Iterator[Any]:
        given = {"duration": duration_s, "seed": seed, "text": text} | settings
        # a part of a form for each field, also where no file makes it one
        files: dict[str, Any] = {name: (None, field(value)) for name, value in given.items() if value is not None}
        if prompt is not None:
            is_prefix = isinstance(prompt, str | Path) and Path(prompt).suffix == ".safetensors"
            files["prefix" if is_prefix else "audio"] = content_of(prompt)
        with self._told(), self.http.stream("POST", "/v1/continuations", files=files) as reply:
            check(reply)
            yield reply

    def _json(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        with self._told(), self.http.stream(method, path, **content) as reply:
            check(reply)
            return json.loads(reply.read())

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the connection, in one line."""
        try:
            yield
        except self.broken as error:
            raise ConnectionError(f"{self.http.base_url}: {error or type(error).__name__}") from None


def check(reply: Any) -> None:
    """Raise ServerError unless the status is 200."""
    if reply.status_code == 200:
        return
    content = reply.read()
    try:
        message = str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the server answered with status {reply.status_code}"
    wait = reply.headers.get("retry-after", "")
    raise ServerError(message, reply.status_code, float(wait) if wait.isdigit() else None)


def field(value: Any) -> str:
    """A setting as the field of a form."""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def content_of(audio: str | Path | tuple[np.ndarray, int]) -> bytes:
    if isinstance(audio, str | Path):
        return Path(audio).read_bytes()
    import soundfile

    samples, rate = audio
    file = io.BytesIO()
    soundfile.write(file, np.asarray(samples, np.float32), rate, "FLOAT", format="WAV")
    return file.getvalue()


class PcmPieces:
    """16-bit samples whose bytes come in pieces of any length."""

    def __init__(self) -> None:
        self.left = b""  # half of a sample, at most

    def add(self, content: bytes) -> np.ndarray:
        """The samples [S] float32 that are whole by now."""
        content = self.left + content
        whole = len(content) // 2 * 2
        self.left = content[whole:]
        return samples_of(content[:whole])


def samples_of(pcm: bytes) -> np.ndarray:
    """16-bit samples -> [S] float32."""
    return np.frombuffer(pcm, "<i2").astype(np.float32) / 32767
