"""What is done to speech so that it can be heard: level, room, noise, band, slope; and joints that cannot be heard.

All are functions of audio [S] that keep its length, but `join`. Pitch and speed are stretch.py's. S samples.
"""

import numpy as np

from ...data.audio import SILENCE_DBFS

FADE_S = 0.01
QUIET_S = 0.02  # how long the quiet place is in which a recording may be cut
EDGE_DB = 35.0  # the silence around a recording is this far below its loudest 20 ms
EDGE_S = 0.05  # how much of it stays
MAX_PEAK = 0.99


def at_level(audio: np.ndarray, level_dbfs: float) -> np.ndarray:
    """The same at this root-mean-square level, less where peaks would be clipped."""
    gain = 10 ** (level_dbfs / 20) / np.sqrt(np.mean(np.square(audio, dtype=np.float64)) + 1e-20)
    return (audio * min(gain, MAX_PEAK / (np.abs(audio).max() + 1e-20))).astype(np.float32)


def in_room(audio: np.ndarray, rt60_s: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """With the sound of a room: noise that decays by 60 dB in `rt60_s`, as strong as the direct sound."""
    time = np.arange(round(rt60_s * sample_rate)) / sample_rate
    response = rng.standard_normal(len(time)) * 10 ** (-3 * time / rt60_s)
    response /= np.sqrt(np.square(response).sum())
    response[0] += 1.0
    size = len(audio) + len(response)
    return np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(response, size), size)[: len(audio)].astype(np.float32)


def with_noise(audio: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """Over pink noise that is `snr_db` below it."""
    spectrum = np.fft.rfft(rng.standard_normal(len(audio)))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, len(audio))
    gain = np.sqrt(np.square(audio, dtype=np.float64).sum() / np.square(noise).sum()) * 10 ** (-snr_db / 20)
    return (audio + gain * noise).astype(np.float32)


def low_pass(audio: np.ndarray, cutoff_hz: float, sample_rate: int) -> np.ndarray:
    """Without what lies above `cutoff_hz`; the edge is 10 % wide."""
    hz = np.fft.rfftfreq(len(audio), 1 / sample_rate)
    gain = np.clip((1.05 * cutoff_hz - hz) / (0.1 * cutoff_hz), 0, 1)
    return np.fft.irfft(np.fft.rfft(audio) * gain, len(audio)).astype(np.float32)


def tilted(audio: np.ndarray, decibel: float, sample_rate: int) -> np.ndarray:
    """With a straight slope over log frequency: `decibel` more at Nyquist than at 100 Hz."""
    spectrum = np.fft.rfft(audio)
    hz = np.maximum(np.fft.rfftfreq(len(audio), 1 / sample_rate), 100.0)
    gain = decibel * np.log(hz / 100) / np.log(sample_rate / 200)
    return np.fft.irfft(spectrum * 10 ** (gain / 20), len(audio)).astype(np.float32)


def coloured(audio: np.ndarray, spread_db: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """With a random gain for each third of an octave, smooth between them: another throat, microphone or room."""
    centres = np.arange(np.log2(80), np.log2(sample_rate / 2) + 1 / 3, 1 / 3)
    decibel = np.convolve(rng.standard_normal(len(centres) + 2) * spread_db, [0.4, 0.8, 0.4], mode="valid")
    octave = np.log2(np.maximum(np.fft.rfftfreq(len(audio), 1 / sample_rate), 80.0))
    gain = 10 ** (np.interp(octave, centres, decibel) / 20)
    return np.fft.irfft(np.fft.rfft(audio) * gain, len(audio)).astype(np.float32)


def trimmed(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Without the silence around the speech, but for 50 ms."""
    first, end = speech_bounds(audio, sample_rate)
    return audio[first:end]


def speech_bounds(audio: np.ndarray, sample_rate: int) -> tuple[int, int]:
    """The samples between which there is speech, and 50 ms around it; all of them where there is none."""
    hop = round(QUIET_S * sample_rate)
    power = np.square(audio[: len(audio) // hop * hop].reshape(-1, hop), dtype=np.float64).mean(axis=1)
    if not len(power):
        return 0, len(audio)
    least = max(10 ** (SILENCE_DBFS / 10), power.max() * 10 ** (-EDGE_DB / 10))
    loud, edge = np.flatnonzero(power >= least), round(EDGE_S * sample_rate)
    if not len(loud):
        return 0, len(audio)
    return max(0, int(loud[0]) * hop - edge), min(len(audio), int(loud[-1] + 1) * hop + edge)


def quietest(audio: np.ndarray, first: int, last: int, sample_rate: int) -> int:
    """The sample between `first` and `last` around which 20 ms are the quietest."""
    half = round(QUIET_S * sample_rate / 2)
    energy = np.concatenate([[0.0], np.cumsum(np.square(audio, dtype=np.float64))])
    places = np.arange(max(first, half), min(last, len(audio) - half) + 1)
    return int(places[np.argmin(energy[places + half] - energy[places - half])])


def pieces(audio: np.ndarray, sample_rate: int, seconds: float) -> list[np.ndarray]:
    """A recording [S] cut every `seconds` or so, each time where it is quietest nearby."""
    frame = round(QUIET_S * sample_rate)
    levels = np.square(audio[: len(audio) // frame * frame].reshape(-1, frame)).mean(axis=1)
    count = max(1, round(len(audio) / sample_rate / seconds))
    step, cuts = len(levels) // count, [0]
    for number in range(1, count):
        first = number * step - step // 4
        cuts.append((first + int(levels[first : first + step // 2].argmin())) * frame)
    return np.split(audio, cuts[1:])


def join(before: np.ndarray, after: np.ndarray, sample_rate: int) -> tuple[np.ndarray, int]:
    """One after the other with a cross-fade of 10 ms -> audio [S + S' - fade], and where `after` begins in it."""
    fade = round(FADE_S * sample_rate)
    rising = (np.arange(fade) + 0.5) / fade
    middle = before[-fade:] * (1 - rising) + after[:fade] * rising
    return np.concatenate([before[:-fade], middle, after[fade:]]).astype(np.float32), len(before) - fade
