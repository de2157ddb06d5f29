"""Audio that only FFmpeg reads (.m4a, .webm, .wma, ...), decoded by PyAV (extra `formats`)."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..model.files import readable
from .audio import BLOCK_S, AudioError

KNOWN_LENGTH = ("mov", "matroska", "asf")  # containers that say how long they are; of others the length is a guess


def ffmpeg_blocks(audio: Path | BinaryIO, name: str, start_s: float) -> tuple[int, Iterator[np.ndarray]]:
    """Sample rate in Hz and blocks [n, channels] of the first audio stream, from `start_s` on.

    Raises AudioError, naming the file, for what FFmpeg cannot read, holds no sound or is cut off.
    """
    import av
    import av.container
    import av.error

    stack = ExitStack()
    try:
        file = stack.enter_context(audio.open("rb")) if isinstance(audio, Path) else audio
        file.seek(0)
        container = stack.enter_context(av.open(file, "r", metadata_errors="replace"))
        stream = next(iter(container.streams.audio), None)
        if stream is None:
            raise AudioError(f"{name}: holds no sound")
        rate, layout = stream.rate, stream.layout.name
    except av.error.FFmpegError as error:
        stack.close()
        raise _told(error, name) from None
    except BaseException:
        stack.close()
        raise
    seconds = container.duration / av.time_base if container.duration else 0.0
    if not container.format.name.startswith(KNOWN_LENGTH):
        seconds = 0.0

    def decoded() -> Iterator[np.ndarray]:
        resampler = av.AudioResampler(format="flt", layout=layout, rate=rate)
        for frame in container.decode(stream):
            for part in resampler.resample(frame):
                yield part.to_ndarray().reshape(-1, len(part.layout.channels))

    def blocks() -> Iterator[np.ndarray]:
        first, num_read, num_held, held = round(start_s * rate), 0, 0, []
        with stack:
            try:
                for part in decoded():
                    num_read += len(part)
                    part = part[max(0, len(part) - max(0, num_read - first)) :]
                    held.append(part)
                    num_held += len(part)
                    if num_held >= BLOCK_S * rate:
                        yield np.concatenate(held)
                        num_held, held = 0, []
            except av.error.FFmpegError as error:
                raise _told(error, name) from None
        if first and num_read <= first:
            raise AudioError(f"{name}: is to be used from {start_s:g} s on, but ends at {num_read / rate:.2f} s")
        if num_read < 0.98 * seconds * rate:
            raise AudioError(f"{name}: cut off ({num_read / rate:.2f} of {seconds:.2f} s can be read)")
        if num_held:
            yield np.concatenate(held)

    return rate, blocks()


def _told(error: Exception, name: str) -> AudioError:
    reason = getattr(error, "strerror", None) or str(error)
    return AudioError(f"{name}: cannot be read as audio (FFmpeg: {readable(str(reason))})")
