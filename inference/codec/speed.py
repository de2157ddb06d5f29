"""How fast codecs encode and decode one clip, and how fast this machine could at most: `bench` gives a `BenchReport`.

Codecs take turns, round after round, so that whatever else the machine does slows all of them alike. Figures of this
machine at this moment: nothing may depend on them. Not what codecs do to speech (evaluate/codec_report.py). S samples.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.audio import load_audio
from ...data.progress import progress_bar
from ...model.codecs import Codec, StreamingCoder
from ...model.codecs.blocks import BlockCodec
from ..json_safe import json_safe
from ..machine import MATRIX_SIZE, Machine, load_average, matmul_rate, processor_name, seconds
from ..threads import torch_threads
from .contract import blocks_line
from .flops import count_flops
from .library_calls import library_calls

MAX_DURATION_S = 600.0
WARM_PUSHES, PUSHES = 10, 50  # chunks of a stream in each round: before measuring, and measured


@dataclass(frozen=True)
class BenchConfig:
    duration_s: float = 10.0  # length of the clip, repeated or cut
    rounds: int = 5
    threads: int | None = None  # torch threads; None: torch's own choice
    device: str = "cpu"

    def __post_init__(self) -> None:
        cores = os.cpu_count() or 1
        if not 0 < self.duration_s <= MAX_DURATION_S:
            raise ValueError(f"duration is {self.duration_s} s; it must be more than 0, at most {MAX_DURATION_S:g} s")
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}; it must be at least 1")
        if self.threads is not None and not 1 <= self.threads <= cores:
            raise ValueError(f"threads is {self.threads}; it must be 1 to {cores}, the cores of this machine")
        if self.device not in MATRIX_SIZE:
            raise ValueError(f"device '{self.device}' is unknown; choose one of {', '.join(MATRIX_SIZE)}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device 'cuda' is not there: torch sees no CUDA GPU; choose cpu")


@dataclass(frozen=True)
class Stream:
    """One frame a push."""

    speed: float  # times real time: the duration of a frame / the mean of all pushes
    median_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Direction:
    """Encoding, or decoding."""

    seconds: list[float]  # wall clock of each round
    speed: float  # times real time, by the median of the rounds
    spread: float  # (slowest - fastest) / median
    gflop: float  # GFLOP per second of audio: matrix products, convolutions, LSTMs
    peak_share: float  # `speed` as a share of the machine's peak rate
    limit: float  # times real time at the peak rate; infinite where nothing was counted
    stream: Stream | None  # None: it works in blocks


@dataclass(frozen=True)
class LibrarySpeed:
    """Times real time, by the median of the rounds."""

    encode: float
    decode: float
    both: float
    times_slower: float  # than the first codec


@dataclass(frozen=True)
class CodecSpeed:
    codec: str
    sample_rate: int  # Hz
    frame_rate: float  # Hz
    num_codebooks: int
    codebook_size: int
    bitrate: float  # bits/s
    encode: Direction
    decode: Direction
    both: float  # times real time, one after the other
    both_limit: float
    times_slower: float  # than the first codec, by `both`
    library: "LibrarySpeed | None"  # transformers' own calls for the same network; None: it is not one of theirs
    streams: str  # how its streams are cut, in words


@dataclass(frozen=True)
class BenchReport:
    clip: str
    config: BenchConfig
    machine: Machine
    codecs: list[CodecSpeed]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what is not a finite number is None."""
        return json_safe(asdict(self))


def bench(codecs: Mapping[str, Codec], clip: Path, config: BenchConfig = BenchConfig()) -> BenchReport:
    """Measure codecs, by the names they are shown under, on the audio file `clip`. They are moved to the device.

    Raises ValueError without a codec, AudioError for a file that cannot be used.
    """
    if not codecs:
        raise ValueError("no codec was given")
    threads, busy = config.threads or torch.get_num_threads(), load_average()
    with torch_threads(threads):
        trials = [_Trial(name, codec, clip, config) for name, codec in codecs.items()]
        steps = len(trials) * (1 + config.rounds)
        with progress_bar(total=steps, desc="measure", unit="run", delay=2) as bar:
            for trial in trials:
                trial.warm_up()
                bar.update()
            peaks = []
            for _ in range(config.rounds):
                peaks.append(matmul_rate(torch.device(config.device)))
                for trial in trials:
                    trial.run()
                    bar.update()
    rows: list[CodecSpeed] = []
    for trial in trials:
        rows.append(trial.row(max(peaks), rows[0].both if rows else None))
    machine = Machine(
        processor_name(config.device), os.cpu_count() or 1, threads, torch.__version__, config.device, busy,
        max(peaks) / 1e9,
    )  # fmt: skip
    return BenchReport(str(clip), config, machine, rows)


