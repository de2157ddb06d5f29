"""How close what comes out of a codec is to what went in: all measures of one clip, and their mean over clips.

Both signals come at one sample rate, the codec's own but at least 16 kHz: what a lower rate cuts away is a loss too.
S samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec

import numpy as np

from . import measures
from .transcribe import normalised_words, spoken_words, word_error_rate

COLUMNS = {  # columns of a table: measure -> heading, format
    "pesq_wb": ("PESQ-WB", ".2f"),
    "stoi": ("STOI", ".3f"),
    "si_sdr_db": ("SI-SDR dB", ".1f"),
    "mel_distance": ("mel", ".3f"),
    "log_mel_distance": ("log-mel", ".3f"),
    "pitch_correlation": ("pitch r", ".3f"),
    "voiced_difference": ("voiced", "+.3f"),
    "loudness_difference_db": ("level dB", "+.1f"),
    "word_error_rate": ("WER", ".1%"),
    "text_error_rate": ("WER text", ".1%"),
}
EXTRA_PACKAGES = {"pesq_wb": "pesq", "stoi": "pystoi"}  # measure -> the package of codeclm[eval] that it needs
MEL_WINDOWS = (64, 128, 256, 512, 1024, 2048)  # samples at 16 kHz; 5 mel bands for each 64
NAN = float("nan")


@dataclass(frozen=True)
class Words:
    """What was heard in a reconstruction, and what it is compared with; "" where that is not known."""

    heard: str = ""
    original: str = ""  # what was heard in the original
    text: str = ""  # what was really said
    language: str = ""  # such as "en", of all three


@dataclass(frozen=True)
class ClipMeasures:
    """One reconstruction against its original, or the mean over clips. NaN: not defined here, or not measured."""

    pesq_wb: float
    stoi: float
    si_sdr_db: float
    mel_distance: float  # over six resolutions
    log_mel_distance: float  # at one resolution, at the codec's own rate
    pitch_correlation: float
    voiced_difference: float  # voiced share of the reconstruction less that of the original
    loudness_difference_db: float  # the same, of the active parts
    word_error_rate: float  # the reconstruction's transcript against the original's
    text_error_rate: float  # the same against the true text, in `spoken_words`


def unavailable() -> list[str]:
    """The measures whose packages (codeclm[eval]) are not installed: `compare` gives NaN for them."""
    return [name for name, package in EXTRA_PACKAGES.items() if find_spec(package) is None]


def compare(original: np.ndarray, output: np.ndarray, sample_rate: int, words: Words = Words()) -> ClipMeasures:
    """original [S], output [S'] and what was heard in them -> how close they are, over the shorter length.

    Raises ValueError for a clip that cannot be rated: silent, not finite, or too short for PESQ or STOI.
    """
    missing = unavailable()
    before, after = (measures.measure_speech(x, sample_rate) for x in (original, output))
    return ClipMeasures(
        pesq_wb=NAN if "pesq_wb" in missing else measures.pesq_wb(original, output, sample_rate),
        stoi=NAN if "stoi" in missing else measures.stoi(original, output, sample_rate),
        si_sdr_db=measures.si_sdr(original, output),
        mel_distance=mel_distance(original, output, sample_rate),
        log_mel_distance=measures.log_mel_distance(original, output, sample_rate),
        pitch_correlation=measures.pitch_correlation(original, output, sample_rate),
        voiced_difference=after.voiced_share - before.voiced_share,
        loudness_difference_db=after.loudness_dbfs - before.loudness_dbfs,
        word_error_rate=heard_error_rate([words]),
        text_error_rate=text_error_rate([words]),
    )


def mel_distance(original: np.ndarray, output: np.ndarray, sample_rate: int) -> float:
    """Mean absolute difference of log10 mel magnitudes at 16 kHz, over windows of 4 to 128 ms; 0 = equal.

    Short windows hear clicks and smeared onsets, long ones buzz and wrong pitch. Raises ValueError for no samples.
    """
    length = min(len(original), len(output))
    if length == 0:
        raise ValueError("there is nothing to compare: one of the two signals is empty")
    rate = measures.PERCEPTUAL_RATE
    pair = [measures.resampled(x[:length].astype(np.float64), sample_rate, rate) for x in (original, output)]
    distances = []
    for window in MEL_WINDOWS:
        a, b = (measures.log_mel(x, rate, window, window // 4, 5 * window // 64) for x in pair)
        distances.append(np.abs(a - b).mean())
    return float(np.mean(distances))


def mean_measures(clips: Sequence[ClipMeasures], words: Sequence[Words]) -> ClipMeasures:
    """Over the clips where a measure is defined; word error rates are pooled over all words of the clips."""
    values = {}
    for column in fields(ClipMeasures):
        defined = [value for clip in clips if np.isfinite(value := getattr(clip, column.name))]
        values[column.name] = float(np.mean(defined)) if defined else NAN
    values |= {"word_error_rate": heard_error_rate(words), "text_error_rate": text_error_rate(words)}
    return ClipMeasures(**values)


def heard_error_rate(clips: Sequence[Words]) -> float:
    """Word error rate of reconstructions against their originals' transcripts; NaN where those are empty."""
    spoken = [(clip.original, clip.heard) for clip in clips if normalised_words(clip.original)]
    return word_error_rate(*zip(*spoken, strict=True)) if spoken else NAN


def text_error_rate(clips: Sequence[Words], rate: Callable[..., float] = word_error_rate) -> float:
    """Word error rate of reconstructions against the true texts, over the clips that have one; else NaN.

    rate: of what else, `character_error_rate`.
    """
    spoken = [
        tuple(" ".join(spoken_words(text, clip.language)) for text in (clip.text, clip.heard))
        for clip in clips
        if normalised_words(clip.text)
    ]
    return rate(*zip(*spoken, strict=True)) if spoken else NAN
