"""The thread that draws: it alone steps the `Scheduler`, and tells each `Session` its news.

Whatever else is to be done with the scheduler is put into its list of orders, and done between two steps: nobody waits
for a lock, and no client can hold the others up. S samples, K codebooks, N frames.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple, TypeVar

import numpy as np

from ...data.audio_out import int16_samples
from ...model.delay_pattern import ABSENT
from ..config import SamplingConfig
from ..generator import SpeechGenerator
from ..grid import Request
from ..playback import Playback
from ..row_batch import Drawn
from ..scheduler import Scheduler, Ticket
from .config import ServerConfig
from .metrics import Metrics
from .refusal import log_error

READERS = 2  # threads that decode and encode uploads

Result = TypeVar("Result")


class Piece(NamedTuple):
    """The gain of a session in one step."""

    pcm: bytes  # 16-bit samples, little-endian
    codes: list[list[int]]  # [N, K]; sound follows some frames later
    bits: list[list[float]]  # [N, K] that each code cost the model


def joined(pieces: Sequence[Piece]) -> Piece:
    """Several, one after the other, as one."""
    codes = [frame for piece in pieces for frame in piece.codes]
    bits = [frame for piece in pieces for frame in piece.bits]
    return Piece(b"".join(piece.pcm for piece in pieces), codes, bits)


class Session:
    """A request from its first frame to its last, as a coroutine sees it.

    A client that takes its pieces slowly makes nobody wait: they are kept for it, and no more can come than it asked
    for. All but `end` of a session belongs to the event loop's thread.
    """

    def __init__(self, drawing: "Drawing", asked: float):
        self.drawing, self.asked = drawing, asked
        self.loop = asyncio.get_running_loop()
        self.pieces: deque[Piece] = deque()
        self.news = asyncio.Event()
        self.finish_reason = ""  # once it has ended: "length", "eos", "cancelled" or "error"
        self.error: Exception | None = None

    async def take(self) -> list[Piece]:
        """New pieces, as soon as there are some; none after the end. Raises the error that ended it."""
        while not self.pieces and not self.finish_reason:
            self.news.clear()
            await self.news.wait()
        found = list(self.pieces)
        self.pieces.clear()
        if not found and self.error is not None:
            raise self.error
        return found

    def cancel(self) -> None:
        """Draw no more for it. Does nothing after the end."""
        self.drawing.order(lambda: self.drawing.cancel(self))

    def tell(self, piece: Piece | None, finish_reason: str = "", error: Exception | None = None) -> None:
        """From the thread that draws."""

        def note() -> None:
            if piece is not None:
                self.pieces.append(piece)
            self.finish_reason, self.error = finish_reason or self.finish_reason, error or self.error
            self.news.set()

        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(note)


class Progress:
    """A session as the thread that draws sees it."""

    def __init__(self, session: Session, ticket: Ticket):
        self.session, self.ticket = session, ticket
        self.first: float | None = None  # when its first audio was there
        self.num_samples = 0
        self.playback = Playback()

    def take(self) -> tuple[np.ndarray, list[Drawn]]:
        """Audio [S] and frames that are new."""
        ticket = self.ticket
        if ticket.audio_stream is None and not ticket.ready and not ticket.is_done:
            return np.zeros(0, np.float32), []  # it waits: a stream for it would hold memory
        chunk = ticket.next_chunk()
        assert ticket.said is not None
        frames = [frame for frame in ticket.said if frame.codes[0] != ABSENT]  # others are columns of text alone
        ticket.said.clear()
        return chunk, frames


class Drawing:
    def __init__(self, lm: SpeechGenerator, config: ServerConfig, metrics: Metrics):
        self.lm, self.config, self.metrics = lm, config, metrics
        self.scheduler = self._new_scheduler()
        self.orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.open: dict[Session, Progress] = {}  # for the thread that draws alone
        self.readers = ThreadPoolExecutor(READERS, "codeclm-reader")
        self.thread = Thread(target=self._run, name="codeclm-drawing", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """Ends the thread; open sessions are told that they were cancelled."""
        self.orders.put(None)
        self.thread.join()
        self.readers.shutdown(wait=False, cancel_futures=True)

    def order(self, act: Callable[[], None]) -> None:
        """Let the thread that draws do this between two steps; from any thread."""
        self.orders.put(act)

    async def read(self, function: Callable[..., Result], *arguments: object) -> Result:
        """The result of long work that draws nothing: encoding a prompt, scoring a recording.

        On a CPU beside the steps; on another device between two of them, as a graph may be captured in a step.
        """
        if self.lm.device.type == "cpu":
            return await asyncio.get_running_loop().run_in_executor(self.readers, function, *arguments)
        loop, found = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def settle(result: Result | None, error: Exception | None) -> None:
            if not found.done():
                found.set_result(result) if error is None else found.set_exception(error)

        def act() -> None:
            result, failed = None, None
            try:
                result = function(*arguments)
            except Exception as error:
                failed = error
            loop.call_soon_threadsafe(settle, result, failed)

        self.order(act)
        return await found

    def begin(self, request: Request, seed: int, sampling: SamplingConfig, asked: float) -> Session:
        """A session that is drawn from now on, or as soon as there is a place. asked: when, by `time.monotonic`."""
        session = Session(self, asked)

        def act() -> None:
            try:
                ticket = self.scheduler.submit_request(request, seed, sampling)
            except Exception as error:
                session.tell(None, "error", error)
                return
            ticket.said = deque()
            self.open[session] = Progress(session, ticket)

        self.order(act)
        return session

    def cancel(self, session: Session) -> None:
        """On the thread that draws."""
        progress = self.open.pop(session, None)
        if progress is not None:
            progress.ticket.cancel()
            self.metrics.ends.labels("cancelled").inc()
            session.tell(None, "cancelled")

    def cancel_all(self) -> None:
        """On the thread that draws."""
        for session in list(self.open):
            self.cancel(session)

    def _new_scheduler(self) -> Scheduler:
        return Scheduler(self.lm, self.config.max_sessions, self.config.max_sessions + self.config.max_waiting)

    def _run(self) -> None:
        while True:
            while not self.orders.empty() or not self.scheduler.num_open:
                act = self.orders.get()
                if act is None:
                    self.cancel_all()
                    return
                act()
                self._count()
            try:
                self.scheduler.step()
                for progress in list(self.open.values()):
                    self._hand_out(progress)
            except Exception as error:  # nobody else may suffer from a defect of ours for longer than this
                log_error(error)
                for session in list(self.open):
                    session.tell(None, "error", error)
                    self.metrics.ends.labels("error").inc()
                self.open.clear()
                self.scheduler = self._new_scheduler()
            self._count()

    def _hand_out(self, progress: Progress) -> None:
        ticket, session = progress.ticket, progress.session
        is_done = ticket.is_done  # before the last audio is taken
        chunk, frames = progress.take()
        if len(chunk) or frames:
            self._measure(progress, len(chunk))
            codes = [frame.codes.tolist() for frame in frames]
            bits = [[round(nats / math.log(2), 3) for nats in frame.nll.tolist()] for frame in frames]
            session.tell(Piece(int16_samples(chunk).tobytes(), codes, bits))
        if is_done:
            del self.open[session]
            self.metrics.ends.labels(ticket.finish_reason).inc()
            if progress.first is not None:
                elapsed = time.monotonic() - progress.first
                self.metrics.real_time.observe(progress.num_samples / self.lm.codec.sample_rate / max(elapsed, 1e-3))
            session.tell(None, ticket.finish_reason, ticket.error)

    def _measure(self, progress: Progress, num_samples: int) -> None:
        now, rate = time.monotonic(), self.lm.codec.sample_rate
        if not num_samples:
            return
        if progress.first is None:
            progress.first = now
            self.metrics.first.observe(now - progress.session.asked)
        self.metrics.underruns.inc(progress.playback.hear(now, num_samples / rate))
        progress.num_samples += num_samples
        self.metrics.speech.inc(num_samples / rate)

    def _count(self) -> None:
        waiting = len(self.scheduler.waiting)
        self.metrics.queue.set(waiting)
        self.metrics.drawn.set(self.scheduler.num_open - waiting)
