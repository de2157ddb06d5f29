"""inference/bench/load.py: listeners at random times, and what they heard. No time is asserted."""

import json

import numpy as np
import pytest

from codeclm.inference.bench.cli import bench as command
from codeclm.inference.bench.load import Listener, LoadConfig, arrivals, run_load, summary
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.playback import NEVER, Playback
from codeclm.inference.scheduler import Scheduler

LOUD = np.full(100, 0.1, np.float32)
SILENT, NOTHING = np.zeros(100, np.float32), np.zeros(0, np.float32)


@pytest.fixture
def lm(make_model, make_codec):
    codec = make_codec(codebook_size=7)
    return SpeechGenerator(make_model(codec=codec), codec, "tiny")


def test_requests_arrive_at_the_rate_at_other_intervals_and_at_the_same_times_again():
    found = arrivals(10, 200)
    assert found == arrivals(10, 200) and 1800 < len(found) < 2200 and max(found) < 200
    gaps = np.diff(found)
    assert abs(gaps.std() / gaps.mean() - 1) < 0.1  # as those of a Poisson process are
    assert len(arrivals(0.01, 0.5)) == 1


def test_a_chunk_is_late_once_the_sound_before_it_was_played(lm):
    listener = Listener(0.5, Scheduler(lm).submit(duration_s=0.1))
    for now, chunk in (1.0, NOTHING), (2.0, SILENT), (2.5, NOTHING), (2.9, LOUD), (3.9, LOUD), (5.5, LOUD), (6.4, LOUD):
        listener.hear(now, chunk, 100)  # a second each
    assert (listener.first, listener.audible, listener.num_samples) == (2.0, 2.9, 500)
    assert listener.underruns == 1 and listener.playback.plays_until == 7.5


def test_a_player_begins_once_it_has_a_little_sound():
    playback = Playback()
    heard = [playback.hear(now, 0.05) for now in (1.0, 1.5, 2.0)]  # 0.15 s have come, and are played until 2.15
    assert not any(heard) and playback.plays_until == pytest.approx(2.15)
    assert not playback.hear(2.14, 0.05) and playback.hear(2.21, 0.05)


def test_what_listeners_heard_is_summed_up(lm):
    ticket, rate = Scheduler(lm).submit(duration_s=0.1), lm.codec.sample_rate
    heard = [
        Listener(1.0, ticket, 4 * rate, first=1.1, audible=1.2, underruns=2, end=3.0),
        Listener(2.0, ticket, 2 * rate, first=2.3, audible=2.6, end=4.0),
        Listener(3.0, ticket, 0),
    ]
    load = summary("tiny", rate, 6.0, 2, heard, 5.0)
    assert (load.requests, load.rejects, load.unfinished, load.underruns, load.interrupted) == (5, 2, 1, 2, 1)
    assert load.first_ms == pytest.approx(200) and load.audible_ms == pytest.approx(400)
    assert load.audible_p95_ms == pytest.approx(600)
    assert load.real_time == pytest.approx(1.5) and load.total_real_time == pytest.approx(6 / 5)


def test_every_request_of_a_run_is_drawn_refused_or_open(lm, monkeypatch):
    taken = []
    real = Scheduler.submit
    monkeypatch.setattr(Scheduler, "submit", lambda *args: taken.append(args) or real(*args))
    voice = lm.prefix((LOUD.repeat(20), lm.codec.sample_rate))
    few = run_load(lm, voice, LoadConfig(seconds=0.5, speech_s=0.1, rows=2, waiting=0), 200.0)
    assert few.requests == len(arrivals(200.0, 0.5)) == len(taken) and few.rejects > 0
    assert few.first_ms < NEVER and few.requests > few.rejects + few.unfinished


@pytest.mark.slow
def test_the_command_measures_the_embedded_model_under_load(capsys, tmp_path):
    files = tmp_path / "load.json", tmp_path / "load.md"
    command(
        model=("default",), load=True, load_rates=(1.0, 4.0), load_seconds=2.0, load_speech=0.5, load_rows=4, threads=1,
        json_file=files[0], markdown_file=files[1],
    )  # fmt: skip
    printed, values = capsys.readouterr().out, json.loads(files[0].read_text())
    assert [load["rate"] for load in values["loads"]] == [1, 4] and all(load["requests"] for load in values["loads"])
    assert "requests/s" in printed and "Poisson" in printed and "| model | requests/s |" in files[1].read_text()


@pytest.mark.parametrize(
    "told, arguments",
    [
        ("--load needs --model", dict(load=True)),
        ("--load needs --model", dict(load=True, model=("default",), shape=("S",))),
        ("--load-rates", dict(load=True, model=("default",), load_rates=(0.0,))),
        ("--load-seconds", dict(load=True, model=("default",), load_seconds=0.0)),
        ("--load-rows", dict(load=True, model=("default",), load_rows=0)),
    ],
)
def test_a_load_that_cannot_be_measured_is_refused_in_one_line(told, arguments):
    with pytest.raises(ValueError, match=told):
        command(**arguments)
