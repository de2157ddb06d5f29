"""Many requests at once, drawn together as one batch: `Scheduler` is the queue, a `Ticket` what a request gets back.

    scheduler = Scheduler(lm, max_rows=8)
    first, second = scheduler.submit("a.wav", 4.0), scheduler.submit("b.wav", 9.0, seed=5)
    for chunk in first.audio():  # whoever waits for frames takes the steps, which all requests share
        play(chunk)

A request that ends makes room for the next one in the queue. It gets the codes that `generate` gives it alone. Those
of a model that the frame step does not know cannot be rows of a batch: they take their turns, drawn alone. Where memory
is too small for all rows, half of them begin again when the others are over, and nobody hears of it.
All methods may be called from any thread. K codebooks, S samples.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ..model.delay_pattern import ABSENT
from .config import SamplingConfig
from .engine import generate
from .frame_step import is_supported
from .generation import Generation
from .generator import SpeechGenerator
from .grid import Request, State, given_columns, start
from .guidance import check_guided
from .out_of_memory import is_out_of_memory
from .prefix import Prefix
from .prompt import Prompt
from .rendering import rendered
from .row import Drawn, Row
from .row_batch import RowBatch
from .sampling import batch_sampling
from .streaming import LARGEST, AudioStream, frames_at_once
from .threads import decoding_threads

TOO_LARGE = "memory is too small for this request: ask for a shorter duration or prompt"
Job = tuple[Request, int, SamplingConfig]
log = logging.getLogger(__name__)


class QueueFull(RuntimeError):
    """As many requests wait as may."""


class Ticket:
    """A request that was submitted. Its frames, or their audio, are those after the prompt: take one of both."""

    def __init__(self, scheduler: "Scheduler", job: Job, state: State, extra: int):
        """state: the request as it is laid out. extra: columns at its end that are not wanted."""
        self.scheduler, (self.request, self.seed, self.sampling) = scheduler, job
        given = slice(self.request.num_voice, state.num_prompt_frames)
        self.given, nll = (grid[0, : state.num_codebooks, given].cpu() for grid in (state.codes, state.nll))  # [K, T]
        self.given_nll = nll if self.request.prefix is not None else torch.full_like(nll, torch.nan)
        self.given_text = [] if state.text is None else state.text[0, given].tolist()
        self.num_left = self.request.num_frames - extra  # frames that may still come
        self.num_drawn = self.num_again = 0  # frames that came, and those that come again: it had to begin anew
        self.ready: deque[Drawn] = deque()  # frames that nobody took yet
        self.said: deque[Drawn] | None = None  # frames whose audio is in `chunks`, where a listener keeps them
        self.audio_stream: AudioStream | None = None  # once somebody listens
        self.chunks: list[np.ndarray] = []  # that nobody took yet
        self.num_said = 0  # frames that went to the codec
        self.is_said = False  # whether there is no more audio to come
        self.is_done = False
        self.finish_reason = ""  # once it is done: "length", "eos", "cancelled" or "error"
        self.error: Exception | None = None

    def take(self) -> list[Drawn]:
        """The frames that have come since the last call."""
        return [self.ready.popleft() for _ in range(len(self.ready))]

    def frames(self) -> Iterator[Drawn]:
        """Frames as they come. Raises what went wrong in drawing them."""
        done = False
        while not done:
            done = self.is_done  # before the last frames are taken
            found = self.take()
            yield from found
            if not found and not done:
                self.scheduler.step_for(self)
        if self.error is not None:
            raise self.error

    def audio(self) -> Iterator[np.ndarray]:
        """Chunks [S] float32, as soon as the codec can say them; joined they are the audio that `generate` gives.

        Raises as `frames`.
        """
        done = False
        while not done:
            done = self.is_done
            chunk = self.next_chunk()
            if len(chunk):
                yield chunk
            elif not done:
                self.scheduler.step_for(self)
        if self.error is not None:
            raise self.error

    def generation(self) -> Generation:
        """All of it once it is done, as `generate` gives it; but the nats of a prompt that is no `Prefix` are NaN.

        Raises as `frames`, all of which it takes.
        """
        frames = list(self.frames())
        codes = torch.cat([self.given, *(frame.codes[:, None] for frame in frames)], dim=1)
        nll = torch.cat([self.given_nll, *(frame.nll[:, None] for frame in frames)], dim=1)
        lm, text = self.scheduler.lm, None
        if lm.model.text_size:
            text = torch.tensor([*self.given_text, *(frame.text for frame in frames)])
        try:
            return rendered(lm, codes, nll, text, self.given.shape[1], self.seed, self.finish_reason)
        except RuntimeError as error:
            raise MemoryError(TOO_LARGE) if is_out_of_memory(error) else error from None

    def next_chunk(self) -> np.ndarray:
        """The audio [S] that has come since the last call, perhaps none; does not wait.

        From the first call on, the frames of each step become audio together with those of other tickets.
        """
        return self.scheduler.next_chunk(self)

    def cancel(self) -> None:
        """No more frames come; the row is free for another request."""
        self.scheduler.cancel(self)


class Scheduler:
    def __init__(self, lm: SpeechGenerator, max_rows: int = 8, max_waiting: int = 64):
        """max_rows: requests that are drawn at the same time. max_waiting: requests beyond those."""
        for name, value, least in ("max_rows", max_rows, 1), ("max_waiting", max_waiting, 0):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        self.lm, self.most_rows, self.max_rows, self.max_waiting = lm, max_rows, max_rows, max_waiting
        self.waiting: deque[Ticket] = deque()
        self.rows: dict[Row, Ticket] = {}
        self.alone: dict[Ticket, Iterator[Drawn]] = {}
        self.listened: dict[Ticket, None] = {}  # in the order in which they began to listen
        self.voices: WeakKeyDictionary[Prefix, AudioStream] = WeakKeyDictionary()  # streams that have said a prefix
        self.batch: RowBatch | None = None
        self.num_steps = 0
        self.lock = Lock()

    def submit(
        self,
        prompt: Prompt = None,
        duration_s: float | None = None,
        seed: int = 0,
        sampling: SamplingConfig = SamplingConfig(),
        text: str | None = None,
    ) -> Ticket:
        """Ask for what `lm.generate` would give. Raises as that does, and QueueFull if too many requests wait."""
        sampling = self.lm.until_end(sampling, prompt, duration_s, text)
        return self.submit_request(self.lm.request(prompt, duration_s, sampling, text), seed, sampling)

    def submit_request(self, request: Request, seed: int, sampling: SamplingConfig) -> Ticket:
        """As `submit`, for a request of `lm.request`."""
        model = self.lm.model
        request, extra = self.lm.completed(request)
        # what is wrong is told now
        check_guided(request, batch_sampling(sampling, 1, model.num_codebooks, next(model.parameters())))
        state = start(model, request, [seed], sampling.num_codebooks, keep=False)
        if not given_columns(request) and not model.config.bos:
            raise ValueError("this model has no BOS: it goes on from a given first frame (text or codes)")
        ticket = Ticket(self, (request, seed, sampling), state, extra)
        with self.lock:
            if len(self.waiting) - self.num_free >= self.max_waiting:
                raise QueueFull(f"{self.max_waiting} requests wait beside {self.max_rows} rows; try again later")
            self.waiting.append(ticket)
        return ticket

    @property
    def num_free(self) -> int:
        return self.max_rows - len(self.rows) - len(self.alone)

    @property
    def num_open(self) -> int:
        """Requests that are drawn or wait."""
        return len(self.waiting) + len(self.rows) + len(self.alone)

    def step(self) -> int:
        """A frame for every request that has a row -> how many requests are open."""
        with self.lock, decoding_threads(self.lm.threads):
            self._step()
            return self.num_open

    def step_for(self, ticket: Ticket) -> None:
        """A step, unless frames have come meanwhile."""
        with self.lock, decoding_threads(self.lm.threads):
            if not ticket.chunks and not ticket.is_done and (not ticket.ready or ticket in self.listened):
                self._step()

    def next_chunk(self, ticket: Ticket) -> np.ndarray:
        """See `Ticket.next_chunk`."""
        with self.lock, decoding_threads(self.lm.threads):
            if not ticket.is_said:
                self.listened[ticket] = None
                self._say([ticket])
            chunks, ticket.chunks = ticket.chunks, []
        return np.concatenate([np.zeros(0, np.float32), *chunks])

    def cancel(self, ticket: Ticket) -> None:
        with self.lock:
            if not ticket.is_done:
                self._leave(ticket)
                self._finish(ticket, "cancelled")

    def _step(self) -> None:
        while self.waiting and self.num_free:
            self._begin(self.waiting.popleft())
        for ticket, frames in list(self.alone.items()):
            try:
                self._give(ticket, next(frames, None))
            except Exception as error:
                self._fail(ticket, error)
        if self.rows and self.batch is not None:
            try:
                found = self.batch.step()
            except Exception as error:
                self._lose_batch(list(self.rows.values()), error)
                found = []
            for row, frame in found:
                if row in self.rows:
                    self._give(self.rows[row], frame)
        self.num_steps += 1
        self._say(list(self.listened))

    def _say(self, tickets: Sequence[Ticket]) -> None:
        """Let the codec say the frames that have come, those of several tickets in one go."""
        alike: dict[torch.Size, list[tuple[Ticket, AudioStream, Tensor]]] = {}
        for ticket in tickets:
            if ticket.audio_stream is None:
                ticket.audio_stream = self._begin_audio(ticket)
            if self._is_due(ticket) and (frames := ticket.take()):
                ticket.num_said += len(frames)
                if ticket.said is not None:
                    ticket.said.extend(frames)
                codes = torch.stack([frame.codes for frame in frames], dim=1)
                codes = codes[:, codes[0] != ABSENT]  # columns of text alone make no sound
                alike.setdefault(codes.shape, []).append((ticket, ticket.audio_stream, codes))
        for shape, group in alike.items():
            if shape[1]:
                heard, (first, *others), codes = zip(*group, strict=True)
                chunks = first.push_with(others, torch.stack(codes).to(self.lm.device))
                for ticket, chunk in zip(heard, chunks, strict=True):
                    ticket.chunks.append(chunk)
        for ticket in tickets:
            if ticket.is_done and not ticket.is_said and ticket.audio_stream is not None:
                ticket.is_said = True
                ticket.chunks.append(ticket.audio_stream.finish())
                self.listened.pop(ticket, None)

    def _is_due(self, ticket: Ticket) -> bool:
        """Whether the codec is to say its frames now: as in a stream of its own, LARGEST of all tickets in one step."""
        wanted = frames_at_once(ticket.num_said)
        enough = self.num_steps % LARGEST == 0 if wanted == LARGEST else len(ticket.ready) >= wanted
        return ticket.is_done or enough

    def _begin_audio(self, ticket: Ticket) -> AudioStream:
        """A stream that has said what is given."""
        request = ticket.request
        known = None if request.prefix is None else self.voices.get(request.prefix)
        if known is not None and (begun := known.copy()) is not None:
            return begun
        begun = AudioStream(self.lm)
        if ticket.given.shape[1]:
            begun.push(ticket.given.to(self.lm.device), ticket.given.shape[1])
        if request.prefix is not None and (known := begun.copy()) is not None:
            self.voices[request.prefix] = known
        return begun

    def _begin(self, ticket: Ticket) -> None:
        model, request = self.lm.model, ticket.request
        try:
            if is_supported(model):
                if self.batch is None:
                    self.batch = RowBatch(model, self.max_rows, self.lm.codec.codebook_size)
                self.rows[self.batch.add(request, ticket.seed, ticket.sampling)] = ticket
            else:
                self.alone[ticket] = drawn_alone(self.lm, ticket)
        except Exception as error:
            if is_out_of_memory(error):
                self._lose_batch([*self.rows.values(), ticket], error)
            else:
                self._fail(ticket, error)

    def _lose_batch(self, tickets: list[Ticket], error: Exception) -> None:
        """What the batch holds is lost: these tickets fail, or begin again, fewer at a time."""
        self.batch = None
        if len(tickets) == 1 or not is_out_of_memory(error):
            self.max_rows = self.most_rows  # it was this one that was too large
            for ticket in tickets:
                self._fail(ticket, error)
            return
        self.max_rows = len(tickets) // 2
        log.warning(f"memory is too small for {len(tickets)} requests at once: from now on {self.max_rows} are drawn")
        self.rows.clear()
        for ticket in tickets:
            ticket.num_again = ticket.num_drawn
        self.waiting.extendleft(reversed(tickets))

    def _give(self, ticket: Ticket, frame: Drawn | None) -> None:
        """frame: None if there are no more."""
        if frame is not None and frame.nll.isnan().any():
            self._fail(ticket, FloatingPointError("the model gave NaN logits: its weights or its input are broken"))
            return
        if frame is not None and ticket.num_again:
            ticket.num_again -= 1
            return
        if frame is not None:
            ticket.num_left -= 1
            ticket.num_drawn += 1
            ticket.ready.append(frame)
        if frame is None or not ticket.num_left:
            self._leave(ticket)
            self._finish(ticket, "eos" if ticket.num_left else "length")

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        if is_out_of_memory(error):
            error = MemoryError(TOO_LARGE)
        ticket.error = error
        self._leave(ticket)
        self._finish(ticket, "error")

    def _leave(self, ticket: Ticket) -> None:
        """Give back what a ticket holds: its row, or its place in the queue."""
        self.alone.pop(ticket, None)
        if ticket in self.waiting:
            self.waiting.remove(ticket)
        for row in [row for row, other in self.rows.items() if other is ticket]:
            del self.rows[row]
            if self.batch is not None:
                self.batch.remove(row)

    def _finish(self, ticket: Ticket, reason: str) -> None:
        ticket.finish_reason = reason
        ticket.is_done = True  # last: another thread may look at it


def drawn_alone(lm: SpeechGenerator, ticket: Ticket) -> Iterator[Drawn]:
    """The frames of a request that can be no row of a batch."""
    seen = given_columns(ticket.request)
    for state in generate(lm.model, ticket.request, [ticket.seed], ticket.sampling, keep=False):
        before = state.num_dropped
        stop = min(before + state.frame, before + int(state.end[0]))
        for column in range(seen, stop):
            codes, nll = (grid[0, : state.num_codebooks, column - before] for grid in (state.codes, state.nll))
            text = ABSENT if state.text is None else int(state.text[0, column - before])
            yield Drawn(codes.cpu(), nll.cpu(), text)
        seen = max(seen, stop)