class _Trial:
    """One codec and its clip, and what has been measured so far."""

    def __init__(self, name: str, codec: Codec, clip: Path, config: BenchConfig):
        self.name, self.codec, self.device = name, codec.to(config.device), torch.device(config.device)
        samples = load_audio(clip, codec.sample_rate)
        self.audio = self._looped(samples, max(1, round(config.duration_s * codec.sample_rate)))
        first, self.steady = 1, [True, True]  # steady: encoder and decoder take one frame a push
        if isinstance(codec, BlockCodec):
            blocks = [codec.encoder_blocks, codec.decoder_blocks]
            first, self.steady = max(b.first + b.right for b in blocks), [b.least == 1 for b in blocks]
        self.num_warm = WARM_PUSHES + first
        self.streamed = self._looped(samples, (self.num_warm + PUSHES) * codec.hop_length)
        self.codes, self.streamed_codes = torch.empty(0), torch.empty(0)
        self.seconds: tuple[list[float], list[float]] = ([], [])
        self.push_seconds: tuple[list[float], list[float]] = ([], [])
        self.flops = (0, 0)
        self.library = library_calls(codec)
        self.library_codes: Any = None  # what its encode gives
        self.library_seconds: tuple[list[float], list[float]] = ([], [])

    def _looped(self, samples: np.ndarray, length: int) -> Tensor:
        return torch.from_numpy(np.resize(samples, length))[None, None].to(self.device)

    def warm_up(self) -> None:
        """The first run, in which operations are counted and time is not."""
        self.codes, encoded = count_flops(lambda: self.codec.encode(self.audio))
        _, decoded = count_flops(lambda: self.codec.decode(self.codes))
        self.streamed_codes = self.codec.encode(self.streamed)
        self.flops = encoded, decoded
        self._run_library()
        self.library_seconds = [], []

    def run(self) -> None:
        """One round."""
        self.seconds[0].append(seconds(lambda: self.codec.encode(self.audio), self.device))
        self.seconds[1].append(seconds(lambda: self.codec.decode(self.codes), self.device))
        self._run_library()
        if self.steady[0]:
            frames = self.streamed.split(self.codec.hop_length, dim=-1)
            self.push_seconds[0].extend(self._pushes(self.codec.streaming_encoder(), frames))
        if self.steady[1]:
            self.push_seconds[1].extend(
                self._pushes(self.codec.streaming_decoder(), self.streamed_codes.split(1, dim=-1))
            )

    @torch.no_grad()
    def _run_library(self) -> None:
        if self.library is not None:
            encode, decode = self.library
            if self.library_codes is None:
                self.library_codes = encode(self.audio)
            found = self.library_codes
            self.library_seconds[0].append(seconds(lambda: encode(self.audio), self.device))
            self.library_seconds[1].append(seconds(lambda: decode(found), self.device))

    def _pushes(self, coder: StreamingCoder, frames: Sequence[Tensor]) -> list[float]:
        """Seconds of each push, but for the first ones."""
        return [seconds(lambda frame=frame: coder.push(frame), self.device) for frame in frames][self.num_warm :]

    def row(self, peak: float, first_both: float | None) -> CodecSpeed:
        """peak: FLOP/s. first_both: `both` of the first codec, None for that codec itself."""
        codec, duration_s = self.codec, self.audio.shape[-1] / self.codec.sample_rate
        encode, decode = (
            direction(taken, duration_s, flops, peak, stream_of(pushes, 1 / codec.frame_rate) if steady else None)
            for taken, flops, pushes, steady in zip(
                self.seconds, self.flops, self.push_seconds, self.steady, strict=True
            )
        )
        both = in_turn(encode.speed, decode.speed)
        return CodecSpeed(
            self.name, codec.sample_rate, codec.frame_rate, codec.num_codebooks, codec.codebook_size, codec.bitrate,
            encode, decode, both, in_turn(encode.limit, decode.limit), (first_both or both) / both,
            self._library_speed(duration_s, first_both or both), blocks_line(codec),
        )  # fmt: skip

    def _library_speed(self, duration_s: float, first_both: float) -> LibrarySpeed | None:
        if self.library is None:
            return None
        encode, decode = (duration_s / float(np.median(taken)) for taken in self.library_seconds)
        both = in_turn(encode, decode)
        return LibrarySpeed(encode, decode, both, first_both / both)


def direction(taken: Sequence[float], duration_s: float, flops: int, peak: float, stream: Stream | None) -> Direction:
    """taken: seconds of each round; flops: of the whole clip; peak: FLOP/s."""
    median, rate = float(np.median(taken)), flops / duration_s
    speed = duration_s / median
    return Direction(
        seconds=list(taken),
        speed=speed,
        spread=(max(taken) - min(taken)) / median,
        gflop=rate / 1e9,
        peak_share=speed * rate / peak,
        limit=peak / rate if rate else float("inf"),
        stream=stream,
    )


def stream_of(pushes: Sequence[float], frame_s: float) -> Stream:
    """pushes: seconds of each."""
    median, p95 = np.percentile(pushes, [50, 95])
    return Stream(frame_s / float(np.mean(pushes)), 1000 * float(median), 1000 * float(p95))


def in_turn(encode: float, decode: float) -> float:
    """Times real time of one after the other."""
    return 1 / (1 / encode + 1 / decode) if 1 / encode + 1 / decode else float("inf")
