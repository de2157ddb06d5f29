"""A running batch whose rows begin and end on their own: each has a prompt, a length, a seed and settings of its own.

All rows are at the same column of one grid (grid.py's `State`), and take the same step; a row's own columns are
`ahead` of the grid's by a number of its own. A prompt is laid out right before the column that comes next:

    grid     ..  40  41  42  43  44
    row 0        12  13  14  15  16    ahead = -28
    row 1    ..   0   1   2   3   4    ahead = -40: two columns were given, and it joined before column 42

Noise is that of a row's own columns, so it draws what it draws alone. A row whose window is full (windows.py) joins
anew, given half of that window. B rows, K codebooks, T columns.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.delay_pattern import ABSENT, delay
from ..model.lm import SpeechLM
from .config import SamplingConfig
from .cuda_frame import GraphedFrame, graphed
from .frame_step import FrameStep, is_supported
from .grid import Request, given_columns, start
from .labelled import as_labelled
from .prefix import Prefix
from .sampling import BatchSampling, batch_sampling
from .step import Step, can_end
from .windows import NO_END, Window, each_window, window_frames

SPARE = 64  # columns that are kept at least, for repetition-aware sampling


def can_share(model: SpeechLM, request: Request, sampling: SamplingConfig) -> bool:
    """Whether a request can be a row among others; else it is drawn alone, by engine.py's `generate`.

    Alone: models that the frame step does not know; text that is drawn or spread over new columns, and its guidance;
    codes known beforehand; fewer codebooks than there are; repetitions counted in another number of frames than usual.
    """
    more = (request.new_text, request.user, request.new_codes, request.text_end)
    plain = not request.draw_text and request.draw_codes and all(value is None for value in more)
    own = sampling.guidance != 1 or sampling.num_codebooks not in (0, model.num_codebooks)
    counts = sampling.repetition_share < 1 and sampling.repetition_frames != SamplingConfig.repetition_frames
    return is_supported(model) and plain and not own and not counts


class Drawn(NamedTuple):
    """A frame that is complete."""

    codes: Tensor  # [K]
    nll: Tensor  # [K] nats


@dataclass(eq=False)
class Row:
    """A request in the batch. Columns are its own."""

    seed: int
    sampling: SamplingConfig
    total: int  # columns, the given ones included
    num_given: int
    windows: Iterator[Window]
    window: Window
    frame: int  # frames that are complete
    ahead: int = 0  # its own column, less that of a grid which drops none


class Bounds(NamedTuple):
    """Columns of the grid [B], where codebooks lag: codes are drawn from `first` on, and ABSENT beyond start..stop."""

    start: Tensor
    first: Tensor
    stop: Tensor

    def holds(self, frame: int) -> Tensor:
        """[B] whether the codes of a frame are drawn."""
        return (frame >= self.first) & (frame < self.stop)


@dataclass(frozen=True)
class RowStep(Step):
    """A step of every row, each in its own window."""

    bounds: Bounds | None = field(kw_only=True)  # None: no codebook lags, so that every code is drawn

    def draw_code(self, k: int, frame: int, logits: Tensor) -> Tensor:
        end = self.state.end
        code = super().draw_code(k, frame, logits)
        if self.bounds is None:
            return code
        if k == 0:
            self.state.end = torch.where(self.bounds.holds(frame), self.state.end, end)
        code = torch.where(frame < self.bounds.first, self.state.codes[:, k, frame], code)
        return torch.where((frame < self.bounds.start) | (frame >= self.bounds.stop), ABSENT, code)

    def record(self) -> None:
        end = self.state.end
        super().record()
        if self.bounds is not None:
            frame = self.column - max(self.model.config.delays)
            self.state.end = torch.where(self.bounds.holds(frame), self.state.end, end)


class RowBatch:
    @torch.inference_mode()
    def __init__(self, model: SpeechLM, max_rows: int, num_codes: int):
        """num_codes: that the codec has."""
        self.model, self.max_rows = model, max_rows
        self.longest, self.context = max(model.config.delays), window_frames(model.config)
        # columns that are kept: half a window is given to the next one
        self.kept = SPARE + self.longest + (0 if self.context == NO_END else self.context)
        # a single row's weights would have another layout
        rows = min(2, max_rows)
        self.state = start(model, Request(NO_END, num_codes=num_codes), [0] * rows, keep=False)
        self.state.walk = FrameStep(model, rows, self.context + self.longest + 1)
        for name, empty in ("codes", ABSENT), ("nll", 0), ("text", ABSENT), ("text_nll", 0):
            if (grid := getattr(self.state, name)) is not None:
                setattr(self.state, name, F.pad(grid, (self.kept, 0), value=empty))
        self.rows: list[Row | None] = [None] * rows
        self.column = self.kept  # that comes next, in the grid
        self.sampling: BatchSampling | None = None  # None: to be found out
        self.bounds: Bounds | None = None
        self.frames: GraphedFrame | None = None  # on a GPU, for steps in which every code is drawn
        self.held = ExitStack()  # gives the graph back
        self.graph: tuple[int, bool] | None = None  # rows of the one that is held, and whether they may end
        self.is_graphed = False  # whether it knows the settings of all rows

    @property
    def num_free(self) -> int:
        return self.max_rows - sum(row is not None for row in self.rows)

    @torch.inference_mode()
    def add(self, request: Request, seed: int, sampling: SamplingConfig) -> Row:
        """Let a request begin. Raises IndexError if no row is free."""
        if None not in self.rows:
            if not self.num_free:
                raise IndexError(f"all {self.max_rows} rows are taken")
            self.resize(min(2 * len(self.rows), self.max_rows))
        place = self.rows.index(None)
        given = given_columns(request)
        windows = each_window(given + request.num_frames, self.context)
        window = next(window for window in windows if window.stop > given)
        row = Row(seed, sampling, given + request.num_frames, given, windows, window, given)
        state, device = self.state, self.model.device
        codes = state.codes.new_full((self.model.num_codebooks, given), ABSENT)
        codes = codes if request.codes is None else request.codes.to(device)
        text = None if state.text is None else codes.new_full((given,), ABSENT)
        text = text if request.text is None else request.text.to(device)
        for grid, values in (state.codes, codes), (state.text, text):
            if grid is not None and values is not None:
                room = min(given, self.column)
                grid[place].fill_(ABSENT)
                grid[place, ..., self.column - room : self.column] = values[..., given - room :]
        self.join(place, row, codes[:, window.start :], None if text is None else text[window.start :], request.prefix)
        self.rows[place], self.sampling = row, None
        return row

    def join(self, place: int, row: Row, codes: Tensor, text: Tensor | None, prefix: Prefix | None = None) -> None:
        """Let a row begin its window, with these columns of it as given, which come before the grid's next one."""
        self.leave_graph()
        state, num_known = self.state, codes.shape[1]
        row.ahead = row.window.start + num_known - (self.column + state.num_dropped)
        if self.longest and num_known:
            codes = delay(codes[None], self.model.config.delays)[0, :, :num_known]
        with as_labelled(self.model):
            self.walk.join(place, codes, text, prefix)
        for noise in (state.noise, state.again_noise):
            noise.set_row(place, row.seed, row.ahead)
        state.end[place] = self.in_grid(row, row.total)
        self.bounds = None

    def remove(self, row: Row) -> None:
        """Let a row go, if it is still here."""
        if row in self.rows:
            self.rows[self.rows.index(row)] = self.sampling = self.bounds = None

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, Drawn | None]]:
        """A step of every row -> the frames that are complete, and None for rows that ended; those have left."""
        self.make_ready()
        assert self.sampling is not None
        ends = can_end(self.model, self.sampling)
        if self.frames is not None and self.is_graphed and self.draws_all():
            self.frames.take(self.state, self.column, self.sampling)
        else:
            self.leave_graph()
            step = RowStep(
                self.model, self.state, Window(0, 0, NO_END), self.sampling, self.column, ends, bounds=self.bounds
            )
            with as_labelled(self.model):
                step.take()
        self.column += 1
        frame = self.column - 1 - self.longest
        # the grid is written over when another row joins
        codes, nll = (grid[:, :, frame].to("cpu", copy=True) for grid in (self.state.codes, self.state.nll))
        ended = self.state.end.tolist() if ends else []
        found: list[tuple[Row, Drawn | None]] = []
        for place, row in enumerate(self.rows):
            if row is None:
                continue
            own = frame + self.state.num_dropped + row.ahead
            if own == row.frame and not (ended and ended[place] <= frame):
                row.frame += 1
                found.append((row, Drawn(codes[place], nll[place])))
            if row.frame == row.total or (ended and ended[place] <= frame):
                found.append((row, None))
                self.remove(row)
            elif own + 1 == row.window.stop:
                self.next_window(place, row)
        return found

    def make_ready(self) -> None:
        """What the next step needs: a grid with room, and what changed since the one before."""
        if self.column == self.state.num_frames:
            self.leave_graph()
            self.state.drop(self.column - self.kept)
            self.column, self.bounds = self.kept, None
        taken = [row for row in self.rows if row is not None]
        if 4 * len(taken) <= len(self.rows) > 2:
            self.resize(len(self.rows) // 2)
        if self.sampling is None:
            settings = [(row or taken[0]).sampling for row in self.rows]
            self.sampling = batch_sampling(settings, len(self.rows), self.model.num_codebooks, self.state.nll)
            self.use_graph(self.sampling)
        if self.longest and self.bounds is None:
            columns = [
                (0, 0, 0) if row is None
                else (row.window.start, max(row.window.first, row.num_given), min(row.window.stop, row.total))
                for row in self.rows
            ]  # fmt: skip
            moved = [[self.in_grid(row, c) for c in found] for row, found in zip(self.rows, columns, strict=True)]
            self.bounds = Bounds(*torch.tensor(moved, device=self.model.device).unbind(1))

    def draws_all(self) -> bool:
        """Whether no row's step holds a code that is given, or none."""
        least, most = min(self.model.config.delays), self.longest
        for row in self.rows:
            if row is not None:
                column = self.column + self.state.num_dropped + row.ahead
                first, stop = max(row.window.first, row.num_given), min(row.window.stop, row.total)
                if not (first <= column - most and column - least < stop):
                    return False
        return True

    def use_graph(self, sampling: BatchSampling) -> None:
        """Take the steps of these settings by a graph, where there can be one."""
        wanted = len(self.rows), can_end(self.model, sampling)
        is_plain = sampling.endless is None and not sampling.repetition_frames
        if is_plain and wanted != self.graph:
            held = ExitStack()
            frames = held.enter_context(graphed(self.model, self.state.request, sampling, len(self.rows)))
            if frames is not None:
                self.leave_graph()
                frames.walk.go_on(self.walk, range(len(self.rows)))
                self.held.close()
                self.state.walk, self.frames, self.held, self.graph = frames.walk, frames, held, wanted
        self.is_graphed = is_plain and wanted == self.graph

    def leave_graph(self) -> None:
        if self.frames is not None:
            self.frames.leave(self.state)

    def next_window(self, place: int, row: Row) -> None:
        """The last half of a row's window is given to the next one."""
        row.window = next(row.windows)
        state, known = self.state, slice(self.column - (row.window.first - row.window.start), self.column)
        if self.longest:  # steps that only lagging codebooks took
            for grid in (state.codes, state.text):
                if grid is not None:
                    grid[place] = grid[place].roll(self.longest, dims=-1)
        self.join(place, row, state.codes[place, :, known], None if state.text is None else state.text[place, known])

    def in_grid(self, row: Row | None, column: int) -> int:
        """A row's own column -> that of the grid."""
        return column if row is None else column - row.ahead - self.state.num_dropped

    @property
    def walk(self) -> FrameStep:
        assert isinstance(self.state.walk, FrameStep)
        return self.state.walk

    @torch.inference_mode()
    def resize(self, batch: int) -> None:
        """Room for this many rows, for all that are taken at least: each costs time, whether it is taken or not."""
        self.leave_graph()
        kept = [place for place, row in enumerate(self.rows) if row is not None]
        state, index = self.state, torch.tensor([*kept, *[0] * (batch - len(kept))], device=self.model.device)
        state.walk = self.walk.resized(kept, batch)
        self.held.close()
        self.frames = self.graph = None
        for name in ("codes", "nll", "text", "text_nll", "end"):
            if (grid := getattr(state, name)) is not None:
                setattr(state, name, grid[index])
        for noise in (state.noise, state.again_noise):
            noise.select(index)
        self.rows = [*(self.rows[place] for place in kept), *[None] * (batch - len(kept))]
        self.sampling = self.bounds = None
