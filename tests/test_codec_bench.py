"""`codec bench`: its arithmetic, its turns, its counts of operations, its table and its JSON. No time is asserted."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codeclm.data.audio_out import save_audio
from codeclm.inference import fresh_process, machine
from codeclm.inference.codec import memory as codec_memory
from codeclm.inference.codec.cli import codec_bench
from codeclm.inference.codec.flops import _cudnn_lstm_flops, count_flops
from codeclm.inference.codec.library_calls import library_calls
from codeclm.inference.codec.memory import CodecSource, stream_memory
from codeclm.inference.codec.random_codecs import TINY, load_tiny
from codeclm.inference.codec.speed import BenchConfig, BenchReport, bench, direction, in_turn, stream_of
from codeclm.inference.codec.speed_table import limits, notes, speeds, streams, table
from codeclm.model.codecs import load_codec

CONFIG = BenchConfig(duration_s=0.75, rounds=2, threads=1)


@pytest.fixture(scope="module", autouse=True)
def small_matrices() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(machine.MATRIX_SIZE, "cpu", 64)
        yield


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a second: less than is measured."""
    path = tmp_path_factory.mktemp("clip") / "clip.wav"
    save_audio(path, 0.3 * np.sin(np.arange(4_000) / 7), 8_000)
    return path


@pytest.fixture(scope="module")
def report(clip: Path, make_codec) -> BenchReport:
    return bench({"tiny": make_codec(), "mdct": load_codec("mdct"), "mulaw": load_codec("mulaw")}, clip, CONFIG)


def test_speed_share_and_limit_of_known_seconds_and_operations():
    found = direction([1.0, 4.0, 2.0], duration_s=10, flops=20_000_000_000, peak=100e9, stream=None)
    assert (found.speed, found.spread, found.gflop, found.peak_share, found.limit) == (5, 1.5, 2, 0.1, 50)
    assert direction([1.0], 10, 0, 100e9, None).limit == float("inf")
    assert in_turn(60, 120) == pytest.approx(40) and in_turn(float("inf"), 7) == pytest.approx(7)
    stream = stream_of([0.001] * 90 + [0.011] * 10, frame_s=0.01)
    assert (stream.speed, stream.median_ms, stream.p95_ms) == (pytest.approx(5), 1, pytest.approx(11))


def test_the_rows_follow_from_the_seconds_of_the_rounds(report: BenchReport):
    first, peak = report.codecs[0], report.machine.peak_gflops
    assert [row.codec for row in report.codecs] == ["tiny", "mdct", "mulaw"] and first.times_slower == 1
    assert (first.sample_rate, first.frame_rate, first.num_codebooks, first.bitrate) == (8_000, 100, 3, 900)
    for row in report.codecs:
        for part in (row.encode, row.decode):
            assert len(part.seconds) == CONFIG.rounds and min(part.seconds) > 0
            assert part.speed == pytest.approx(CONFIG.duration_s / np.median(part.seconds))
            if row.codec != "mulaw":
                assert part.limit == pytest.approx(peak / part.gflop)
                assert part.peak_share == pytest.approx(part.speed / part.limit)
        assert 1 / row.both == pytest.approx(1 / row.encode.speed + 1 / row.decode.speed)
        assert row.times_slower == pytest.approx(first.both / row.both)


