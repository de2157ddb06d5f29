"""What stands beside a continuation: speech that is known to be good, sounds that are known to be bad. S samples."""

import math
import zlib

import numpy as np

from ....data.audio import loudness_dbfs
from ...generator import SpeechGenerator
from ...sound.manipulate import at_level, join, pieces

MIN_REST_S = 1.6  # less of a recording after its prompt is not judged
SHUFFLED_S = 0.5  # about a word
REAL, ROUND_TRIP, CONTINUATION, SHUFFLED, NOISE = KINDS = (
    "real speech",
    "codec round trip",
    "continuation",
    "shuffled speech",
    "noise",
)


def round_trip(lm: SpeechGenerator, audio: np.ndarray) -> np.ndarray:
    """audio [S] as the codec renders it, [S'] with S' <= S: a last frame that is not full is left out."""
    codes = lm.encode((audio, lm.codec.sample_rate), math.inf)
    return lm.codec.decode(codes[None])[0, 0].cpu().numpy()[: len(audio)]


def material(
    recording: np.ndarray, rendered: np.ndarray, continuation: np.ndarray, num_prompt: int, sample_rate: int, name: str
) -> dict[str, np.ndarray]:
    """A recording [S], its round trip and what a model adds to its first `num_prompt` samples -> sounds of one length.

    That length is the shortest of what the recording and the model go on with. Where the recording ends before
    MIN_REST_S, there is only the continuation. The order of shuffled speech, and the noise, are drawn by `name`.
    """
    rest, rendered_rest = recording[num_prompt:], rendered[num_prompt:]
    length = min(len(rest), len(rendered_rest), len(continuation) or len(rest))
    if length < MIN_REST_S * sample_rate:
        return {CONTINUATION: continuation}
    rest, rng = rest[:length], np.random.default_rng(zlib.crc32(name.encode()))
    noise = at_level(rng.standard_normal(length).astype(np.float32), loudness_dbfs(rest))
    return {
        REAL: rest,
        ROUND_TRIP: rendered_rest[:length],
        CONTINUATION: continuation[:length],
        SHUFFLED: shuffled(rest, sample_rate, rng),
        NOISE: noise,
    }


def shuffled(audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """audio [S], cut at quiet places about every SHUFFLED_S, in another order, with joints that cannot be heard."""
    parts = pieces(audio, sample_rate, SHUFFLED_S)
    order = rng.permutation(len(parts))
    joined = parts[order[0]]
    for number in order[1:]:
        joined, _ = join(joined, parts[number], sample_rate)
    return joined.astype(np.float32)
