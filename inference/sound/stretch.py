"""Speech faster or slower at the same pitch, and higher or lower at the same speed (WSOLA). S samples.

Overlap-add of windows that are taken where they fit: each continues the one before as the recording itself would
(Verhelst and Roelands, 1993). No model decides anything here.
"""

import numpy as np

WINDOW_S = 0.04
SEARCH_S = 0.01  # how far, either way, a window is looked for


def stretch(audio: np.ndarray, factor: float, sample_rate: int) -> np.ndarray:
    """audio [S] -> [S * factor] at the same pitch; a factor below 1 is faster. Raises ValueError for one of 0 or less.

    Audio shorter than four windows comes back as it is.
    """
    if factor <= 0:
        raise ValueError(f"factor is {factor:g}; it must be more than 0")
    hop, search = round(WINDOW_S * sample_rate / 2), round(SEARCH_S * sample_rate)
    window, length = np.hanning(2 * hop + 1)[:-1], round(len(audio) * factor)
    if len(audio) < 8 * hop:
        return audio.astype(np.float32)
    padded = np.pad(audio.astype(np.float64), (search + hop, 3 * hop + search))
    num_windows = -(-length // hop) + 1
    output = np.zeros((num_windows + 1) * hop)
    place = search  # in `padded`, of the window that was taken last
    for number in range(num_windows):
        wanted = search + min(round(number * hop / factor), len(audio))
        if number:
            following = padded[place + hop : place + 3 * hop]  # what the recording goes on with
            around = padded[wanted - search : wanted + search + 2 * hop]
            products = np.correlate(around, following[: len(around)], "valid")
            place = wanted - search + int(np.argmax(products / _norms(around, len(following))))
        output[number * hop : (number + 2) * hop] += window * padded[place : place + 2 * hop]
    return output[hop : hop + length].astype(np.float32)


def shift_pitch(audio: np.ndarray, semitones: float, sample_rate: int) -> np.ndarray:
    """audio [S] -> about [S], pitch and formants higher by `semitones`: played faster, then slowed down."""
    import soxr

    ratio = 2 ** (semitones / 12)
    faster = soxr.resample(audio.astype(np.float32), sample_rate * ratio, sample_rate)
    return stretch(faster, ratio, sample_rate)


def _norms(around: np.ndarray, length: int) -> np.ndarray:
    """Norm of each stretch of `length` samples."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(around))])
    return np.sqrt(np.maximum(energy[length:] - energy[:-length], 0) + 1e-9)
