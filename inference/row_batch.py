"""A running batch whose rows begin and end on their own: each has a prompt, a length, a seed and settings of its own.

All rows are at the same column of one grid (grid.py's `State`), and take the same step; a row's own columns are
`ahead` of the grid's by a number of its own. A prompt is laid out right before the column that comes next, and after it
what is known of the new columns; TO_DRAW stands where nothing is:

    grid     ..  40  41  42  43  44
    row 0        12  13  14  15  16    ahead = -28
    row 1    ..   0   1   2   3   4    ahead = -40: two columns were given, and it joined before column 42

Noise is that of a row's own columns, so it draws what it draws alone. A row whose window is full (windows.py) joins
anew, given half of that window. A guided row (guidance.py) takes two places, the second one without text and voice.
B places, K codebooks, T columns.
"""

from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.delay_pattern import ABSENT, delay
from ..model.lm import SpeechLM
from .config import SamplingConfig
from .cuda_frame import GraphedFrame, graphed
from .frame_step import FrameStep
from .grid import Request, start
from .labelled import as_labelled
from .noise import Noise
from .pacing import Pacing
from .prefix import Prefix
from .row import Drawn, Row
from .row_step import TO_DRAW, Pairs, RowStep
from .sampling import BatchSampling, batch_sampling
from .step import can_end
from .windows import NO_END, Window, window_frames

SPARE = 64  # columns that are kept at least, for repetition-aware sampling


