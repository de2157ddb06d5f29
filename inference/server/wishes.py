"""Requests as pydantic models: fields of a form, of a JSON object or of a WebSocket's message.

No field is a path, an address or code: audio and prefixes come as bytes.
"""

import io
import json
from dataclasses import fields
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ...data.audio import AudioError, audio_blocks
from ..config import SamplingConfig
from ..generator import SpeechGenerator
from ..grid import Request
from ..prefix import Prefix, prefix_from
from .config import ServerConfig
from .refusal import Refusal

MOST_TEXT = 4096  # characters
MOST_CODES = 2**31  # beyond any number of codes

Format = Literal["wav", "pcm", "opus", "flac", "mp3", "jsonl"]
Model = TypeVar("Model", bound=BaseModel)
Prompt = tuple[np.ndarray, int] | Prefix | None


def several(value: Any) -> Any:
    """ "0.9,0.7", as forms have it -> ["0.9", "0.7"]."""
    return value.split(",") if isinstance(value, str) and "," in value else value


Numbers = Annotated[float | Annotated[tuple[float, ...], Field(max_length=64)], BeforeValidator(several)]
Count = Annotated[int, Field(ge=0, lt=MOST_CODES)]
Counts = Annotated[Count | Annotated[tuple[Count, ...], Field(max_length=64)], BeforeValidator(several)]


class Sampling(BaseModel):
    """Settings of how codes are drawn; with several numbers the first is for codebook 0, and so on."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    temperature: Numbers = Field(
        default=SamplingConfig.temperature, description="sampling temperature (0: the likeliest code)"
    )
    text_temperature: float = Field(
        default=SamplingConfig.text_temperature, description="the same of text that the model writes"
    )
    top_k: Counts = Field(
        default=SamplingConfig.top_k, description="draw from the K likeliest codes only (0: from all)"
    )
    top_p: Numbers = Field(
        default=SamplingConfig.top_p, description="draw from the likeliest codes with this probability together"
    )
    min_p: Numbers = Field(
        default=SamplingConfig.min_p, description="draw from codes at least this share as likely as the likeliest"
    )
    repetition_share: float = Field(
        default=SamplingConfig.repetition_share, description="draw codes again that fill more than this share"
    )
    repetition_frames: int = Field(
        default=SamplingConfig.repetition_frames, le=1000, description="frames in which that is counted"
    )
    num_codebooks: Count = Field(
        default=SamplingConfig.num_codebooks, description="draw this many leading codebooks (0: all)"
    )
    guidance: float = Field(default=SamplingConfig.guidance, description="weight of the text and voice")
    stop_at_end: bool = Field(default=SamplingConfig.stop_at_end, description="stop when the model ends the utterance")
    max_prompt_s: float = Field(
        default=SamplingConfig.max_prompt_s, le=60, description="use the last N seconds of the prompt"
    )

    def config(self) -> SamplingConfig:
        """Raises ValueError for a setting out of its range."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(SamplingConfig)}
        return SamplingConfig(**values)


class Continuation(Sampling):
    """A continuation of a prompt, or from nothing."""

    duration: float | None = Field(
        default=None, gt=0, description="seconds to generate; else until the model ends, or 8"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="same seed, same machine: same codes")
    text: str | None = Field(
        default=None, max_length=MOST_TEXT, description="text to say, for a model that speaks text"
    )
    format: Format = Field(default="wav", description="jsonl: lines with samples, codes and bits")
    stream: bool = Field(default=False, description="send it while it is made (jsonl always is, flac never)")


class Speech(Sampling):
    """Text to speak, in the shape of OpenAI's API, with the settings beyond it."""

    model: str = Field(default="codeclm", max_length=200, description="the one that is served, whatever is said here")
    input: str = Field(min_length=1, max_length=MOST_TEXT, description="text to say")
    voice: Literal["default"] = Field(default="default", description="the model's own")
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] = "mp3"
    speed: float = Field(default=1.0, ge=1, le=1, description="there is one speed")
    instructions: str | None = Field(default=None, max_length=0, description="not understood: leave it out")
    duration: float | None = Field(default=None, gt=0, description="seconds at most; else until the model ends")
    seed: int = Field(default=0, ge=0, lt=2**63)

    def continuation(self) -> Continuation:
        """The same in our own words."""
        own = {name: getattr(self, name) for name in Sampling.model_fields}
        return Continuation(
            duration=self.duration, seed=self.seed, text=self.input, format=self.response_format, stream=True, **own
        )


class Transcription(BaseModel):
    """Speech to write down, in the shape of OpenAI's API."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str = Field(default="codeclm", max_length=200, description="the one that is served, whatever is said here")
    language: str | None = Field(
        default=None, max_length=40, description="of no influence: a model has learned its own"
    )
    temperature: float = Field(
        default=0.0, ge=0, le=2, description="0: the likeliest text, found by beam search; else it is drawn"
    )
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"

    def sampling(self) -> SamplingConfig | None:
        return SamplingConfig(text_temperature=self.temperature) if self.temperature else None


class Order(NamedTuple):
    """A request that can be drawn."""

    request: Request
    seed: int
    sampling: SamplingConfig


def understood(kind: type[Model], values: Any) -> Model:
    """Values as a model. Raises Refusal with one line."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"] if not str(part).startswith("constrained-"))
        given = "" if first["type"] == "missing" else f" (given: {json.dumps(first['input'], default=str)[:80]})"
        line = f"{place or 'the message'}: {first['msg'].removeprefix('Value error, ')}{given}"
        raise Refusal(400, line) from None


def order_of(lm: SpeechGenerator, config: ServerConfig, wish: Continuation, prompt: Prompt) -> Order:
    """Encode the prompt and lay the request out. Raises ValueError or Refusal in one line."""
    sampling = lm.until_end(wish.config(), prompt, wish.duration, wish.text)
    request = lm.request(prompt, wish.duration, sampling, wish.text)
    if request.num_frames > config.max_duration * lm.codec.frame_rate:
        seconds = request.num_frames / lm.codec.frame_rate
        raise Refusal(400, f"duration is {seconds:g} s; this server gives at most {config.max_duration:g} s")
    return Order(request, wish.seed, sampling)


def recording(content: bytes, sample_rate: int, longest_s: float) -> np.ndarray:
    """The bytes of an audio file -> float32 [S]. Raises AudioError or Refusal in one line."""
    if not content:
        raise AudioError("audio: the file is empty (0 bytes)")
    blocks, num_samples = [], 0
    for block in audio_blocks(io.BytesIO(content), sample_rate, check_speech=True, name="audio"):
        num_samples += len(block)
        if num_samples > longest_s * sample_rate:
            raise Refusal(413, f"audio: is longer than {longest_s:g} s, the most that this server takes; send a part")
        blocks.append(block)
    return np.concatenate(blocks)


def prompt_of(lm: SpeechGenerator, config: ServerConfig, audio: bytes | None, prefix: bytes | None) -> Prompt:
    """Raises ValueError or Refusal in one line."""
    if prefix is not None:
        return prefix_from(prefix, lm, "prefix")
    if audio is None:
        return None
    rate = lm.codec.sample_rate
    return recording(audio, rate, config.max_audio_s), rate
