"""inference/scheduler.py: requests that come and go are drawn together, and each gets what it would get alone."""

import random
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from codeclm.inference import SamplingConfig, row_batch
from codeclm.inference.engine import generate
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.grid import Request
from codeclm.inference.scheduler import QueueFull, Scheduler, Ticket
from codeclm.model import SpeechLM
from codeclm.model.delay_pattern import ABSENT
from codeclm.model.shapes import TextConfig

from .options import WORDS, backbone, depth

SLIDING = dict(context_frames=8, backbone=backbone(sliding_window=5))
MODELS = {
    "full": {},
    "windows": dict(context_frames=8),
    "windows, delays": dict(context_frames=8, delays=(0, 1, 3)),
    "windows, later": dict(context_frames=9, delays=(1, 2, 2), end="never", gaps="bos"),
    "windows, zeros": dict(context_frames=8, delays=(0, 1, 1), end="zeros"),
    "delay": dict(pattern="delay", delays=(0, 1, 2), context_frames=10),
    "sliding": SLIDING,
    "sliding, delays": SLIDING | dict(delays=(0, 2, 1)),
    "sliding, parallel": SLIDING | dict(pattern="parallel"),
    "no bos": dict(context_frames=8, bos=False),
    "no rope": dict(backbone=backbone(rope=False)),
    "depth first": dict(context_frames=8, depth=depth(first_codebook="depth", conditioning="prefix")),
    "text": dict(context_frames=8, text=TextConfig(WORDS)),
    "text, sliding": SLIDING | dict(text=TextConfig(WORDS), delays=(0, 1, 0)),
    "text seen, delays": dict(
        context_frames=8, text=TextConfig(WORDS), delays=(0, 1, 2),
        depth=depth(sees_text=True, first_codebook="depth"),
    ),
    "text given, delays": dict(context_frames=8, text=TextConfig(WORDS, predicted=False), delays=(0, 1, 2)),
}  # fmt: skip
SAMPLINGS = [
    SamplingConfig(temperature=1.0, top_k=0),
    SamplingConfig(temperature=(1.5, 0.9), top_k=(0, 4), stop_at_end=True),
    SamplingConfig(temperature=0.0),
    SamplingConfig(temperature=1.2, top_p=0.8, min_p=0.02, stop_at_end=True),
    SamplingConfig(temperature=0.3, repetition_share=0.2),
    SamplingConfig(temperature=1.0, num_codebooks=2, stop_at_end=True),
    SamplingConfig(temperature=0.2, repetition_share=0.1, repetition_frames=23),
]
Job = tuple[Request, int, SamplingConfig]


@pytest.fixture
def make_lm(make_model, make_codec):
    def make(**options) -> SpeechGenerator:
        codec = make_codec(codebook_size=7)
        return SpeechGenerator(make_model(codec=codec, **options), codec, "tiny")

    return make


@pytest.fixture(autouse=True)
def small_grid(monkeypatch):
    monkeypatch.setattr("codeclm.inference.grid.SPARE", 9)
    monkeypatch.setattr(row_batch, "SPARE", 12)