def test_codecs_take_turns_on_the_same_seconds_with_the_threads_that_were_asked_for(clip, make_codec, monkeypatch):
    calls = []

    def spied(name: str, method: str):
        codec = codecs[name]
        real = getattr(codec, method)

        def call(x):
            calls.append((name, method, x.shape[-1], torch.get_num_threads()))
            return real(x)

        monkeypatch.setattr(codec, method, call)

    codecs = {"a": make_codec(), "b": make_codec(seed=1)}
    for name in codecs:
        spied(name, "encode")
        spied(name, "decode")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        bench(codecs, clip, BenchConfig(duration_s=0.75, rounds=3, threads=1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    warm_up = [("a", 6_000), ("a", 75), ("a", 61 * 80), ("b", 6_000), ("b", 75), ("b", 61 * 80)]
    turns = [("a", 6_000), ("a", 75), ("b", 6_000), ("b", 75)]
    assert [(name, length) for name, _, length, _ in calls] == warm_up + 3 * turns
    assert {threads for *_, threads in calls} == {1}


def test_a_stream_is_measured_where_one_frame_can_be_pushed(report: BenchReport, clip: Path):
    measured = {row.codec: (row.encode.stream is not None, row.decode.stream is not None) for row in report.codecs}
    assert measured == {"tiny": (True, True), "mdct": (False, True), "mulaw": (True, True)}
    encodec = load_tiny("encodec 24 kHz")  # its first call waits for more than a frame
    row = bench({"encodec": encodec}, clip, CONFIG).codecs[0]
    assert row.encode.stream is None and row.decode.stream is not None
    assert row.decode.stream.p95_ms >= row.decode.stream.median_ms > 0
    assert row.streams.startswith("encode: 2.000 s")


@pytest.mark.parametrize("name", TINY)
def test_transformers_own_calls_are_measured_beside_ours_and_give_what_the_library_gives(name: str, clip: Path):
    codec = load_tiny(name)
    calls = library_calls(codec)
    assert calls is not None and library_calls(load_codec("mulaw")) is None
    audio = torch.sin(torch.arange(50 * codec.hop_length) / 5)[None, None]
    with torch.no_grad():
        found = calls[0](audio)
        output = calls[1](found).audio_values
    codes = found.audio_codes[0] if name.startswith("encodec") else found.audio_codes
    loudness = name == "encodec 48 kHz"
    assert codes.shape[1] == codec.num_codebooks - loudness and output.shape[-1] >= 49 * codec.hop_length
    if not loudness:  # which we code in windows of our own
        assert (codes != codec.encode(audio)).float().mean() < 0.01
    row = bench({"tiny": codec}, clip, CONFIG).codecs[0]
    assert row.library is not None and row.library.times_slower == pytest.approx(row.both / row.library.both)


def test_a_gpu_is_waited_for_before_and_after_what_is_measured(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("wait"))
    assert machine.seconds(lambda: events.append("work"), torch.device("cuda")) > 0
    assert events == ["wait", "work", "wait"]


# --- operations ---


def flops(work) -> int:
    with torch.no_grad():
        return count_flops(work)[1]


def test_operations_of_known_layers_are_counted():
    T, B, D, H = 7, 2, 5, 4
    lstm = torch.nn.LSTM(D, H, num_layers=2)
    weights = sum(parameter.numel() for parameter in lstm.parameters() if parameter.ndim == 2)
    assert flops(lambda: lstm(torch.ones(T, B, D))[0]) == 2 * T * B * weights
    shapes = [parameter.shape for parameter in lstm.parameters()]
    assert _cudnn_lstm_flops((T, B, D), shapes) == 2 * T * B * weights
    assert flops(lambda: torch.nn.Conv1d(3, 6, 4)(torch.ones(1, 3, 10))) == 2 * 7 * 6 * 3 * 4
    assert flops(lambda: torch.cdist(torch.ones(1, 9, D), torch.ones(1, 64, D))) == 2 * 9 * 64 * D
    query = torch.rand(1, 2, 6, 8)
    assert flops(lambda: F.scaled_dot_product_attention(query, query, query)) == 2 * (2 * 2 * 6 * 6 * 8)


@pytest.mark.parametrize("name", ["encodec 24 kHz", "mimi", "dac"])
def test_operations_grow_with_the_audio_and_are_the_same_every_time(name: str):
    codec = load_tiny(name)
    once, again, twice = (
        flops(lambda frames=frames: codec.encode(torch.ones(1, 1, frames * codec.hop_length)))
        for frames in (400, 400, 800)
    )
    assert once == again > 0
    assert twice == pytest.approx(2 * once, rel=0.1)  # attention and windows see more than a frame


# --- what is printed and written ---


def test_the_table_has_a_row_for_each_codec_in_every_part_and_says_how(report: BenchReport):
    for part in (speeds(report), limits(report), streams(report)):
        assert [line.split()[0] for line in part[:4]] == ["codec", "tiny", "mdct", "mulaw"]
    assert speeds(report)[1].split()[1:5] == ["8000", "100", "3", "900"] and speeds(report)[1].endswith(" 1x")
    assert limits(report)[3].split()[-1] == "-"  # mu-law multiplies no matrices
    assert streams(report)[2].split()[2:5] == ["-", "-", "-"]
    assert streams(report)[4] == f"mdct: streams in blocks; {report.codecs[1].streams}"
    text = table(report)
    assert f"1 of {report.machine.cores} cores, torch {torch.__version__}" in text and "load average" in text
    assert "median of 2 rounds" in text and f"{CONFIG.duration_s:g} s of {report.clip}" in text
    assert "random" not in text and all(line in text for line in notes(report))


def test_the_report_is_valid_json_though_some_numbers_are_infinite(report: BenchReport):
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["codecs"][2]["encode"]["limit"] is None and values["codecs"][2]["both_limit"] is None
    assert values["codecs"][0]["decode"]["seconds"] == report.codecs[0].decode.seconds
    assert values["machine"]["peak_gflops"] > 0 and values["config"]["rounds"] == 2


def test_the_command_measures_named_and_random_codecs_and_their_memory(clip, make_codec, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("codeclm.inference.codec.random_codecs.published", lambda name: make_codec())
    monkeypatch.setattr(
        codec_memory,
        "stream_memory",
        lambda source, *_: codec_memory.StreamMemory(source.label, 1, 2.0, 4.0, float("nan")),
    )
    file = tmp_path / "bench.json"
    codec_bench(("mulaw",), ("mimi:8",), clip, duration=0.1, rounds=1, threads=1, hours=0.01, json_file=file)
    printed = capsys.readouterr().out
    assert "mulaw " in printed and "mimi:8 (random) " in printed and "(random): the published shape" in printed
    values = json.loads(file.read_text())
    assert [row["codec"] for row in values["codecs"]] == ["mulaw", "mimi:8 (random)"] and values["notes"]
    assert [row["peak_mb"] for row in values["memory"]] == [4, 4] and values["memory"][0]["added_mb"] is None
    assert printed.splitlines()[-3].split() == ["mimi:8", "(random)", "1", "2", "4", "-"]


def test_memory_is_that_of_a_fresh_process_while_minutes_stream_through_it(clip: Path):
    found = stream_memory(CodecSource("mulaw"), clip, 0.03, threads=1)
    assert (found.codec, found.minutes) == ("mulaw", 2)
    if np.isnan(found.added_mb):
        pytest.skip("this system does not tell a process's highest memory")
    assert found.peak_mb >= found.loaded_mb + found.added_mb - 1 and found.added_mb > 1  # a minute is 2 MB
    assert found.loaded_mb > 50  # torch is there


# --- what cannot be done ---


@pytest.mark.parametrize(
    "message, arguments",
    [
        ("--duration is 0; it must be 0.1 to 600 s", dict(duration=0.0)),
        ("--duration is nan; it must be 0.1", dict(duration=float("nan"))),
        ("--duration is inf; it must be", dict(duration=float("inf"))),
        ("rounds is 0; it must be at least 1", dict(rounds=0)),
        ("threads is 0; it must be 1 to", dict(threads=0)),
        ("threads is 100000; it must be 1 to", dict(threads=100_000)),
        ("--hours is -1; it must be at least 0", dict(hours=-1)),
        ("nowhere.wav: no such file", dict(audio=Path("nowhere.wav"))),
        ("--random 'opus' is unknown; choose from encodec, mimi, dac", dict(random=("opus",))),
        ("encodec: num_codebooks must be 1..32, not 33", dict(random=("encodec:33",))),
        ("codec 'opus' is unknown", dict(codec=("opus",))),
        ("a codec is missing", dict(codec=())),
        ("device 'tpu' is unknown; choose one of cpu, cuda", dict(device="tpu")),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(message: str, arguments: dict):
    with pytest.raises(ValueError, match=message) as caught:
        codec_bench(**(dict(codec=("mulaw",)) | arguments))
    assert len(str(caught.value).splitlines()) == 1


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no CUDA GPU"):
        BenchConfig(device="cuda")


def test_what_goes_wrong_in_the_other_process_is_told_here(clip: Path, monkeypatch):
    with pytest.raises(ValueError, match="hours is 0; it must be more than 0"):
        stream_memory(CodecSource("mulaw"), clip, 0)
    with pytest.raises(ValueError, match="codec 'opus' is unknown"):
        stream_memory(CodecSource("opus"), clip, 1)
    monkeypatch.setattr(fresh_process, "_call", isinstance)  # ends at once and says nothing
    with pytest.raises(ChildProcessError, match="mulaw, 1 h: its process ended early") as caught:
        stream_memory(CodecSource("mulaw"), clip, 1)
    assert len(str(caught.value).splitlines()) == 1
