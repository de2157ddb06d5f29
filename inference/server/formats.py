"""Samples -> the bytes of a reply, at once or while they are made: WAV, bare samples, Ogg Opus, FLAC, MP3 or lines of
JSON. Samples are 16-bit integers, little-endian."""

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...data.audio_out import FORMATS, UNKNOWN_LENGTH, wav_header
from .drawing import Piece, joined
from .refusal import Refusal

TYPES = {
    "wav": "audio/wav",
    "pcm": "audio/pcm",
    "opus": "audio/ogg; codecs=opus",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "jsonl": "application/x-ndjson",
}
PAGE_MS = 40.0  # Opus in a page of Ogg: the most that a listener waits for beyond the codec
SET_PAGE_LATENCY = 0x1302  # SFC_SET_OGG_PAGE_LATENCY_MS of libsndfile


class Bare:
    """The samples themselves."""

    def begin(self) -> bytes:
        return b""

    def add(self, pieces: Sequence[Piece]) -> bytes:
        return b"".join(piece.pcm for piece in pieces)

    def end(self, finish_reason: str) -> bytes:
        return b""


class Wav(Bare):
    def __init__(self, sample_rate: int):
        self.sample_rate = sample_rate

    def begin(self) -> bytes:
        return wav_header(UNKNOWN_LENGTH, self.sample_rate)


class Compressed(Bare):
    """Formats of libsndfile. The few bytes of a header that it would correct at the end stay as they are."""

    def __init__(self, kind: str, sample_rate: int):
        import soundfile

        container, subtype = FORMATS[f".{kind}"]
        self.sink, self.num_sent = io.BytesIO(), 0
        try:
            self.sound = soundfile.SoundFile(self.sink, "w", sample_rate, 1, subtype, format=container)
        except soundfile.LibsndfileError:
            raise Refusal(400, f"format {kind} has no {sample_rate} Hz, the codec's rate; ask for wav or pcm") from None
        if kind == "opus":
            set_page_latency(self.sound)

    def begin(self) -> bytes:
        return self._new()

    def add(self, pieces: Sequence[Piece]) -> bytes:
        self.sound.write(np.frombuffer(super().add(pieces), "<i2"))
        return self._new()

    def end(self, finish_reason: str) -> bytes:
        self.sound.close()
        return self._new()

    def whole(self) -> bytes:
        """All of it, after the end, with the header as it should be."""
        return self.sink.getvalue()

    def _new(self) -> bytes:
        with self.sink.getbuffer() as written:
            found = bytes(written[self.num_sent :])
        self.num_sent += len(found)
        return found


class Lines(Bare):
    """A line that tells how to read the others, lines with samples, codes and bits, and one that tells the end."""

    def __init__(self, about: dict[str, Any]):
        self.about, self.num_samples = about, 0

    def begin(self) -> bytes:
        return line(self.about)

    def add(self, pieces: Sequence[Piece]) -> bytes:
        pcm, codes, bits = joined(pieces)
        self.num_samples += len(pcm) // 2
        return line({"audio": base64.b64encode(pcm).decode(), "codes": codes, "bits": bits})

    def end(self, finish_reason: str) -> bytes:
        return line({"finish_reason": finish_reason, "num_samples": self.num_samples})


def line(values: dict[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def writer(kind: str, sample_rate: int, about: dict[str, Any]) -> Bare:
    """about: for the first line of "jsonl". Raises Refusal for a rate that the format does not have."""
    if kind == "jsonl":
        return Lines(about)
    if kind == "pcm":
        return Bare()
    return Wav(sample_rate) if kind == "wav" else Compressed(kind, sample_rate)


def whole(kind: str, sample_rate: int, pieces: Sequence[Piece]) -> bytes:
    """A whole file. kind: any but "jsonl"."""
    made = writer(kind, sample_rate, {})
    samples = made.add(pieces)
    if isinstance(made, Compressed):
        made.end("")
        return made.whole()
    return (wav_header(len(samples), sample_rate) if kind == "wav" else b"") + samples


def set_page_latency(sound: Any) -> None:
    """Let libsndfile end a page of Ogg after that little sound, in place of a second."""
    import soundfile

    library, ffi = getattr(soundfile, "_snd", None), getattr(soundfile, "_ffi", None)
    if library is not None and ffi is not None:
        library.sf_command(sound._file, SET_PAGE_LATENCY, ffi.new("double *", PAGE_MS), ffi.sizeof("double"))
