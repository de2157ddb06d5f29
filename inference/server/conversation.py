"""A WebSocket to talk through: microphone in, speech out, and whoever interrupts is heard. README.md has its messages.

A turn: the microphone is heard (the last seconds of it are kept) -> the model goes on from what it heard -> the next
turn. In `auto` turns it goes on when somebody has spoken and is quiet again; it stops when somebody speaks meanwhile.
S samples.
"""

import asyncio
import json
import time
from typing import Any, Literal

import numpy as np
from pydantic import Field
from starlette.websockets import WebSocket, WebSocketDisconnect

from ...data.audio import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, loudness_dbfs
from .drawing import joined
from .gate import SUBPROTOCOL, client_of
from .refusal import Refusal, refusal_of
from .service import Service
from .wishes import Continuation, Prompt, understood

IDLE_S = 300.0  # without any message
FIRST_S = 20.0  # before the first one
SPEECH_DBFS = -40.0  # louder than this is speech
SPOKEN_S = 0.25  # speech in a row that begins a turn, or interrupts one
QUIET_S = 0.8  # after speech, which end it
KEPT_S = 1.0  # what is kept of the microphone while the model speaks


class Start(Continuation):
    """The first message, or settings for all turns from now on."""

    type: Literal["start"]
    sample_rate: int = Field(default=16_000, ge=MIN_SAMPLE_RATE, le=MAX_SAMPLE_RATE, description="the microphone's, Hz")
    turns: Literal["manual", "auto"] = Field(
        default="manual", description="auto: go on when somebody spoke and is quiet again"
    )
    barge_in: bool = Field(default=True, description="speech stops the model's")


class Microphone:
    """The last seconds that were heard, and whether somebody speaks in them."""

    def __init__(self, sample_rate: int):
        self.sample_rate = sample_rate
        self.heard: list[np.ndarray] = []
        self.spoken_s = self.quiet_s = 0.0  # seconds of speech in a row, and of quiet after it
        self.has_spoken = False

    def hear(self, samples: np.ndarray, keep_s: float) -> None:
        """samples: [S] int16. keep_s: of all that was heard."""
        seconds = len(samples) / self.sample_rate
        if loudness_dbfs(samples / 32768) > SPEECH_DBFS:
            self.spoken_s, self.quiet_s = self.spoken_s + seconds, 0.0
            self.has_spoken |= self.spoken_s >= SPOKEN_S
        else:
            self.spoken_s, self.quiet_s = 0.0, self.quiet_s + seconds
        self.heard.append(samples)
        extra = sum(map(len, self.heard)) - round(keep_s * self.sample_rate)
        while extra > 0 and extra >= len(self.heard[0]):
            extra -= len(self.heard.pop(0))
        if extra > 0:
            self.heard[0] = self.heard[0][extra:]

    @property
    def is_speaking(self) -> bool:
        return self.spoken_s >= SPOKEN_S

    @property
    def has_finished(self) -> bool:
        return self.has_spoken and self.quiet_s >= QUIET_S

    def prompt(self) -> Prompt:
        """All that was heard, which is then forgotten; None if it was nothing."""
        samples = np.concatenate([np.zeros(0, np.int16), *self.heard])
        self.forget()
        return (samples.astype(np.float32) / 32768, self.sample_rate) if len(samples) else None

    def forget(self) -> None:
        self.heard, self.has_spoken, self.spoken_s, self.quiet_s = [], False, 0.0, 0.0


