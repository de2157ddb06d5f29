"""A request as a row of a running batch (row_batch.py), and the frames that it gets. K codebooks."""

from typing import NamedTuple

from torch import Tensor

from ..model.delay_pattern import ABSENT
from ..model.lm import SpeechLM
from .config import SamplingConfig
from .grid import Request, given_columns
from .windows import each_window, window_frames


class Drawn(NamedTuple):
    """A frame that is complete."""

    codes: Tensor  # [K]
    nll: Tensor  # [K] nats
    text: int = ABSENT


class Row:
    """A request in the batch. Columns are its own."""

    def __init__(self, model: SpeechLM, request: Request, seed: int, sampling: SamplingConfig):
        self.request, self.seed, self.sampling = request, seed, sampling
        self.num_given = given_columns(request)
        self.total = self.num_given + request.num_frames
        self.num_codebooks = sampling.num_codebooks or model.num_codebooks  # leading ones, that are heard and drawn
        self.windows = each_window(self.total, window_frames(model.config))
        self.window = next(window for window in self.windows if window.stop > self.num_given)
        self.frame = self.num_given  # frames that are complete
        self.ahead = 0  # its own column, less that of a grid which drops none
        draws_all = request.draw_codes and request.new_codes is None
        self.draws_all = draws_all and self.num_codebooks == model.num_codebooks  # codes of new columns
        self.is_guided = sampling.guidance != 1
        self.has_new_text = request.draw_text or request.new_text is not None

    @property
    def first(self) -> int:
        """The first new column of its window."""
        return max(self.window.first, self.num_given)

    @property
    def stop(self) -> int:
        """The column after the last one of its window."""
        return min(self.window.stop, self.total)