def jobs(lm: SpeechGenerator, count: int) -> list[Job]:
    """Prompts of 0 to 30 frames, 1 to 40 more to draw, and every kind of sampling."""
    model, draw = lm.model, torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        given = int(torch.randint(0 if model.config.bos else 1, 31, (), generator=draw))
        frames = int(torch.randint(1, 41, (), generator=draw))
        codes = torch.randint(model.codebook_size, (model.num_codebooks, given), generator=draw)
        text, num_voice = None, 0
        if model.text_size and given > 4 and number % 2:
            text = torch.randint(WORDS, (given,), generator=draw)
            text[4:] = ABSENT
            codes[:, :4] = ABSENT
            num_voice = number % 4
            codes[:, :num_voice] = text[:num_voice].clamp_max(model.codebook_size - 1)
            text[:num_voice] = ABSENT
        request = Request(frames, codes if given else None, text, num_codes=model.codebook_size, num_voice=num_voice)
        if number % 3 == 1:  # codes of new frames that are known: codebook 0, and some frames
            known = torch.randint(model.codebook_size, (model.num_codebooks, frames), generator=draw)
            known[1:, : frames // 2] = ABSENT
            known[0, 2:4] = ABSENT
            request = replace(request, new_codes=known)
        sampling = SAMPLINGS[number % len(SAMPLINGS)]
        found.append((with_text(model, request, number, draw), number % 5, sampling))
        if model.text_size and number % 4 == 3:
            found[-1] = (*found[-1][:2], replace(sampling, guidance=0.5 * (number % 5)))
    return found


def with_text(model: SpeechLM, request: Request, number: int, draw: torch.Generator) -> Request:
    """Text in new columns, of one kind or another: known, drawn, or drawn alone until it ends."""
    if not model.text_size or number % 4 == 1:
        return request
    if model.predicts_text and number % 4 == 2:
        return replace(request, draw_text=True)
    if model.predicts_text and number % 8 == 4:
        return replace(request, draw_text=True, draw_codes=False, text_end=3, new_codes=None)
    return replace(request, new_text=torch.randint(-1, WORDS, (request.num_frames,), generator=draw))


def alone(lm: SpeechGenerator, job: Job) -> tuple[Tensor, Tensor]:
    """Codes and nats after the prompt."""
    request, seed, sampling = job
    request, extra = lm.completed(request)
    *_, state = generate(lm.model, request, [seed], sampling)
    kept = slice(state.num_prompt_frames, min(int(state.end[0]), state.num_frames - extra))
    return state.codes[0, : state.num_codebooks, kept], state.nll[0, : state.num_codebooks, kept]


def check(ticket: Ticket, expected: tuple[Tensor, Tensor]) -> None:
    assert ticket.error is None and ticket.is_done
    found = ticket.take()
    assert len(found) == expected[0].shape[1]
    if found:
        assert torch.equal(torch.stack([frame.codes for frame in found], dim=1), expected[0])
        nll = torch.stack([frame.nll for frame in found], dim=1)
        torch.testing.assert_close(nll, expected[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_is_as_it_is_alone_whatever_rows_begin_end_and_are_replaced_beside_it(make_lm, name):
    lm = make_lm(**MODELS[name])
    work = jobs(lm, 20)
    scheduler, chance = Scheduler(lm, max_rows=5), random.Random(0)
    tickets: list[Ticket] = []
    sizes = set()
    while len(tickets) < len(work) or scheduler.num_open:
        for job in work[len(tickets) : len(tickets) + chance.choice([0, 0, 0, 0, 1, 2])]:
            tickets.append(scheduler.submit_request(*job))
        scheduler.step()
        sizes.add(len(scheduler.batch.rows) if scheduler.batch else 0)
    reasons = set()
    for ticket, job in zip(tickets, work, strict=True):
        check(ticket, alone(lm, job))
        reasons.add(ticket.finish_reason)
    assert reasons == ({"length"} if lm.model.config.end == "never" else {"length", "eos"})
    assert len(sizes - {0}) > 2  # the batch grew and shrank


@pytest.mark.parametrize(
    "options", [dict(pattern="flatten"), dict(backbone=backbone(qk_norm=True))], ids=lambda options: next(iter(options))
)
def test_a_model_that_the_frame_step_does_not_know_draws_requests_in_turns(make_lm, options):
    lm = make_lm(**options)
    work = jobs(lm, 5)
    scheduler = Scheduler(lm, max_rows=2)
    tickets = [scheduler.submit_request(*job) for job in work]
    while scheduler.step():
        assert len(scheduler.alone) <= 2 and not scheduler.rows
    for ticket, job in zip(tickets, work, strict=True):
        check(ticket, alone(lm, job))


def test_audio_comes_while_it_is_made_and_joins_to_that_of_generate(make_lm):
    lm = make_lm(**SLIDING)
    rate = lm.codec.sample_rate
    prompt = (0.1 * np.random.default_rng(0).standard_normal(3000).astype(np.float32), rate)
    scheduler = Scheduler(lm, max_rows=2)
    asked = [(prompt, 0.3, 1), (None, 0.2, 2), (prompt, 0.1, 3), (prompt, 0.2, 4, SamplingConfig(num_codebooks=2))]
    tickets = [scheduler.submit(*arguments) for arguments in asked]
    streams = [ticket.audio() for ticket in tickets]
    first = [next(streams[1]), next(streams[0])]  # from the second: all of them wait for the same steps
    assert not tickets[1].is_done and all(map(len, first))
    for ticket, stream, arguments in zip(tickets, streams, asked, strict=True):
        begun = first.pop() if first else np.zeros(0, np.float32)
        joined = np.concatenate([begun, *stream])
        np.testing.assert_allclose(joined, lm.generate(*arguments).audio, rtol=0, atol=1e-4)
        assert ticket.finish_reason == "length"


@pytest.mark.parametrize(
    "options", [SLIDING, dict(text=TextConfig(WORDS)), dict(pattern="flatten")], ids=lambda options: next(iter(options))
)
def test_a_ticket_gives_the_generation_that_generate_gives(make_lm, options):
    lm = make_lm(**options)
    prompt = (0.1 * np.random.default_rng(0).standard_normal(3000).astype(np.float32), lm.codec.sample_rate)
    few = SamplingConfig(temperature=2.0, top_k=0, num_codebooks=2, stop_at_end=True)
    asked = [(prompt, 0.3, 1), (None, 0.3, 2, few), (prompt, 0.3, 3, few)]
    scheduler = Scheduler(lm, max_rows=2)
    tickets = [scheduler.submit(*arguments) for arguments in asked]
    for ticket, arguments in zip(tickets, asked, strict=True):
        found, expected = ticket.generation(), lm.generate(*arguments)
        for name in ("codes", "audio", "prompt_audio"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        new = slice(found.num_prompt_frames, None)
        np.testing.assert_allclose(found.nll[:, new], expected.nll[:, new], rtol=0, atol=1e-9)
        assert np.isnan(found.nll[:, : found.num_prompt_frames]).all()
        for name in ("num_prompt_frames", "finish_reason", "seed", "sample_rate"):
            assert getattr(found, name) == getattr(expected, name)


def test_a_row_that_is_cancelled_makes_room_and_changes_no_other(make_lm):
    lm = make_lm(**SLIDING)
    work = [(replace(request, num_frames=25, new_codes=None), seed, SAMPLINGS[0]) for request, seed, _ in jobs(lm, 5)]
    scheduler = Scheduler(lm, max_rows=2)
    kept, dropped, queued, never, last = (scheduler.submit_request(*job) for job in work)
    for _ in range(5):
        scheduler.step()
    for ticket in (never, dropped, dropped):
        ticket.cancel()
    while scheduler.step():
        pass
    assert len(dropped.take()) == 5 and not never.take()
    assert dropped.finish_reason == never.finish_reason == "cancelled" and not list(never.audio())
    for ticket, place in (kept, 0), (queued, 2), (last, 4):
        check(ticket, alone(lm, work[place]))


def test_a_full_queue_refuses_in_one_line_and_takes_more_when_a_row_is_free(make_lm):
    scheduler = Scheduler(make_lm(), max_rows=2, max_waiting=1)
    tickets = [scheduler.submit(duration_s=0.05) for _ in range(3)]
    with pytest.raises(QueueFull, match=r"^1 requests wait beside 2 rows; try again later$"):
        for _ in range(2):
            scheduler.step()
            scheduler.submit(duration_s=0.05)
    list(tickets[0].frames())
    assert len(list(scheduler.submit(duration_s=0.05).frames())) == 5


REFUSED = {
    "duration": dict(duration_s=0.0),
    "less than a day": dict(duration_s=float("inf")),
    "temperature has 4 numbers": dict(sampling=SamplingConfig(temperature=(1.0, 1.0, 1.0, 1.0))),
    "cannot speak a given text": dict(text="hello"),
    "has no BOS": {},
}


@pytest.mark.parametrize("told", REFUSED)
def test_what_cannot_be_drawn_is_refused_at_once(make_lm, told):
    scheduler = Scheduler(make_lm(bos=told != "has no BOS"))
    with pytest.raises(ValueError, match=told):
        scheduler.submit(**REFUSED[told])
    assert not scheduler.num_open


def test_a_request_that_fails_is_told_to_who_waits_and_the_next_is_drawn(make_lm):
    lm = make_lm()
    scheduler = Scheduler(lm)
    job = Request(5, num_codes=7), 0, SAMPLINGS[0]
    with torch.no_grad():
        lm.model.head_0.weight.fill_(torch.nan)
    broken = [scheduler.submit_request(*job) for _ in range(2)]
    for ticket in broken:
        with pytest.raises(FloatingPointError, match="NaN"):
            list(ticket.frames())
    with torch.no_grad():
        lm.model.head_0.weight.fill_(0.5)
    scheduler.batch = None
    assert len(list(scheduler.submit_request(*job).frames())) == 5


def test_where_memory_is_too_small_fewer_rows_are_drawn_and_each_goes_on_where_it_was(make_lm, monkeypatch, caplog):
    lm = make_lm()
    work = jobs(lm, 6)
    scheduler = Scheduler(lm, max_rows=4)
    real, steps = row_batch.RowBatch.step, []

    def starved(self):
        steps.append(len(self.taken))
        if len(steps) > 3 and steps[-1] > 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(self)

    monkeypatch.setattr(row_batch.RowBatch, "step", starved)
    tickets = [scheduler.submit_request(*job) for job in work]
    while scheduler.step():
        pass
    for ticket, job in zip(tickets, work, strict=True):
        check(ticket, alone(lm, job))
    assert steps[:5] == [4, 4, 4, 4, 2] and scheduler.max_rows == 2
    assert [r.message for r in caplog.records] == [
        "memory is too small for 4 requests at once: from now on 2 are drawn"
    ]


def test_memory_that_is_too_small_for_a_request_to_begin_fails_that_one_when_it_is_alone(make_lm, monkeypatch):
    lm = make_lm()
    work = jobs(lm, 4)
    scheduler = Scheduler(lm, max_rows=4)
    real = row_batch.RowBatch.add

    def starved(self, request, *rest):
        if request is hungry.request:
            raise torch.OutOfMemoryError("out of memory")
        return real(self, request, *rest)

    monkeypatch.setattr(row_batch.RowBatch, "add", starved)
    first, second, hungry, last = (scheduler.submit_request(*job) for job in work)
    while scheduler.step():
        pass
    with pytest.raises(MemoryError, match="^memory is too small for this request: ask for a shorter"):
        list(hungry.frames())
    for ticket, place in (first, 0), (second, 1), (last, 3):
        check(ticket, alone(lm, work[place]))
    assert scheduler.max_rows == 4


def test_threads_that_submit_wait_and_cancel_get_what_each_gets_alone(make_lm):
    lm = make_lm(**SLIDING)
    work = jobs(lm, 12)
    expected = [alone(lm, job) for job in work]
    scheduler, errors = Scheduler(lm, max_rows=3), []

    def ask(job: Job, want: tuple[Tensor, Tensor]) -> None:
        try:
            other = scheduler.submit_request(*job)
            ticket = scheduler.submit_request(*job)
            other.cancel()
            found = list(ticket.frames())
            assert len(found) == want[0].shape[1]
            assert not found or torch.equal(torch.stack([frame.codes for frame in found], dim=1), want[0])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=pair) for pair in zip(work, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not errors and not scheduler.num_open
