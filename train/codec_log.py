"""What a codec run writes down: metrics.jsonl, and TensorBoard with curves, audio and spectrograms."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class CodecLog:
    """Appends to `run`; TensorBoard only where it is installed. A resumed run goes on at `step`."""

    def __init__(self, run: Path, sample_rate: int, step: int):
        self.sample_rate = sample_rate
        self.metrics = (run / "metrics.jsonl").open("a")
        self.board: Any = None
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            log.info("tensorboard is not installed: curves are in metrics.jsonl only (pip install 'codeclm[track]')")
        else:
            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=step or None)

    def numbers(self, step: int, values: dict[str, float], group: str = "train") -> None:
        line = {"step": step, **{name: round(value, 5) for name, value in values.items()}}
        self.metrics.write(json.dumps(line) + "\n")
        self.metrics.flush()
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{group}/{name}", value, step)

    def listen(self, step: int, number: int, original: Tensor, output: Tensor) -> None:
        """One utterance [S] and what the codec makes of it [S]."""
        if self.board is None:
            return
        for name, audio in (("original", original), ("output", output)):
            self.board.add_audio(f"{number}/{name}", audio.clamp(-1, 1).cpu(), step, self.sample_rate)
        pictures = [picture(audio.cpu()) for audio in (original, output)]
        self.board.add_image(f"{number}/original over output", torch.cat(pictures, dim=0), step, dataformats="HW")

    def close(self) -> None:
        self.metrics.close()
        if self.board is not None:
            self.board.close()


def picture(audio: Tensor, window: int = 512) -> Tensor:
    """audio [S] -> spectrogram [bins, frames] from 0 (80 dB below the loudest) to 1, low frequencies at the bottom."""
    z = torch.stft(audio.float(), window, window // 4, window=torch.hann_window(window), return_complex=True)
    decibel = 20 * z.abs().clamp_min(1e-6).log10()
    return ((decibel - decibel.max()) / 80 + 1).clamp(0, 1).flip(0)
