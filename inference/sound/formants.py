"""Formants by Praat, where the package praat-parselmouth is (extra 'phonetics'). S samples, N frames of 10 ms."""

from importlib.util import find_spec

import numpy as np

from .measures import HOP_S

NUM_FORMANTS = 3


def has_praat() -> bool:
    return find_spec("parselmouth") is not None


def formant_tracks(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """audio [S] -> the first three formants in Hz [3, N], one value each 10 ms; 0 where Praat finds none.

    Burg's method below 5.5 kHz, as Praat's manual advises for speech. Raises ImportError without the package.
    """
    try:
        import parselmouth  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError("formants need: pip install 'codeclm[phonetics]'") from None
    sound = parselmouth.Sound(audio.astype(np.float64), sample_rate)
    found = sound.to_formant_burg(time_step=HOP_S, max_number_of_formants=5, maximum_formant=5500.0)
    times = (np.arange(int(len(audio) / sample_rate / HOP_S)) + 0.5) * HOP_S
    values = [[found.get_value_at_time(number, time) for time in times] for number in range(1, NUM_FORMANTS + 1)]
    return np.nan_to_num(np.array(values))
