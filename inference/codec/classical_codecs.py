"""Classical codecs as anchors of a comparison, by the ffmpeg that is installed: Opus, and Codec 2 below its rates.

ffmpeg runs as a process of its own with pipes: nothing is written. S samples at 16 kHz.
"""

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .reconstruction import Passage

SAMPLE_RATE = 16_000  # Hz, of what anchors hear and say
OPUS_RATES = (6_000, 510_000)  # bits/s: the least at which libopus still codes every frame, and the most
CODEC2_MODES = {700: "700C", 1200: "1200", 1600: "1600", 2400: "2400", 3200: "3200"}  # bits/s -> its name in ffmpeg
CODEC2_DELAY_S = 0.02  # its decoder is one frame late; Ogg Opus says how late it is, and ffmpeg makes up for that
CODEC2_HEADER_BYTES = 7
RAW = ("-f", "f32le", "-ar", str(SAMPLE_RATE), "-ac", "1")


@dataclass(frozen=True)
class Anchor:
    """A classical codec at one rate."""

    family: str  # "Opus" or "Codec 2"
    bitrate: int  # bits/s, as asked for; what it takes is in `Passage.num_bits`
    frame_rate = 50.0  # Hz; both think in steps of 20 ms

    @property
    def name(self) -> str:
        return f"{self.family} {self.bitrate / 1000:g}k"

    def through(self, audio: np.ndarray) -> Passage:
        """audio [S] -> what comes back [S], and the bits of its packets. Raises ValueError if ffmpeg cannot do it."""
        if self.family == "Opus":
            return self._opus(audio)
        return self._codec2(audio)

    def _opus(self, audio: np.ndarray) -> Passage:
        options = ("-c:a", "libopus", "-application", "voip", "-b:a", str(self.bitrate), "-f", "ogg")
        packed = _ffmpeg([*RAW, "-i", "pipe:0", *options, "pipe:1"], _bytes(audio))
        output = _ffmpeg(["-f", "ogg", "-c:a", "libopus", "-i", "pipe:0", *RAW, "pipe:1"], packed)
        return Passage(_samples(output, len(audio)), 8 * ogg_packet_bytes(packed))

    def _codec2(self, audio: np.ndarray) -> Passage:
        options = ("-ar", "8000", "-c:a", "libcodec2", "-mode", CODEC2_MODES[self.bitrate], "-f", "codec2")
        packed = _ffmpeg([*RAW, "-i", "pipe:0", *options, "pipe:1"], _bytes(audio))
        output = _ffmpeg(["-f", "codec2", "-i", "pipe:0", *RAW, "pipe:1"], packed)
        late = round(CODEC2_DELAY_S * SAMPLE_RATE)
        return Passage(_samples(output, len(audio) + late)[late:], 8 * (len(packed) - CODEC2_HEADER_BYTES))


def nearest_anchors(bitrates: Iterable[float]) -> tuple[list[Anchor], list[str]]:
    """The anchors nearest to these bits/s that ffmpeg can do here, and for each other one its name and the reason."""
    wanted = set()
    for bitrate in bitrates:
        wanted.add(Anchor("Opus", round(min(max(bitrate, OPUS_RATES[0]), OPUS_RATES[1]))))
        if bitrate < OPUS_RATES[0]:
            wanted.add(Anchor("Codec 2", min(CODEC2_MODES, key=lambda rate: (abs(rate - bitrate), -rate))))
    found, left_out = [], []
    noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE).astype(np.float32)
    for anchor in sorted(wanted, key=lambda anchor: anchor.bitrate):
        try:
            anchor.through(noise)
            found.append(anchor)
        except ValueError as error:
            left_out.append(f"{anchor.name} is left out: {error}")
    return found, left_out


def ogg_packet_bytes(content: bytes) -> int:
    """Bytes of the audio packets of an Ogg Opus file: without page headers and without the two pages about it."""
    position, sizes = 0, []
    while content[position : position + 4] == b"OggS":
        num_segments = content[position + 26]
        header = 27 + num_segments
        sizes.append(sum(content[position + 27 : position + header]))
        position += header + sizes[-1]
    return sum(sizes[2:])


def _ffmpeg(arguments: list[str], content: bytes) -> bytes:
    command = ["ffmpeg", "-nostdin", "-hide_banner", "-loglevel", "error", *arguments]
    try:
        result = subprocess.run(command, input=content, capture_output=True)
    except FileNotFoundError:
        raise ValueError("ffmpeg is not installed") from None
    except OSError as error:
        raise ValueError(f"ffmpeg cannot be run ({error.strerror or error})") from None
    if result.returncode or not result.stdout:
        lines = result.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(f"ffmpeg failed ({lines[0] if lines else f'exit status {result.returncode}'})")
    return result.stdout


def _bytes(audio: np.ndarray) -> bytes:
    return audio.astype("<f4").tobytes()


def _samples(content: bytes, length: int) -> np.ndarray:
    """32-bit floats -> [length], cut or filled up with silence."""
    samples = np.frombuffer(content, "<f4")[:length]
    return np.pad(samples, (0, length - len(samples))).astype(np.float32)
