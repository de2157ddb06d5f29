"""The application: endpoints of the service, in FastAPI. Who comes this far is gate.py's to say."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response, WebSocket
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.responses import FileResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from ..evaluate.score import codes_nll
from ..generator import SpeechGenerator
from ..prompt import encode_end
from .config import ServerConfig
from .conversation import Conversation
from .gate import Gate
from .refusal import Refusal, refusal_of
from .replies import SpeechReply, refused
from .service import Service
from .transcribed import transcribed
from .wishes import Continuation, Speech, Transcription, prompt_of, recording, understood

PAGE = Path(__file__).parent / "page"
FILES = ("audio", "prefix")  # what a continuation may have as bytes
MOST_FIELDS = 40


def make_app(lm: SpeechGenerator, config: ServerConfig, host: str = "127.0.0.1") -> Gate:
    """The ASGI application for a model. host: that it will be bound to."""
    service = Service(lm, config)
    # a file of a form stays in memory, which the limits bound: a full disk is no concern of ours
    MultiPartParser.spool_max_size = config.max_body + 1

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.drawing.start()
        yield
        service.drawing.stop()

    # the page of FastAPI's own that draws openapi.json is fetched from a network
    app = FastAPI(
        title="codeclm", version=version("codeclm"), lifespan=lifespan, docs_url=None, redoc_url=None,
        description="A speech language model: continuations, speech from text and text from speech, likelihoods, talk.",
    )  # fmt: skip
    app.add_exception_handler(Refusal, tell)
    app.add_exception_handler(HTTPException, tell)
    add_work(app, service)
    add_knowledge(app, service)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return Gate(app, service, host)


async def tell(request: Request, error: Exception) -> Response:
    """The answer to a request that ended in an error which somebody foresaw."""
    if isinstance(error, HTTPException):
        error = Refusal(error.status_code, f"{request.method} {request.url.path[:80]}: {error.detail}")
    return refused(refusal_of(error))


def add_work(app: FastAPI, service: Service) -> None:
    """The endpoints that draw and score."""
    lm, config = service.lm, service.config

    @app.post("/v1/continuations", response_class=Response, openapi_extra=form_schema(Continuation, FILES))
    async def continuations(request: Request) -> Response:
        """Continue the speech in `audio`, in `prefix` (a file of `codeclm prefix`), or nothing."""
        values, files = await fields_of(request, FILES)
        wish, audio, prefix = understood(Continuation, values), files.get("audio"), files.get("prefix")
        if audio is not None and prefix is not None:
            raise Refusal(400, "audio and prefix: give one of them")
        return Late(SpeechReply(service, wish, lambda: prompt_of(lm, config, audio, prefix)))

    @app.post("/v1/audio/speech", response_class=Response, openapi_extra=json_schema(Speech))
    async def speech(request: Request) -> Response:
        """Say a text, as OpenAI's endpoint of that name does; needs a model that speaks text."""
        wish = understood(Speech, await json_of(request)).continuation()
        if not service.speaks_text:
            raise Refusal(400, "this model speaks no text; serve one that was trained with --model.text.layout first")
        return Late(SpeechReply(service, wish, lambda: None))

    @app.post("/v1/audio/transcriptions", openapi_extra=form_schema(Transcription, ("file",)))
    async def transcriptions(request: Request) -> Response:
        """Write down what is said in `file`, as OpenAI's endpoint of that name does; needs a model that writes text."""
        values, files = await fields_of(request, ("file",))
        wish = understood(Transcription, values)
        if not service.writes_text:
            raise Refusal(400, "this model writes no text; serve one that was trained with --model.text.layout last")
        if not files:
            raise Refusal(400, "a transcription has a field file, with the bytes of a recording")
        return await transcribed(service, wish, files["file"], request)

    @app.post("/v1/likelihood", openapi_extra=form_schema(None, ("audio",)))
    async def likelihood(request: Request) -> JSONResponse:
        """The bits that the codes of `audio` cost the model: a second, and each code of each frame."""
        values, files = await fields_of(request, ("audio",))
        if values or not files:
            raise Refusal(400, "a likelihood has one field, audio, with the bytes of a recording")
        return JSONResponse(await service.drawing.read(score, lm, config, files["audio"]))

    @app.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        await Conversation(service, socket).run()


