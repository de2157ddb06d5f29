"""Where the curves of a run are drawn: TensorBoard, wandb or trackio. metrics.jsonl has the same numbers.

Nothing is sent anywhere: wandb writes to the run folder (`wandb sync` uploads it; WANDB_MODE=online does so at once),
trackio to its local data base.
"""

import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..inference.argument_checks import check_package
from .config import Track

log = logging.getLogger(__name__)


class Tracker(Protocol):
    def numbers(self, step: int, values: dict[str, float]) -> None: ...
    def audio(self, step: int, name: str, samples: np.ndarray, sample_rate: int) -> None: ...
    def close(self) -> None: ...


class NoTracker:
    def numbers(self, step: int, values: dict[str, float]) -> None:
        pass

    def audio(self, step: int, name: str, samples: np.ndarray, sample_rate: int) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoard:
    """Its files lie in RUN/tensorboard; a resumed run takes back what was drawn after `step`."""

    def __init__(self, run: Path, step: int):
        from torch.utils.tensorboard.writer import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def numbers(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def audio(self, step: int, name: str, samples: np.ndarray, sample_rate: int) -> None:
        self.writer.add_audio(name, np.clip(samples, -1, 1)[None], step, sample_rate)

    def close(self) -> None:
        self.writer.close()


class Logger:
    """wandb or trackio, which has the same functions."""

    def __init__(self, name: str, run: Path, settings: dict[str, Any]):
        if name == "wandb":
            import wandb as module  # pyright: ignore[reportMissingImports]

            where = {"dir": str(run), "mode": os.environ.get("WANDB_MODE", "offline")}
        else:
            import trackio as module  # pyright: ignore[reportMissingImports]

            where = {}
        self.module = module
        self.run = module.init(project="codeclm", name=run.name, config=settings, resume="allow", **where)

    def numbers(self, step: int, values: dict[str, float]) -> None:
        self.module.log(values, step=step)

    def audio(self, step: int, name: str, samples: np.ndarray, sample_rate: int) -> None:
        samples = np.asarray(np.clip(samples, -1, 1) * 32767, np.int16)
        self.module.log({name: self.module.Audio(samples, sample_rate)}, step=step)

    def close(self) -> None:
        self.module.finish()


def check_tracker(track: Track) -> None:
    """Raise ImportError, in one line, for a tracker that is asked for and not installed."""
    if track == "tensorboard":
        check_package("--track tensorboard", "tensorboard", "track")
    elif track in ("wandb", "trackio") and find_spec(track) is None:
        raise ImportError(f"--track {track} needs: pip install {track}")


def make_tracker(track: Track, run: Path, step: int, settings: dict[str, Any]) -> Tracker:
    """A run resumes at `step`. "auto" is TensorBoard where that is installed."""
    check_tracker(track)
    if track in ("wandb", "trackio"):
        return Logger(track, run, settings)
    if track == "none" or find_spec("tensorboard") is None:
        return NoTracker()
    return TensorBoard(run, step)
