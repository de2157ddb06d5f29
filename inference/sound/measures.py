"""Measures of mono audio [S]: pitch, level, voicing, and how close an output is to its reference.

No model decides anything here: signal processing only. Where two signals are compared, both are cut to the shorter
one first (a codec fills its last frame up with silence). S samples, N frames of 10 ms.
"""

from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import numpy as np

from ...data.audio import SILENCE_DBFS, loudness_dbfs

HOP_S = 0.01  # seconds between measures of pitch and level
WINDOW_S = 0.025
MIN_PITCH_HZ, MAX_PITCH_HZ = 60.0, 500.0
MIN_TRACKING_RATE = 16_000  # Hz; coarser lags would hide the peaks of high voices
PITCH_BAND_HZ = (50.0, 1000.0)  # what the tracker listens to: the harmonics that carry the period
VOICED_CORRELATION = 0.6
NUM_CANDIDATES = 6  # peaks a frame offers to the path
OCTAVE_COST, JUMP_COST = 0.05, 0.6  # in correlation, for each octave: of a longer lag, of a change between frames
ACTIVE_RANGE_DB = 35.0  # frames this far below the loudest one are pauses
CLIPPED_LEVEL = 0.999
MIN_CORRELATED_FRAMES = 10
PERCEPTUAL_RATE = 16_000  # Hz; of PESQ-WB and STOI
BLOCK_FRAMES = 1024  # frames analysed at a time, so that memory stays small for long audio


@dataclass(frozen=True)
class SpeechMeasures:
    """What one clip sounds like in numbers. Shares are 0..1."""

    duration_s: float
    loudness_dbfs: float  # mean over the active frames; -inf if there are none
    peak: float  # largest absolute sample
    clipped_share: float  # share of samples at full scale
    silent_share: float  # share of frames below -60 dBFS or 35 dB under the loudest frame
    voiced_share: float  # share of all frames
    median_pitch_hz: float  # over voiced frames; 0 if there are none


def measure_speech(audio: np.ndarray, sample_rate: int) -> SpeechMeasures:
    """audio [S] -> its measures; no samples at all count as silence. Raises ValueError if not mono or not finite."""
    audio = _checked(audio)
    if audio.size == 0:
        return SpeechMeasures(0.0, float("-inf"), 0.0, 0.0, 1.0, 0.0, 0.0)
    active = active_frames(audio, sample_rate)
    pitch = pitch_track(audio, sample_rate)
    voiced = pitch[pitch > 0]
    magnitude = np.abs(audio)
    return SpeechMeasures(
        duration_s=len(audio) / sample_rate,
        loudness_dbfs=loudness_dbfs(audio[_samples_of(active, len(audio), sample_rate)]),
        peak=float(magnitude.max()),
        clipped_share=float(np.mean(magnitude >= CLIPPED_LEVEL)),
        silent_share=float(1 - active.mean()),
        voiced_share=len(voiced) / len(pitch),
        median_pitch_hz=float(np.median(voiced)) if len(voiced) else 0.0,
    )