def add_knowledge(app: FastAPI, service: Service) -> None:
    """The endpoints that tell about the service."""
    lm, config = service.lm, service.config

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(PAGE / "docs.html")

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether it answers, and how busy it is."""
        state = "draining" if service.turnstile.is_draining else "ok"
        return {"status": state, "open": service.turnstile.num_inside, "sockets": service.sockets.num_inside}

    @app.get("/v1/model")
    async def model() -> dict[str, Any]:
        """The model, the limits of this server, and the settings of a request with their defaults."""
        limits = ("max_sessions", "max_waiting", "max_duration", "max_audio_s", "max_body_mb")
        return {
            "model": lm.name,
            "codec": lm.codec.name,
            **service.about(),
            "speaks_text": service.speaks_text,
            "writes_text": service.writes_text,
            "limits": {name: getattr(config, name) for name in limits},
            "settings": Continuation.model_json_schema()["properties"],
        }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The same model in the shape of OpenAI's API."""
        return {"object": "list", "data": [{"id": "codeclm", "object": "model", "created": 0, "owned_by": "codeclm"}]}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


class Late(Response):
    """A response of FastAPI's that is another ASGI application."""

    def __init__(self, reply: SpeechReply):
        super().__init__()
        self.reply = reply

    async def __call__(self, scope, receive, send) -> None:
        await self.reply(scope, receive, send)


async def fields_of(request: Request, names: tuple[str, ...]) -> tuple[dict[str, str], dict[str, bytes]]:
    """The fields of a form: plain ones, and files of these names. Raises Refusal for anything else."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise Refusal(415, "send a form: multipart/form-data")
    try:
        form: FormData = await request.form(max_files=len(names), max_fields=MOST_FIELDS, max_part_size=2**16)
    except (
        ValueError,
        KeyError,
        UnicodeError,
        AttributeError,
        TypeError,
    ) as error:  # it is no form at all
        raise Refusal(400, f"the form cannot be read ({type(error).__name__}); send multipart/form-data") from None
    values: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for name, value in form.multi_items():
        if name in values or name in files:
            raise Refusal(400, f"{name[:80]}: is given twice")
        if (name in names) != isinstance(value, UploadFile):
            raise Refusal(400, f"{name[:80]}: {'send the bytes of a file' if name in names else 'is not a file'}")
        if isinstance(value, UploadFile):
            files[name] = await value.read()
        else:
            values[name] = value
    await form.close()
    return values, files


async def json_of(request: Request) -> Any:
    try:
        return await request.json()
    except (ValueError, RecursionError):
        raise Refusal(400, "the body must be a JSON object") from None


def score(lm: SpeechGenerator, config: ServerConfig, audio: bytes) -> dict[str, Any]:
    """What `POST /v1/likelihood` answers. Raises AudioError or Refusal in one line."""
    rate = lm.codec.sample_rate
    codes = encode_end(lm.codec, (recording(audio, rate, config.max_audio_s), rate), float("inf"), lm.threads)
    nll = codes_nll(lm.model, codes[: lm.model.num_codebooks])
    bits = nll / np.log(2)
    return {
        "bits_per_second": float(bits.sum() / bits.shape[1] * lm.codec.frame_rate),
        "bits_per_frame": float(bits.sum() / bits.shape[1]),
        "perplexity": np.exp(nll.mean(axis=1)).tolist(),
        "duration_s": bits.shape[1] / lm.codec.frame_rate,
        "frame_rate": lm.codec.frame_rate,
        "codes": codes.T.tolist(),
        "bits": bits.T.round(4).tolist(),
    }


def form_schema(kind: type[BaseModel] | None, files: tuple[str, ...]) -> dict[str, Any]:
    """A form for openapi.json."""
    schema = {"type": "object", "properties": {}} if kind is None else kind.model_json_schema()
    schema["properties"] |= {name: {"type": "string", "format": "binary"} for name in files}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def json_schema(kind: type[BaseModel]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}}
