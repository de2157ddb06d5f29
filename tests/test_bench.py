"""`codeclm bench`: its counts and costs, which repeat exactly, and its table and JSON. No time is asserted."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from codeclm.inference import machine
from codeclm.inference.bench import bench as module
from codeclm.inference.bench.bench import BenchConfig, bench
from codeclm.inference.bench.cli import bench as command
from codeclm.inference.bench.counts import count
from codeclm.inference.bench.engines import FRAME_STEP, LINEARS, WALK, Linears, Ours, make_engine
from codeclm.inference.bench.first_sound import listen
from codeclm.inference.bench.launches import count_launches
from codeclm.inference.bench.limits import Rates, frame_cost, limit_s
from codeclm.inference.bench.memory import peak_mb
from codeclm.inference.bench.minimal import TOP_K, HandWrittenLoop, Positions, Transformer, draw_code
from codeclm.inference.bench.peers import PEERS, missing_peers
from codeclm.inference.bench.stopwatch import Stopwatch
from codeclm.inference.bench.subjects import Subject
from codeclm.inference.bench.table import markdown, table
from codeclm.inference.config import SamplingConfig
from codeclm.inference.engine import generate
from codeclm.inference.frame_step import is_supported
from codeclm.inference.grid import Request
from codeclm.model import SpeechLM, SpeechLMConfig
from codeclm.model.presets import SHAPE_S

from .options import OPTIONS

TINY = Subject("tiny", True)
MOST_OPERATIONS = 620  # of a frame of shape S


@pytest.fixture(scope="module", autouse=True)
def small_matrices():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(machine.MATRIX_SIZE, "cpu", 64)
        yield


class Scripted:
    """An engine that does the same few things in each frame."""

    name = "scripted"

    def __init__(self, frame: Callable[[], object]):
        self.frame = frame

    def run(self, num_frames: int, mark: Callable[[], None]) -> None:
        for _ in range(num_frames):
            self.frame()
            mark()


# --- counts ---


@pytest.mark.parametrize(
    "frame, counted",
    [
        (lambda: torch.ones(2, 3) @ torch.ones(3, 4), (3, 1, 0)),
        (lambda: torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3)), (3, 1, 0)),
        (lambda: torch.ones(3).sum().item(), (3, 0, 1)),
        (lambda: bool(torch.ones(1) > 0), (3, 0, 1)),
        (lambda: torch.ones(3)[torch.zeros(3, dtype=torch.bool)], (3, 0, 1)),
        (lambda: torch.ones(3)[torch.zeros(3, dtype=torch.long)], (3, 0, 0)),
        (lambda: torch.ones(3).nonzero(), (2, 0, 1)),
    ],
)
def test_operations_products_and_waits_of_known_frames_are_counted(frame, counted):
    found = count(Scripted(frame))
    assert (found.operations, found.products, found.syncs) == counted
    assert len(found.calls) == counted[1]


def test_flops_and_bytes_of_known_products():
    def frame():
        x, out = torch.ones(2, 3), torch.zeros(2, 5)
        torch.mm(x, torch.ones(3, 5), out=out)
        out.addmm_(x, torch.ones(3, 5))
        torch.nn.functional.linear(x, torch.ones(5, 3), torch.ones(5))

    calls = count(Scripted(frame)).calls
    assert [call.flops() for call in calls] == 3 * [2 * 2 * 3 * 5]
    assert [call.weight_bytes() for call in calls] == 3 * [4 * 3 * 5]


def narrow() -> SpeechLM:
    """Shape S with as many layers, codebooks and codes, in widths that take no time."""
    backbone, depth = (replace(part, dim=32, num_heads=4, num_kv_heads=4, ff_dim=32) for part in SHAPE_S)
    return SpeechLM(SpeechLMConfig(8, 1024, backbone, depth)).eval()


@pytest.mark.parametrize("batch", [1, 8])
def test_a_frame_as_deep_as_shape_s_costs_at_most_620_operations_and_never_makes_the_host_wait(batch):
    prompt = torch.zeros(batch, 8, 3, dtype=torch.long)
    found = count(Ours(narrow(), prompt, FRAME_STEP))
    assert found.operations <= MOST_OPERATIONS and found.syncs == 0
    layer = 4 if batch == 1 else 5  # gate and up are two products, if there are several rows
    assert found.products == 8 * layer + 7 * (4 * layer + 1) + 2  # heads of both parts, and the projection


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 8])
def test_a_frame_of_shape_s_costs_at_most_620_operations_and_never_makes_the_host_wait(batch):
    found = count(make_engine(FRAME_STEP, Subject("S", True), batch, 3, "cpu"))
    assert found.operations <= MOST_OPERATIONS and found.syncs == 0


# --- the loop written by hand ---


def test_the_hand_written_loop_makes_the_products_of_our_frame_and_draws_codes():
    model, prompt = narrow(), torch.zeros(1, 8, 3, dtype=torch.long)
    loop = HandWrittenLoop(model.config, prompt)
    found, ours = count(loop), count(Ours(model, prompt, FRAME_STEP))
    assert found.products == ours.products == 153 and found.syncs == 0
    assert sum(call.flops() for call in found.calls) <= sum(call.flops() for call in ours.calls)  # no EOS
    assert found.operations <= 1.1 * MOST_OPERATIONS


@pytest.mark.parametrize("name", ["tiny", "base"])  # each head its own keys; several share one
def test_positions_at_once_are_those_one_by_one_in_the_hand_written_loop(name):
    config, batch, length = replace(Subject(name, True).config.backbone, num_layers=2, ff_dim=64), 2, 5
    part, like = Transformer(config, torch.empty(0)), torch.empty(0)
    x = torch.randn(batch, length, config.dim, generator=torch.Generator().manual_seed(0))
    part.reserve(batch, length)
    many, one = (Positions(config, batch, count_at_once, like) for count_at_once in (length, 1))
    many.x.copy_(x.flatten(0, 1))
    together = part(many, 0).view(x.shape)
    for position in range(length):
        one.x.copy_(x[:, position])
        torch.testing.assert_close(part(one, position), together[:, position], rtol=0, atol=1e-4)


@pytest.mark.parametrize("conditioning", ["add", "prefix"])
def test_the_hand_written_loop_draws_other_codes_in_every_frame_and_row(conditioning):
    config = Subject("tiny", True).config
    config.depth = replace(config.depth, conditioning=conditioning)
    codes = HandWrittenLoop(config, torch.zeros(2, 8, 1, dtype=torch.long)).run(4, lambda: None)
    assert codes.shape == (2, 8, 4) and codes.min() >= 0 and codes.max() < config.codebook_size
    assert len(codes.transpose(1, 2).flatten(0, 1).unique(dim=0)) == 8


def test_the_hand_written_loop_draws_as_often_as_the_likeliest_are_likely():
    torch.manual_seed(0)
    logits = 0.8 * torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(20_000, 1)
    drawn = draw_code(logits, -torch.empty(20_000, 2).exponential_().log())
    assert SamplingConfig().top_k == TOP_K
    torch.testing.assert_close(drawn.bincount(minlength=3) / 20_000, torch.tensor([0.625, 0.375, 0]), rtol=0, atol=0.02)


# --- costs ---

SUPPORTED = {name: OPTIONS[name] for name in ("default", "prefix", "wide", "shared", "first", "csm", "text seen")}
SUPPORTED |= {
    name: OPTIONS[name] for name in ("delay", "parallel", "text", "text given", "text tied", "zeros", "never")
}


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_cost_of_a_frame_is_that_of_a_run_that_is_counted(name, make_model):
    model = make_model(dtype=torch.float32, **OPTIONS[name])
    assert is_supported(model)
    batch = 3
    prompt = torch.zeros(batch, model.num_codebooks, 4, dtype=torch.long)
    draws_text = model.predicts_text
    engine = Ours(model, prompt, FRAME_STEP)
    if draws_text:  # as a model with aligned text draws it
        engine = Scripted(lambda: None)
        engine.run = lambda n, mark: [mark() for _ in generate(model, Request(n, prompt, draw_text=True), range(3))]
    calls = count(engine).calls
    cost = frame_cost(model.config, batch, 0)
    assert cost.flops == sum(call.flops() for call in calls)
    assert 4 * cost.weights == sum(call.weight_bytes() for call in calls)
    assert cost.distinct_depth_weights <= cost.depth_weights


def test_what_is_looked_back_on_is_read_for_each_row_and_multiplied():
    config = Subject("base", True).config  # 32 query heads share 8 key heads
    none, some = frame_cost(config, 2, 0), frame_cost(config, 2, 10)
    assert some.cached_values - none.cached_values == 2 * 10 * 2 * 16 * 8 * 64
    assert some.flops - none.flops == 2 * 10 * 16 * 4 * 32 * 64
    assert frame_cost(config, 1, 0).weights == none.weights and 2 * frame_cost(config, 1, 0).flops == none.flops


def test_the_limit_is_the_longer_of_reading_and_multiplying():
    cost = frame_cost(TINY.config, 1, 0)
    reading = 4 * cost.backbone_weights / 1e9 + 4 * cost.depth_weights / 2e9
    assert limit_s(cost, Rates(1e15, 1e9, 2e9)) == pytest.approx(reading)
    assert limit_s(cost, Rates(1e6, 1e9, 2e9)) == pytest.approx(cost.flops / 1e6)


def test_the_floor_makes_the_same_products_again():
    model = TINY.load("cpu")
    counted = count(Ours(model, TINY.prompt(1, 3, "cpu"), FRAME_STEP))
    again = count(Linears(counted.calls))
    assert again.products == again.operations == counted.products
    shapes = [[[tuple(x.shape) for x in call.factors()] for call in calls] for calls in (counted.calls, again.calls)]
    assert shapes[0] == shapes[1]
    weights = [[call.factors()[1].data_ptr() for call in calls] for calls in (counted.calls, again.calls)]
    assert weights[0] == weights[1]


# --- with a codec ---


def test_a_sound_is_heard_when_a_sample_is_above_minus_50_dbfs():
    empty, silence, faint, loud = np.zeros(0), np.zeros(4), np.full(4, 0.003), np.full(4, -0.004)
    assert listen([]) == listen([empty]) == (float("inf"), float("inf"))
    first, heard = listen([empty, silence, faint])
    assert 0 < first < heard == float("inf")
    first, heard = listen([silence, loud, faint])
    assert 0 < first < heard
    first, heard = listen([loud])
    assert first == heard


# --- the report ---


@pytest.mark.slow
def test_the_command_measures_shapes_checkpoints_peers_memory_and_sound(capsys, tmp_path):
    files = tmp_path / "bench.json", tmp_path / "bench.md"
    command(
        ("tiny",), ("default",), (2,), frames=5, rounds=2, peers=True, with_codec=True, threads=1,
        json_file=files[0], markdown_file=files[1],
    )  # fmt: skip
    printed = capsys.readouterr().out
    values = json.loads(files[0].read_text())
    shape, checkpoint = values["trials"]
    for trial in (shape, checkpoint):
        speeds = {speed["engine"]: speed for speed in trial["engines"]}
        assert list(speeds) == [FRAME_STEP, WALK, *(name for name in PEERS if name not in missing_peers()), LINEARS]
        assert speeds[LINEARS]["times_floor"] == speeds[FRAME_STEP]["times_slower"] == 1
        assert all(speed["median_ms"] > 0 and speed["p95_ms"] >= speed["median_ms"] for speed in speeds.values())
        assert all((speed["limit_share"] is None) == (name in PEERS) for name, speed in speeds.items())
        # the weights alone are that large
        assert all((speed["peak_mb"] or 1e6) > 4 * trial["parameters"] / 1e6 / 2 for speed in speeds.values())
    assert shape["engines"][0]["real_time"] is None and checkpoint["engines"][0]["real_time"] > 0
    (heard,) = values["heard"]
    assert heard["model"] == "default" and heard["audible_ms"] >= heard["first_ms"] > 0 and heard["real_time"] > 0
    assert "shape tiny (random weights), 11.2 M parameters" in printed and "model default" in printed
    assert files[1].read_text().count("| transformers CSM | 2 |") == 2


@pytest.fixture(scope="module")
def report():
    return bench([TINY], BenchConfig(batch=(1, 2), prompt_frames=2, frames=3, rounds=2, memory=False))


def test_engines_take_turns_in_every_round(monkeypatch):
    turns = []
    real = Ours.run
    monkeypatch.setattr(Ours, "run", lambda self, *rest: (turns.append(self.name), real(self, *rest))[1])
    monkeypatch.setattr(Linears, "run", lambda self, n, mark: (turns.append(self.name), [mark() for _ in range(n)])[1])
    bench([TINY], BenchConfig(batch=(1,), prompt_frames=2, frames=3, rounds=2, memory=False))
    assert turns == [FRAME_STEP, WALK, *2 * [FRAME_STEP, WALK, LINEARS]]  # counted first, in which they warm up


def test_the_rows_follow_from_the_medians(report):
    for trial in report.trials:
        step, walk, floor = trial.engines
        assert [step.engine, walk.engine, floor.engine] == [FRAME_STEP, WALK, LINEARS]
        assert step.frames_per_second == pytest.approx(1000 * trial.batch / step.median_ms)
        assert walk.times_slower == pytest.approx(walk.median_ms / step.median_ms)
        assert step.times_floor == pytest.approx(step.median_ms / floor.median_ms)
        assert step.limit_share == pytest.approx(trial.limit_ms / step.median_ms)
        assert step.operations < walk.operations and np.isnan(floor.prefill_ms)


def test_the_table_and_its_markdown_show_every_engine_and_say_how(report):
    text, page = table(report), markdown(report)
    for name in (FRAME_STEP, WALK, LINEARS):
        assert sum(line.startswith(name) and "x" in line for line in text.splitlines()) >= 2
        assert page.count(f"| {name} |") == 2
    assert "times real" not in text and " MB\n" not in text.split("batch  limit")[0]  # nothing was measured there
    assert f"torch {torch.__version__}" in text and "load average" in text and "random codes" in text
    assert json.dumps(report.to_dict(), allow_nan=False)


def test_a_package_that_is_not_installed_is_named_and_left_out(monkeypatch):
    for name in list(PEERS):
        monkeypatch.delitem(PEERS, name)
    monkeypatch.setitem(PEERS, "a loop", ("no_such_package", lambda *_: pytest.fail("it is not there")))
    assert missing_peers() == {"a loop": "no_such_package"}
    found = bench([TINY], BenchConfig((1,), 2, 3, 1, memory=False, peers=True))
    assert "a loop was left out: the package no_such_package is not installed." in table(found)


@pytest.mark.slow
def test_memory_is_that_of_a_fresh_process():
    found = peak_mb(FRAME_STEP, TINY, 1, 2, 3, "cpu")
    if np.isnan(found):
        pytest.skip("this system does not tell a process's highest memory")
    assert found > 4 * 11.2 * 0.9  # the weights


def test_a_gpu_is_timed_by_its_own_clock(monkeypatch):
    class Event:
        number = 0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            Event.number += 5
            self.at = Event.number

        def elapsed_time(self, other):
            return other.at - self.at

    events = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("wait"))
    watch = Stopwatch(torch.device("cuda"))
    watch.mark()
    watch.mark()
    assert events == ["wait"] and watch.laps() == [0.005, 0.005] and events == 2 * ["wait"]


def test_the_processors_clock_does_not_run_while_the_process_sleeps():
    watch = Stopwatch(torch.device("cpu"), "cpu")
    time.sleep(0.2)
    watch.mark()
    assert watch.laps()[0] < 0.1


def test_launches_are_those_of_a_frame_without_its_prompt(monkeypatch):
    def run(engine, num_frames):
        return 50 + 7 * num_frames

    monkeypatch.setattr("codeclm.inference.bench.launches.launches", run)
    assert count_launches(Scripted(lambda: None)) == 7
    monkeypatch.undo()
    assert count_launches(Scripted(lambda: torch.ones(2))) == 0  # the profiler runs, a CPU launches nothing


# --- what cannot be done ---


@pytest.mark.parametrize(
    "message, arguments",
    [
        ("shape 'huge' is unknown; choose from S, CSM-1B, default, tiny, small, base", dict(shape=("huge",))),
        ("--batch is 0; it must be at least 1", dict(batch=(1, 0))),
        ("--batch: a number of rows is missing", dict(batch=())),
        ("--frames is 1; it must be at least 2", dict(frames=1)),
        ("--prompt-frames is 0; it must be at least 1", dict(prompt_frames=0)),
        ("--rounds is 0; it must be at least 1", dict(rounds=0)),
        ("threads is 100000; it must be 1 to", dict(threads=100_000)),
        ("--with-codec needs --model: a shape has no codec", dict(with_codec=True)),
        ("nowhere: no such model folder", dict(model=("nowhere",))),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(message: str, arguments: dict):
    with pytest.raises((ValueError, OSError), match=message) as caught:
        command(**arguments)
    assert len(str(caught.value).splitlines()) == 1


def test_a_gpu_is_not_timed_by_the_processors_clock():
    with pytest.raises(ValueError, match="leave out --clock cpu"):
        command(device="cuda", clock="cpu")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module, "bench", lambda *_: pytest.fail("nothing is measured"))
    with pytest.raises(ValueError, match="torch sees no CUDA GPU; choose cpu"):
        command(device="cuda", json_file=tmp_path / "a.json")
