"""The answer to a request for a transcript: passage by passage, so that one whose client has left ends early."""

from typing import Any

from fastapi import Request, Response
from starlette.responses import JSONResponse, PlainTextResponse

from ..passage import Passage, lines
from .service import Service
from .wishes import Transcription, recording

GONE = 499  # the status of a client that has closed its connection: no one sees it, but the metrics count it


async def transcribed(service: Service, wish: Transcription, content: bytes, request: Request) -> Response:
    """content: the bytes of an audio file. Raises AudioError or Refusal in one line."""
    lm, rate, read = service.lm, service.lm.codec.sample_rate, service.drawing.read
    samples = await read(recording, content, rate, service.config.max_audio_s)
    passages, found = lm.passages((samples, rate), sampling=wish.sampling()), list[Passage]()
    while (passage := await read(lambda: next(passages, None))) is not None:
        found.append(passage)
        if await request.is_disconnected():
            return Response(status_code=GONE)
    return response(found, wish, len(samples) / rate)


def response(found: list[Passage], wish: Transcription, duration_s: float) -> Response:
    """In the format that was wished for."""
    text, kind = " ".join(passage.text for passage in found), wish.response_format
    if kind == "json":
        return JSONResponse({"text": text})
    if kind == "verbose_json":
        segments = [segment(number, passage) for number, passage in enumerate(found)]
        about = {"task": "transcribe", "language": wish.language, "duration": duration_s}
        return JSONResponse({**about, "text": text, "segments": segments})
    written = [text] if kind == "text" else lines(found, kind)
    return PlainTextResponse("".join(f"{line}\n" for line in written))


def segment(number: int, passage: Passage) -> dict[str, Any]:
    """In OpenAI's words."""
    return {"id": number, "start": passage.start_s, "end": passage.end_s, "text": passage.text}