def pitch_track(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """audio [S] -> pitch in Hz [N], one value each 10 ms; 0 = unvoiced.

    The peaks of RAPT's normalised cross-correlation (Talkin, 1995) between 60 and 500 Hz, joined by a Viterbi path:
    a longer lag costs a little, so that a multiple of the period is not taken for it, and a jump costs much. Fewer
    than three voiced frames in a row are none. Raises ValueError as `measure_speech` does.
    """
    audio = _checked(audio)
    if audio.size == 0:
        return np.zeros(0)
    active = active_frames(audio, sample_rate)
    factor = -(-MIN_TRACKING_RATE // sample_rate)
    rate = factor * sample_rate
    window, min_lag, max_lag = round(WINDOW_S * rate), int(rate / MAX_PITCH_HZ), int(rate / MIN_PITCH_HZ)
    hop = factor * _hop(sample_rate)
    frames = _frames(_band_limited(audio, sample_rate, factor), hop, window + max_lag + 1)
    found = [
        _candidates(_correlation(frames[start : start + BLOCK_FRAMES], window), min_lag)
        for start in range(0, len(frames), BLOCK_FRAMES)
    ]
    lags, heights = (np.concatenate(parts) for parts in zip(*found, strict=True))
    voiced = active & (heights.max(axis=1) >= VOICED_CORRELATION)
    linked = voiced & np.roll(voiced, 1)
    path = _best_path(lags, heights - OCTAVE_COST * np.log2(lags / min_lag), linked)
    voiced = _in_runs_of_3(voiced & (heights[np.arange(len(path)), path] >= VOICED_CORRELATION))
    return np.where(voiced, rate / lags[np.arange(len(path)), path], 0.0)


def semitones(a_hz: float, b_hz: float) -> float:
    """How far pitch `a_hz` lies above `b_hz`. Raises ValueError if one of them is not positive."""
    if a_hz <= 0 or b_hz <= 0:
        raise ValueError(f"semitones need two pitches above 0 Hz, not {a_hz} and {b_hz}")
    return 12 * float(np.log2(a_hz / b_hz))


def pitch_correlation(reference: np.ndarray, output: np.ndarray, sample_rate: int) -> float:
    """Pearson correlation of log pitch over the frames voiced in both; NaN if under ten are, or pitch never moves."""
    reference, output = _same_length(reference, output)
    a, b = pitch_track(reference, sample_rate), pitch_track(output, sample_rate)
    both = (a > 0) & (b > 0)
    if both.sum() < MIN_CORRELATED_FRAMES:
        return float("nan")
    a, b = np.log(a[both]), np.log(b[both])
    a, b = a - a.mean(), b - b.mean()
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / scale) if scale > 1e-9 else float("nan")


def log_mel(audio: np.ndarray, sample_rate: int, window: int = 1024, hop: int = 256, bands: int = 80) -> np.ndarray:
    """audio [S] -> log10 of the mel magnitudes [bands, N'], N' = S // hop + 1, clamped at 1e-5."""
    padded = np.pad(audio, window // 2)
    padded = np.pad(padded, (0, max(0, window - len(padded))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    hann = np.hanning(window + 1)[:-1]
    mel = [  # magnitudes over the window's gain, so that a level means the same for every window
        np.abs(np.fft.rfft(frames[start : start + BLOCK_FRAMES] * hann)) @ _mel_filters(sample_rate, window, bands)
        for start in range(0, len(frames), BLOCK_FRAMES)
    ]
    return np.log10(np.maximum(np.concatenate(mel).T / hann.sum(), 1e-5))


def log_mel_distance(reference: np.ndarray, output: np.ndarray, sample_rate: int) -> float:
    """Mean absolute difference of log10 mel magnitudes (1024 window, 256 hop, 80 bands); 0 = equal, 0.05 = 1 dB."""
    reference, output = _same_length(reference, output)
    return float(np.abs(log_mel(reference, sample_rate) - log_mel(output, sample_rate)).mean())


def si_sdr(reference: np.ndarray, output: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (arXiv:1811.02508). Raises ValueError for a silent reference.

    It compares waveforms: a codec that renders phase anew scores low and can still sound right.
    """
    reference, output = _same_length(reference, output)
    reference, output = reference - reference.mean(), output - output.mean()
    energy = reference @ reference
    if energy == 0:
        raise ValueError("SI-SDR needs a reference that is not silent")
    target = (output @ reference / energy) * reference
    error = output - target
    return float(10 * np.log10((target @ target + 1e-20) / (error @ error + 1e-20)))


def pesq_wb(reference: np.ndarray, output: np.ndarray, sample_rate: int) -> float:
    """Wideband PESQ (ITU-T P.862.2), about 1 (bad) to 4.64 (equal), at 16 kHz.

    Raises ImportError without the package, ValueError for a clip that PESQ cannot rate (too short, no speech).
    """
    pesq = _eval_package("pesq")
    reference, output = (resampled(x, sample_rate, PERCEPTUAL_RATE) for x in _same_length(reference, output))
    try:
        return float(pesq.pesq(PERCEPTUAL_RATE, reference, output, "wb"))
    except pesq.PesqError as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(f"PESQ cannot rate this clip ({reason.strip().rstrip('!.')})") from None


def stoi(reference: np.ndarray, output: np.ndarray, sample_rate: int) -> float:
    """Short-time objective intelligibility (Taal et al., 2011), 0..1, at 16 kHz. Raises as `pesq_wb` does."""
    import warnings

    pystoi = _eval_package("pystoi")
    reference, output = (resampled(x, sample_rate, PERCEPTUAL_RATE) for x in _same_length(reference, output))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # it warns and returns 1e-5 where there is nothing to rate
        try:
            return float(pystoi.stoi(reference, output, PERCEPTUAL_RATE))
        except (RuntimeWarning, ValueError):
            raise ValueError("STOI cannot rate this clip (under 0.4 s of speech)") from None


def resampled(audio: np.ndarray, sample_rate: int, wanted: int) -> np.ndarray:
    """audio [S] at `sample_rate` -> [S'] at the rate `wanted` (soxr)."""
    if sample_rate == wanted:
        return audio
    import soxr

    return soxr.resample(audio, sample_rate, wanted)


def _checked(audio: np.ndarray) -> np.ndarray:
    if audio.ndim != 1:
        raise ValueError(f"audio must be [S] (mono), not {list(audio.shape)}")
    if not np.isfinite(audio).all():
        raise ValueError("audio holds NaN or infinite samples")
    return audio.astype(np.float64)


def _same_length(reference: np.ndarray, output: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    length = min(len(reference), len(output))
    if length == 0:
        raise ValueError("there is nothing to compare: one of the two signals is empty")
    return _checked(reference[:length]), _checked(output[:length])


def _eval_package(name: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(f"{name} is not installed; this needs: pip install 'codeclm[eval]'") from None


def _hop(sample_rate: int) -> int:
    return round(HOP_S * sample_rate)


def _frames(audio: np.ndarray, hop: int, length: int) -> np.ndarray:
    """audio [S] -> a view [N, length]: frame n is centred on the middle of the n-th hop; silence around."""
    num_frames = -(-len(audio) // hop)
    before = length // 2 - hop // 2
    padded = np.pad(audio, (before, num_frames * hop + length - len(audio)))
    return np.lib.stride_tricks.sliding_window_view(padded, length)[: num_frames * hop : hop]


def active_frames(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """[N] bool: the frames that are no pause."""
    power = np.square(_frames(audio, _hop(sample_rate), round(WINDOW_S * sample_rate))).mean(axis=1)
    loudest = 10 * np.log10(power.max() + 1e-20)
    return power > 10 ** (max(SILENCE_DBFS, loudest - ACTIVE_RANGE_DB) / 10)


def _samples_of(frames: np.ndarray, num_samples: int, sample_rate: int) -> np.ndarray:
    return np.repeat(frames, _hop(sample_rate))[:num_samples]


def _band_limited(audio: np.ndarray, sample_rate: int, factor: int) -> np.ndarray:
    """audio [S] -> [S * factor]: only PITCH_BAND_HZ, at `factor` times the sample rate."""
    low, high = PITCH_BAND_HZ
    hz = np.fft.rfftfreq(len(audio), 1 / sample_rate)
    gain = np.clip((hz - 0.7 * low) / (0.3 * low), 0, 1) * np.clip((1.3 * high - hz) / (0.3 * high), 0, 1)
    return np.fft.irfft(np.fft.rfft(audio) * gain * factor, len(audio) * factor)


def _correlation(frames: np.ndarray, window: int) -> np.ndarray:
    """frames [N, window + L] -> correlation [N, L + 1] of the first `window` samples with those `lag` later, -1..1."""
    length = frames.shape[1]
    size = 1 << (length - 1).bit_length()
    product = np.fft.irfft(np.conj(np.fft.rfft(frames[:, :window], size)) * np.fft.rfft(frames, size), size)
    energy = np.pad(np.cumsum(np.square(frames), axis=1), ((0, 0), (1, 0)))
    energy = energy[:, window:] - energy[:, : length - window + 1]  # [N, L + 1], of the window at each lag
    return product[:, : length - window + 1] / np.sqrt(energy[:, :1] * energy + 1e-20)


def _candidates(correlation: np.ndarray, min_lag: int) -> tuple[np.ndarray, np.ndarray]:
    """correlation [N, L + 1] -> lags in samples [N, C] and heights [N, C] of the best peaks, by parabolas."""
    left, middle, right = (correlation[:, min_lag + shift : correlation.shape[1] + shift - 1] for shift in (-1, 0, 1))
    peaks = np.where((middle >= left) & (middle > right), middle, -1.0)
    cost = OCTAVE_COST * np.log2(np.arange(peaks.shape[1]) / min_lag + 1)
    index = np.argsort(peaks - cost, axis=1)[:, -NUM_CANDIDATES:]
    a, b, c = (np.take_along_axis(part, index, axis=1) for part in (left, middle, right))
    found = np.take_along_axis(peaks, index, axis=1) > -1
    curve = np.where(found, a - 2 * b + c, -1.0)
    shift = np.where(found, 0.5 * (a - c) / curve, 0.0)
    return index + min_lag + shift, np.where(found, np.minimum(1.0, b - 0.25 * (a - c) * shift), -1.0)


def _best_path(lags: np.ndarray, scores: np.ndarray, linked: np.ndarray) -> np.ndarray:
    """Viterbi: the candidate [N] of each frame that maximises scores [N, C] less the cost of jumps between frames.

    linked: [N] bool, whether frame n and the one before are both voiced; only there do jumps cost.
    """
    octaves = np.log2(lags)
    total, came_from = scores[0], np.zeros(lags.shape, dtype=np.int64)
    for n in range(1, len(lags)):
        jump = JUMP_COST * np.abs(octaves[n][:, None] - octaves[n - 1]) if linked[n] else 0.0
        paths = total - jump + np.zeros((lags.shape[1], 1))  # [C, C]: to, from
        came_from[n] = paths.argmax(axis=1)
        total = scores[n] + paths.max(axis=1)
    path = np.zeros(len(lags), dtype=np.int64)
    path[-1] = total.argmax()
    for n in range(len(lags) - 1, 0, -1):
        path[n - 1] = came_from[n, path[n]]
    return path


def _in_runs_of_3(voiced: np.ndarray) -> np.ndarray:
    padded = np.pad(voiced, 2)
    runs = padded[:-2] & padded[1:-1] & padded[2:]
    return runs[:-2] | runs[1:-1] | runs[2:]


@lru_cache
def _mel_filters(sample_rate: int, window: int, bands: int) -> np.ndarray:
    """[window // 2 + 1, bands]: triangles, evenly spaced in mel from 0 Hz to half the sample rate, peak 1."""
    edges = mel_to_hz(np.linspace(0, hz_to_mel(sample_rate / 2), bands + 2))
    hz = np.fft.rfftfreq(window, 1 / sample_rate)[:, None]
    rising = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


def hz_to_mel(hz: np.ndarray | float) -> np.ndarray:
    return 2595 * np.log10(1 + np.asarray(hz) / 700)


def mel_to_hz(mel: np.ndarray | float) -> np.ndarray:
    return 700 * (10 ** (np.asarray(mel) / 2595) - 1)
