"""What memory a codec takes while hours stream through it: each in a fresh process, so that codecs do not add up."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...data.audio import load_audio
from ...data.progress import progress_bar
from ...model.codecs import Codec, StreamingCoder, load_codec
from ..fresh_process import in_fresh_process
from ..resources import PeakMemory, peak_resident_mb
from ..threads import torch_threads

PIECE_S = 60.0
UNTRAINED = "(random)"  # after the name of a codec with random weights


@dataclass(frozen=True)
class CodecSource:
    """Where a codec comes from, so that another process can have the same."""

    name: str  # what `load_codec` takes; with `untrained` what `published` takes
    untrained: bool = False

    @property
    def label(self) -> str:
        return f"{self.name} {UNTRAINED}" if self.untrained else self.name

    def load(self) -> Codec:
        """Raises what `load_codec` or `published` raises."""
        from .random_codecs import published

        return published(self.name) if self.untrained else load_codec(self.name)


@dataclass(frozen=True)
class StreamMemory:
    """MB are 10^6 bytes of the process's resident memory (RSS), Python and torch with it; NaN: the system is silent."""

    codec: str
    minutes: int  # minutes of audio
    loaded_mb: float  # when the codec was loaded
    peak_mb: float  # at most, from the start of the process
    added_mb: float  # at most, by the stream, over the loaded codec


def stream_memory(
    source: CodecSource, clip: Path, hours: float, threads: int | None = None, device: str = "cpu"
) -> StreamMemory:
    """Stream `hours` of the audio file `clip`, repeated, through encoder and decoder, a minute at a time.

    Raises ValueError for hours that are not positive or a clip that cannot be used, OSError if the process is killed.
    """
    if not 0 < hours < float("inf"):
        raise ValueError(f"hours is {hours}; it must be more than 0, and finite")
    return in_fresh_process(f"{source.label}, {hours:g} h", _stream, source, clip, hours, threads, device)


@torch.no_grad()
def _stream(source: CodecSource, clip: Path, hours: float, threads: int | None, device: str) -> StreamMemory:
    codec = source.load().to(device)
    samples = load_audio(clip, codec.sample_rate)
    piece = torch.from_numpy(np.resize(samples, round(PIECE_S * codec.sample_rate)))[None, None].to(device)
    minutes = max(1, round(hours * 3600 / PIECE_S))
    peak_mb, memory = peak_resident_mb(), PeakMemory()  # in this order: the second forgets the first
    with torch_threads(threads or torch.get_num_threads()):
        encoder, decoder = codec.streaming_encoder(), codec.streaming_decoder()
        for _ in progress_bar(range(minutes), desc=source.label, unit="min", delay=2):
            _push(decoder, encoder.push(piece))
        _push(decoder, encoder.flush())
        decoder.flush()
    return StreamMemory(source.label, minutes, memory.before_mb, max(peak_mb, peak_resident_mb()), memory.growth_mb())


def _push(decoder: StreamingCoder, codes: Tensor) -> None:
    if codes.shape[-1]:
        decoder.push(codes)
