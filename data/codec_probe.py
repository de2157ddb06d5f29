"""Does a codec still behave as it did when a store was made? Equal weights do not say so: transformers 5.3 changed the
codes of Mimi beyond 10 s of audio (huggingface/transformers#43971), and its fingerprint stayed.

A new store keeps checksums of the codes of a fixed half minute of sound (codec_probe.json). Who comes with other
versions or another kind of device encodes it again. Checksums are by frame, because codes are not equal everywhere: two
entries of a codebook can be nearly as near, and processors round differently, which moves a code now and then. A frame
differs here if one of its first LEADING codes does. T frames, S samples.
"""

import json
import logging
import zlib
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from ..model.codecs import Codec
from ..model.files import write_whole
from ..model.strict import read_object, strict
from .utterance_table import GOLDEN, mixed

PROBE = "codec_probe.json"
PROBE_S = 30
LEADING = 4  # codebooks: with each one a near tie becomes likelier, and it moves all later codes of its frame
MOST_FRAMES = 4096
TOLERANCE = 0.1
PACKAGES = ("torch", "transformers")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """The content of codec_probe.json."""

    fingerprint: str
    made_by: dict[str, str]  # versions and kind of device
    frames: str  # a byte for each frame, in hexadecimal

    @classmethod
    def of(cls, codec: Codec) -> "Probe":
        audio = torch.from_numpy(probe_signal(codec.sample_rate))[None, None].to(codec.device)
        codes = codec.encode(audio)[0, :LEADING].T.cpu().numpy().astype("<u2")  # [T, K]
        chosen = codes[:: -(-len(codes) // MOST_FRAMES)]
        frames = bytes(zlib.crc32(np.ascontiguousarray(frame).data) & 0xFF for frame in chosen)
        return cls(codec.fingerprint, environment(codec), frames.hex())

    @classmethod
    def read(cls, folder: Path) -> "Probe | None":
        """None where there is none, or none that can be read."""
        try:
            return strict(cls, read_object(folder / PROBE))
        except (OSError, ValueError):
            return None

    def write(self, folder: Path) -> None:
        write_whole(folder / PROBE, json.dumps(asdict(self)) + "\n")

    def share_changed(self, other: "Probe") -> float:
        """Share of the frames that differ; by chance 1 in 256 of those that changed does not."""
        mine, theirs = bytes.fromhex(self.frames), bytes.fromhex(other.frames)
        if len(mine) != len(theirs):
            return 1.0
        return float(np.mean(np.frombuffer(mine, np.uint8) != np.frombuffer(theirs, np.uint8)))


def check_behaviour(codec: Codec, folder: Path) -> None:
    """Raise ValueError, naming what is different here, if the codec does not make the codes that are in `folder`.

    Nothing is said where the folder does not know, or holds another codec's codes.
    """
    stored = Probe.read(folder)
    if stored is None or stored.fingerprint != codec.fingerprint:
        return
    here = environment(codec)
    if here == stored.made_by:
        return
    changed = stored.share_changed(Probe.of(codec))
    if changed > TOLERANCE:
        was, now = (
            ", ".join(f"{key} {facts.get(key, 'without')}" for key in here if here[key] != stored.made_by.get(key))
            for facts in (stored.made_by, here)
        )
        raise ValueError(
            f"{folder}: codec '{codec.name}' has the same weights but makes other codes here ({changed:.0%} of the "
            f"frames of a test signal differ; the store was made with {was}, here is {now}); use those versions, or "
            f"prepare the audio into another folder"
        )


def environment(codec: Codec) -> dict[str, str]:
    """What a codec's codes may depend on beside its weights."""
    return {name: _version(name) for name in PACKAGES} | {"device": codec.device.type}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def probe_signal(sample_rate: int) -> np.ndarray:
    """Half a minute that is voice-like enough, float32 [S]: pulses that glide, and noise, in syllables.

    Integers only, up to the last division, so that it is the same everywhere.
    """
    n = np.arange(PROBE_S * sample_rate, dtype=np.uint64)
    syllables = _triangle(3, n, sample_rate) * _triangle(7, n, sample_rate) >> np.uint64(16)  # 16 bits
    glide = np.uint64(90) + (_triangle(1, n, sample_rate) * np.uint64(120) >> np.uint64(16))  # Hz
    phase = np.cumsum((glide << np.uint64(32)) // np.uint64(sample_rate), dtype=np.uint64)
    pulses = ((phase >> np.uint64(16)) & np.uint64(0xFFFF)).astype(np.int64) - 32768  # a sawtooth
    noise = (_hash(n) >> np.uint64(48)).astype(np.int64) - 32768
    mixed = (3 * pulses + noise) * syllables.astype(np.int64) >> 18
    return (mixed / 32768).astype(np.float32)


def _triangle(hz: int, n: np.ndarray, sample_rate: int) -> np.ndarray:
    """Up and down between 0 and 2**16 - 1, `hz` times in a second."""
    place = (n * np.uint64(hz) * np.uint64(0x20000) // np.uint64(sample_rate)) & np.uint64(0x1FFFF)
    return np.minimum(place, np.uint64(0x1FFFF) - place)


def _hash(n: np.ndarray) -> np.ndarray:
    """splitmix64: as good as random."""
    return mixed(n * GOLDEN)
