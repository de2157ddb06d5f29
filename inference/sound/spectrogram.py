"""Spectrograms on a mel axis. Needs matplotlib (codeclm[demo]). S samples."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .measures import hz_to_mel, log_mel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HZ_TICKS = (100, 250, 500, 1000, 2000, 4000, 8000, 16_000)
FEW_HZ_TICKS = (500, *HZ_TICKS[3:])  # for a small picture
INK = "#7b7b7b"  # for a small picture: can be read on white and on black
RANGE_DB = 70  # range of the colours, from the loudest point down


def draw_spectrogram(
    axes: "Axes",
    audio: np.ndarray,
    sample_rate: int,
    loudest: float | None = None,
    hz_ticks: Sequence[int] = HZ_TICKS,
) -> None:
    """Draw audio [S] into `axes`; the brightest colour is `loudest` dB, by default its own loudest point."""
    mel = _mel_db(audio, sample_rate)
    top = mel.max() if loudest is None else loudest
    axes.imshow(
        mel,
        origin="lower",
        aspect="auto",
        extent=(0, len(audio) / sample_rate, 0, float(hz_to_mel(sample_rate / 2))),
        cmap="magma",
        vmin=top - RANGE_DB,
        vmax=top,
        interpolation="bilinear",
    )
    ticks = [hz for hz in hz_ticks if hz <= sample_rate / 2]
    axes.set_yticks(
        [float(hz_to_mel(hz)) for hz in ticks], [f"{hz // 1000} k" if hz >= 1000 else str(hz) for hz in ticks]
    )
    axes.set_ylabel("Frequency (Hz)")


def loudest_db(audio: np.ndarray, sample_rate: int) -> float:
    """The loudest point of the spectrogram, so that others can be drawn on its scale."""
    return float(_mel_db(audio, sample_rate).max())


def spectrogram_png(audio: np.ndarray, sample_rate: int, loudest: float) -> bytes:
    """audio [S] -> a small picture on the scale of `loudest_db`, on a clear ground. Raises ImportError without
    matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("pictures need: pip install 'codeclm[demo]'") from None
    figure = Figure(figsize=(4.4, 1.9), dpi=130, layout="constrained", facecolor="none")
    axes = figure.subplots()
    draw_spectrogram(axes, audio, sample_rate, loudest, FEW_HZ_TICKS)
    axes.set_xlabel("Time (s)")
    axes.spines[:].set_color(INK)
    for part in (axes.xaxis, axes.yaxis):
        part.label.set_color(INK)
        part.set_tick_params(colors=INK)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _mel_db(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    window = 2 ** round(np.log2(0.05 * sample_rate))  # long enough to show the harmonics of a voice
    return 20 * log_mel(audio, sample_rate, window=window, hop=window // 8, bands=128)