class Conversation:
    def __init__(self, service: Service, socket: WebSocket):
        self.service, self.socket = service, socket
        self.settings = Start(type="start")
        self.microphone = Microphone(self.settings.sample_rate)
        self.speaking: asyncio.Task[None] | None = None
        self.turn = self.num_samples = 0

    async def run(self) -> None:
        """Until the client leaves."""
        with self.service.metrics.sockets.track_inprogress():
            offered = self.socket.scope["subprotocols"]
            own = next((word for word in offered if not word.startswith(SUBPROTOCOL)), None)
            await self.socket.accept(own)
            try:
                await self.listen()
            except (WebSocketDisconnect, RuntimeError):  # starlette's for a socket that is closed already
                pass
            except TimeoutError:
                await self.socket.close(1001, "nothing was said for too long")
            finally:
                await self.silence()

    async def listen(self) -> None:
        patience = FIRST_S
        while True:
            async with asyncio.timeout(patience):
                message = await self.socket.receive()
            patience = IDLE_S
            if message["type"] == "websocket.disconnect":
                return
            try:
                if (samples := message.get("bytes")) is not None:
                    await self.hear(samples)
                else:
                    await self.obey(message.get("text") or "")
            except (Refusal, ValueError) as error:
                await self.say(refusal_of(error).to_dict() | {"type": "error"})

    async def hear(self, content: bytes) -> None:
        if len(content) % 2:
            raise Refusal(400, "a binary message holds 16-bit samples, so an even number of bytes")
        is_speaking = self.speaking is not None and not self.speaking.done()
        self.microphone.hear(np.frombuffer(content, "<i2"), KEPT_S if is_speaking else self.settings.max_prompt_s)
        if is_speaking and self.settings.barge_in and self.microphone.is_speaking:
            await self.stop("barge-in")
        elif not is_speaking and self.settings.turns == "auto" and self.microphone.has_finished:
            await self.go_on()

    async def obey(self, text: str) -> None:
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            raise Refusal(400, "a text message must be a JSON object") from None
        kind = values.get("type") if isinstance(values, dict) else None
        if kind == "start":
            await self.stop("stopped")
            self.settings = understood(Start, values)
            self.settings.config()
            self.microphone = Microphone(self.settings.sample_rate)
            await self.say({"type": "ready", "id": self.socket.scope["state"]["id"]} | self.service.about())
        elif kind == "continue":
            changed = self.settings.model_dump() | {name: values[name] for name in values if name != "type"}
            self.settings = understood(Start, changed)
            await self.stop("stopped")
            await self.go_on()
        elif kind == "stop":
            await self.stop("stopped")
        elif kind == "forget":
            self.microphone.forget()
        else:
            raise Refusal(400, "a message's type must be start, continue, stop or forget")

    async def go_on(self) -> None:
        self.turn += 1
        self.num_samples = 0
        self.speaking = asyncio.create_task(self.speak(self.microphone.prompt(), time.monotonic()))

    async def speak(self, prompt: Prompt, asked: float) -> None:
        session = None
        try:
            with self.service.turnstile.place(client_of(self.socket.scope)):
                await self.say({"type": "speech", "turn": self.turn, "seed": self.settings.seed})
                session = await self.service.begin(self.settings, lambda: prompt, asked)
                pieces = await self.service.first(session)
                while pieces:
                    pcm, codes, bits = joined(pieces)
                    self.num_samples += len(pcm) // 2
                    await self.send(pcm)
                    await self.say({"type": "frames", "codes": codes, "bits": bits})
                    pieces = await session.take()
                await self.end(session.finish_reason)
        except (WebSocketDisconnect, RuntimeError):  # the client has left
            pass
        except Exception as error:
            await self.say(refusal_of(error).to_dict() | {"type": "error"})
            await self.end("error")
        finally:
            if session is not None:
                session.cancel()

    async def stop(self, reason: str) -> None:
        """Stop speaking, and tell so; nothing happens in silence."""
        if await self.silence():
            await self.end(reason)

    async def silence(self) -> bool:
        """Whether there was something to end."""
        speaking, self.speaking = self.speaking, None
        if speaking is None or speaking.done():
            return False
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)
        return True

    async def end(self, reason: str) -> None:
        await self.say({"type": "end", "turn": self.turn, "finish_reason": reason, "num_samples": self.num_samples})

    async def say(self, values: dict[str, Any]) -> None:
        await self.send(json.dumps(values, separators=(",", ":")))

    async def send(self, message: str | bytes) -> None:
        """Raises WebSocketDisconnect if the client has left, or takes nothing for too long."""
        try:
            async with asyncio.timeout(self.service.config.stall_s):
                if isinstance(message, str):
                    await self.socket.send_text(message)
                elif message:
                    await self.socket.send_bytes(message)
        except TimeoutError:
            self.socket.scope["state"]["abort"]()
            raise WebSocketDisconnect(1001) from None