class RowBatch:
    @torch.inference_mode()
    def __init__(self, model: SpeechLM, max_rows: int, num_codes: int):
        """num_codes: that the codec has."""
        self.model, self.max_rows = model, max_rows
        self.longest, context = max(model.config.delays), window_frames(model.config)
        # a single row's weights would have another layout
        places = min(2, max_rows)
        request = Request(NO_END, num_codes=num_codes, draw_text=model.predicts_text)
        self.state = start(model, request, [0] * places, keep=False)
        self.state.walk = FrameStep(model, places, context + self.longest + 1)
        self.rows: list[Row | None] = [None] * places  # at each place
        self.sampling: BatchSampling | None = None  # None: to be found out, with the two after it
        self.pairs: Pairs | None = None
        self.text_ends: Tensor | None = None  # [B]
        self.all_drawn: range | None = None  # columns at which every code is drawn; None: to be found out, with `first`
        self.first: Tensor | None = None  # [B] the first frame that may end a row, where zeros do
        self.frames: GraphedFrame | None = None  # on a GPU, for steps in which every code is drawn
        self.held = ExitStack()  # gives the graph back
        self.graph: tuple[int, bool] | None = None  # places of the one that is held, and whether rows may end
        self.is_graphed = False  # whether it knows the settings of all rows
        self.column = self.num_kept = 0  # the column that comes next, in the grid, and those before it that are kept
        self.keep(SPARE + self.longest + (0 if context == NO_END else context))  # half a window goes to the next one

    def keep(self, count: int) -> None:
        """Keep this many columns before the next one, at least."""
        more = count - self.num_kept
        if more <= 0:
            return
        self.leave_graph()
        state = self.state
        for name, empty in ("codes", ABSENT), ("nll", 0), ("text", ABSENT), ("text_nll", 0):
            if (grid := getattr(state, name)) is not None:
                setattr(state, name, F.pad(grid, (more, 0), value=empty))
        state.end = state.end + more
        state.num_dropped -= more
        for noise in self.noises:
            noise.drop(-more)
        self.column, self.num_kept, self.all_drawn = self.column + more, count, None

    @property
    def num_free(self) -> int:
        return self.max_rows - len(self.taken)

    @property
    def taken(self) -> list[Row]:
        return [row for row in dict.fromkeys(self.rows) if row is not None]

    @torch.inference_mode()
    def add(self, request: Request, seed: int, sampling: SamplingConfig) -> Row:
        """Let a request begin. Raises IndexError if no row is free."""
        if not self.num_free:
            raise IndexError(f"all {self.max_rows} rows are taken")
        state, device = self.state, self.model.device
        row = Row(self.model, request, seed, sampling)
        num_known, looks_back = row.num_given - row.window.start, sampling.repetition_share < 1
        self.keep(max(num_known, sampling.repetition_frames + self.longest if looks_back else 0))
        codes = state.codes.new_full((self.model.num_codebooks, row.num_given), ABSENT)
        if request.codes is not None:
            codes[: row.num_codebooks] = request.codes[: row.num_codebooks].to(device)
        text = codes.new_full((row.num_given,), ABSENT) if request.text is None else request.text.to(device)
        seen = min(row.num_given, self.column)
        for place in self.make_places(1 + row.is_guided):
            self.rows[place] = row
            state.codes[place].fill_(ABSENT)
            state.codes[place, :, self.column - seen : self.column] = codes[:, row.num_given - seen :]
            if state.text is not None:
                state.text[place].fill_(ABSENT)
                if self.has_text(place):
                    state.text[place, self.column - seen : self.column] = text[row.num_given - seen :]
        try:
            self.join(row, num_known, request.prefix)
        except Exception:
            self.remove(row)
            raise
        state.end[self.rows.index(row)] = self.in_grid(row, row.total)
        if request.paced and state.pacing is None:
            state.pacing = Pacing.of(len(self.rows), device)
        if state.pacing is not None:
            for place in self.places_of(row):
                state.pacing.set_rows([place], request.paced if self.has_text(place) else (), request.longest_pause)
        return row

    def make_places(self, count: int) -> list[int]:
        """This many places for another row."""
        if self.rows.count(None) < count:
            needed = len(self.rows) - self.rows.count(None) + count
            self.resize(max(needed, min(2 * len(self.rows), self.max_rows)))
        self.sampling = None
        return [place for place, row in enumerate(self.rows) if row is None][:count]

    def places_of(self, row: Row) -> list[int]:
        return [place for place, other in enumerate(self.rows) if other is row]

    def has_text(self, place: int) -> bool:
        """Whether a place is not a guided row's second one."""
        return self.rows.index(self.rows[place]) == place

    def join(self, row: Row, num_known: int, prefix: Prefix | None = None) -> None:
        """Let a row begin its window; that many columns of it lie before the grid's next one."""
        self.leave_graph()
        state, column = self.state, self.column
        row.ahead = row.window.start + num_known - (column + state.num_dropped)
        num_voice = min(max(row.request.num_voice - row.window.start, 0), num_known)
        for place in self.places_of(row):
            num_seen = num_known - (0 if self.has_text(place) else num_voice)
            known = slice(column - num_seen, column)
            codes = state.codes[place, :, known]
            if self.longest and num_seen:
                codes = delay(codes[None], self.model.config.delays)[0, :, :num_seen]
            text = state.text[place, known] if state.text is not None and self.has_text(place) else None
            with as_labelled(self.model):
                self.walk.join(place, codes, text, prefix)
            for noise in self.noises:
                noise.set_row(place, row.seed, row.ahead)
            for k, lag in enumerate(self.model.config.delays):
                if lag > num_seen:  # nothing is known from before the window
                    state.codes[place, k, column - lag : column - num_seen] = ABSENT
            self.lay_out(place, row)
        self.all_drawn = None

    def lay_out(self, place: int, row: Row) -> None:
        """The columns of a row from the next one on: what is known, TO_DRAW, and ABSENT after its window."""
        state, request = self.state, row.request
        first = self.column + state.num_dropped + row.ahead
        count = min(max(row.stop - first, 0), state.num_frames - self.column)
        new = slice(first - row.num_given, first - row.num_given + count)
        codes = state.codes[place, :, self.column :].fill_(ABSENT)
        codes = codes[: row.num_codebooks, :count]
        if request.draw_codes:
            codes.fill_(TO_DRAW)
        if request.new_codes is not None:
            known = request.new_codes[: row.num_codebooks, new].to(codes)
            codes.copy_(torch.where(known == ABSENT, codes, known))
        if state.text is not None:
            text = state.text[place, self.column :].fill_(ABSENT)[:count]
            if request.draw_text and self.has_text(place):
                text.fill_(TO_DRAW)
            elif request.new_text is not None and self.has_text(place):
                text.copy_(request.new_text[new])

    def remove(self, row: Row) -> None:
        """Let a row go, if it is still here."""
        if row in self.rows:
            self.rows = [None if other is row else other for other in self.rows]
            self.sampling = self.all_drawn = None

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, Drawn | None]]:
        """A step of every row -> the frames that are complete, and None for rows that ended; those have left."""
        self.make_ready()
        state, rows = self.state, self.taken
        assert self.sampling is not None and self.all_drawn is not None
        ends = can_end(self.model, self.sampling)
        if self.frames is not None and self.is_graphed and self.column in self.all_drawn:
            self.frames.take(state, self.column, self.sampling)
        else:
            self.leave_graph()
            with as_labelled(self.model):
                RowStep(
                    self.model, state, Window(0, 0, NO_END), self.sampling, self.column, ends,
                    draws_all=self.column in self.all_drawn, draws_text=any(row.request.draw_text for row in rows),
                    pairs=self.pairs, text_ends=self.text_ends, first=self.first,
                ).take()  # fmt: skip
        self.column += 1
        frame = self.column - 1 - self.longest
        # the grid is written over when another row joins
        codes, nll = (grid[:, :, frame].to("cpu", copy=True) for grid in (state.codes, state.nll))
        texts = [ABSENT] * len(self.rows)
        if state.text is not None and any(row.has_new_text for row in rows):
            texts = state.text[:, frame].tolist()
        ended = state.end.tolist() if ends or self.text_ends is not None else []
        found: list[tuple[Row, Drawn | None]] = []
        for row in rows:
            place, number = self.rows.index(row), row.num_codebooks
            own = frame + state.num_dropped + row.ahead
            if own == row.frame and not (ended and ended[place] <= frame):
                row.frame += 1
                found.append((row, Drawn(codes[place, :number], nll[place, :number], texts[place])))
            if row.frame == row.total or (ended and ended[place] <= frame):
                found.append((row, None))
                self.remove(row)
            elif own + 1 == row.window.stop:
                self.next_window(row)
        return found

    def make_ready(self) -> None:
        """What the next step needs: a grid with room, and what changed since the one before."""
        if self.column == self.state.num_frames:
            self.leave_graph()
            self.state.drop(self.column - self.num_kept)
            self.column, self.all_drawn = self.num_kept, None
            for place, row in enumerate(self.rows):
                if row is not None:
                    self.lay_out(place, row)
        taken = self.taken
        if 4 * sum(row is not None for row in self.rows) <= len(self.rows) > 2:
            self.resize(len(self.rows) // 2)
        if self.sampling is None:
            settings = [(row or taken[0]).sampling for row in self.rows]
            self.sampling = batch_sampling(settings, len(self.rows), self.model.num_codebooks, self.state.nll)
            self.find_pairs()
            ends = [None if row is None else row.request.text_end for row in self.rows]
            ends = [TO_DRAW if end is None else end for end in ends]
            self.text_ends = self.tensor(ends) if max(ends) >= 0 else None
            self.use_graph(self.sampling)
        if self.all_drawn is None:
            if self.model.config.end == "zeros":
                self.first = self.tensor([0 if row is None else self.in_grid(row, row.first) for row in self.rows])
            first = self.longest + max(self.in_grid(row, row.first) for row in taken)
            stop = min(self.model.config.delays) + min(self.in_grid(row, row.stop) for row in taken)
            self.all_drawn = range(first, stop) if all(row.draws_all for row in taken) else range(0)

    def find_pairs(self) -> None:
        assert self.sampling is not None
        count = len(self.rows)
        own = [self.rows.index(row) for row in self.rows]
        without = [count - 1 - self.rows[::-1].index(row) for row in self.rows]
        self.pairs = Pairs(self.tensor(own), self.tensor(without)) if self.sampling.is_guided else None

    def use_graph(self, sampling: BatchSampling) -> None:
        """Take the steps of these settings by a graph, where there can be one."""
        wanted = len(self.rows), can_end(self.model, sampling)
        is_plain = sampling.endless is None and not sampling.repetition_frames and self.pairs is None
        is_plain = is_plain and not any(row.has_new_text or not row.draws_all for row in self.taken)
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

    def next_window(self, row: Row) -> None:
        """The last half of a row's window is given to the next one."""
        row.window = next(row.windows)
        if self.longest:  # steps that only lagging codebooks took
            for place in self.places_of(row):
                for grid in (self.state.codes, self.state.text):
                    if grid is not None:
                        grid[place] = grid[place].roll(self.longest, dims=-1)
                self.state.end[place] += self.longest
        self.join(row, row.window.first - row.window.start)

    def in_grid(self, row: Row, column: int) -> int:
        """A row's own column -> that of the grid."""
        return column - row.ahead - self.state.num_dropped

    @property
    def walk(self) -> FrameStep:
        assert isinstance(self.state.walk, FrameStep)
        return self.state.walk

    def tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self.model.device)

    @property
    def noises(self) -> list[Noise]:
        state = self.state
        return [noise for noise in (state.noise, state.again_noise, state.text_noise) if noise is not None]

    @torch.inference_mode()
    def resize(self, count: int) -> None:
        """Make it this many places, at least those that are taken: each costs time, whether it is taken or not."""
        self.leave_graph()
        kept = [place for place, row in enumerate(self.rows) if row is not None]
        state, index = self.state, torch.tensor([*kept, *[0] * (count - len(kept))], device=self.model.device)
        state.walk = self.walk.resized(kept, count)
        self.held.close()
        self.frames = self.graph = None
        for name in ("codes", "nll", "text", "text_nll", "end"):
            if (grid := getattr(state, name)) is not None:
                setattr(state, name, grid[index])
        for noise in self.noises:
            noise.select(index)
        if state.pacing is not None:
            state.pacing.select(index)
        self.rows = [*(self.rows[place] for place in kept), *[None] * (count - len(kept))]
        self.sampling = self.all_drawn = None
