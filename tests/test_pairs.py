"""evaluate/suite.py: pairs of recordings scored by the one likelihood, kept item by item, and compared."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import codeclm
from codeclm.data.audio import load_audio
from codeclm.data.audio_out import save_audio
from codeclm.data.grids import StoreGrids
from codeclm.inference.config import EvaluateConfig, PairsConfig
from codeclm.inference.evaluate.items import Item, Nats, read_items
from codeclm.inference.evaluate.margins import accuracy, margins
from codeclm.inference.evaluate.pair_clips import window_of
from codeclm.inference.evaluate.pair_comparison import compare
from codeclm.inference.evaluate.score import frame_nll, score_store, stretches_of
from codeclm.inference.evaluate.suite import evaluate_pairs
from codeclm.inference.evaluate.suites import SUITES
from codeclm.inference.loading import save_model

RATE = 8000
PROMPT = Path(__file__).parent.parent / "model/pretrained/prompt.flac"
COMMAND = Path(sys.executable).parent / "codeclm"


@pytest.fixture(scope="module")
def lm(tmp_path_factory, make_model, make_codec) -> codeclm.SpeechGenerator:
    folder, codec = tmp_path_factory.mktemp("lm") / "model", make_codec()
    save_model(make_model((0, 0, 0), codec=codec), codec, folder)
    return codeclm.load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    """12 pairs of a human voice whose second halves differ, in two tasks; one says where, one leaves it to be found."""
    folder, voice = tmp_path_factory.mktemp("suite"), load_audio(PROMPT, RATE)
    pieces = [voice[start : start + RATE // 4] for start in range(0, len(voice) - RATE // 4, RATE // 8)]
    lines = []
    for number in range(12):
        first, good, bad = (pieces[(number * step + step) % len(pieces)] for step in (1, 3, 5))
        for side, second in (("better", good), ("worse", bad)):
            save_audio(folder / f"{number}_{side}.wav", np.concatenate([first, second]), RATE)
        values = {"better": f"{number}_better.wav", "worse": f"{number}_worse.wav", "task": "ab"[number % 2]}
        lines.append(values | ({"span": [RATE // 4, RATE // 2]} if number % 2 else {}))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "pairs.jsonl"


def run(lm, suite, out=None, pairs=PairsConfig(window_s=0.1), config=EvaluateConfig(bootstrap_samples=50)):
    return evaluate_pairs(lm, suite, out, None, pairs, config, progress=False)


@pytest.mark.parametrize("context", [0, 8])
def test_the_nats_of_frames_add_up_to_those_of_an_evaluation(context, make_model, make_codec, make_store, tmp_path):
    codec = make_codec()
    model, rng = make_model((0, 1, 1), codec=codec), np.random.default_rng(0)
    store = make_store(tmp_path, [rng.integers(0, 8, (length, 3)) for length in (5, 30, 12)], codec)
    config = EvaluateConfig(frames_per_batch=33, context_frames=context)
    scores, grids = score_store(model, store, config, progress=False), StoreGrids(store)
    for i in range(3):
        parts = frame_nll(model, store, stretches_of(model, grids, [i], config), config)
        nll = np.concatenate(parts, axis=1)
        assert nll.shape == (3, store.num_frames[i])
        np.testing.assert_allclose(nll.sum(axis=1), scores.nll[i], rtol=0, atol=1e-9)


@torch.no_grad()
def test_the_scores_of_a_pair_are_those_of_a_few_lines_of_torch(lm, suite, tmp_path):
    run(lm, suite, tmp_path)
    item = next(item for item in read_items(tmp_path) if item.name == "2")  # with a span
    for side, name in enumerate(("better", "worse")):
        audio = load_audio(suite.parent / f"1_{name}.wav", RATE)
        codes = lm.codec.encode(torch.from_numpy(audio)[None, None])  # [1, K, T], 100 frames a second
        nll = lm.model(codes).nll[0]
        start, stop = RATE // 4 // 80, RATE // 4 // 80 + 10
        assert item.window == [start, stop]
        np.testing.assert_allclose(item.model.whole[side], nll.sum(-1), rtol=1e-4)
        np.testing.assert_allclose(item.model.local[side], nll[:, start:stop].sum(-1), rtol=1e-4)
        np.testing.assert_allclose(item.model.alone[side], lm.model(codes[..., start:stop]).nll[0].sum(-1), rtol=1e-4)


def test_where_no_span_is_given_the_local_score_begins_where_the_recordings_part(lm, suite, tmp_path):
    run(lm, suite, tmp_path)
    windows = {item.name: item.window for item in read_items(tmp_path)}
    assert {tuple(window) for window in windows.values()} == {(25, 35)}  # 100 frames a second


def test_a_difference_outside_the_window_is_not_in_the_local_score(lm, suite, tmp_path):
    wide = run(lm, suite, tmp_path / "wide", PairsConfig(window_s=0))  # the span
    narrow = run(lm, suite, tmp_path / "narrow", PairsConfig(window_s=0.01))
    assert wide.accuracy["a"]["model"]["sum"] == narrow.accuracy["a"]["model"]["sum"]
    whole, one = read_items(tmp_path / "wide"), read_items(tmp_path / "narrow")
    for item, other in zip(whole, one, strict=True):
        assert (item.window, other.window) == ([25, 50], [25, 26])
        # both recordings begin alike but for frames whose encoder hears the difference, so most of the margin is local
        assert abs(margins(item, "model")["sum"] - margins(item, "model")["local"]) < 0.2 * np.sum(item.model.whole[0])
        assert np.all(np.array(other.model.local) <= np.array(item.model.local))


@pytest.mark.parametrize(
    "start_s, window_s, expected",
    [(1.0, 0.5, (25, 38)), (0.99, 0.5, (24, 38)), (1.0, 0.0, (25, 50)), (1.9, 9, (47, 50))],
)
def test_a_window_covers_the_frames_its_seconds_touch(start_s, window_s, expected):
    assert window_of((start_s, 2.0), window_s, 25.0, 50) == expected


def test_ties_count_half_and_the_interval_holds_the_accuracy():
    found = accuracy(np.array([1.0, -2.0, 0.0, 3.0]))
    assert (found.value, found.num_pairs, found.num_ties) == (0.625, 4, 1)
    assert found.interval[0] <= 0.625 <= found.interval[1]
    assert accuracy(np.ones(9)).interval == (1.0, 1.0)


def test_scores_differ_as_their_names_say():
    nats = Nats([[1.0, 5.0], [2.0, 7.0]], [[0.5, 1.0], [1.0, 1.0]], [[0.25, 1.0], [1.0, 3.0]])
    item = Item("n", "t", ["", ""], [1.0, 3.0], [0, 5], [0.5, 2.0], nats, None)
    assert margins(item, "model") == pytest.approx(
        {"sum": 3.0, "per s": -3.0, "coarse": 1.0, "fine": 2.0, "local": 0.5, "local coarse": 0.5, "norm.": -2.25,
         "norm. coarse": -0.25}
    )  # fmt: skip
    assert margins(item, "level") == {"sum": 1.5} and margins(item, "bigram") == {}


BROKEN = {
    "no file": ({"worse": "gone.wav"}, "gone.wav: no such file"),
    "empty span": ({"span": [900, 900]}, "its span 900..900 is empty"),
    "span outside": ({"span": [900, 99_999]}, "its span 900..99999 is outside"),
    "other rate": ({"worse": "fast.wav", "span": [0, 900]}, "its recordings have 8000 and 16000 Hz"),
    "silent": ({"better": "silent.wav"}, "silent.wav: silent"),
}


def test_broken_pairs_are_named_skipped_and_counted(lm, suite, tmp_path, caplog):
    shutil.copytree(suite.parent, tmp_path / "suite")
    save_audio(tmp_path / "suite/fast.wav", load_audio(suite.parent / "0_better.wav", 16_000), 16_000)
    save_audio(tmp_path / "suite/silent.wav", np.zeros(RATE), RATE)
    line = {"better": "0_better.wav", "worse": "0_worse.wav"}
    others = {"resampled": {"worse": "fast.wav"}}
    lines = [line | values | {"name": name} for name, (values, _) in BROKEN.items()]
    lines += [line | values | {"name": name} for name, values in others.items()]
    with (tmp_path / "suite/pairs.jsonl").open("a") as file:
        file.writelines(json.dumps(each) + "\n" for each in lines)
    with caplog.at_level("INFO", "codeclm"):
        report = run(lm, tmp_path / "suite/pairs.jsonl", tmp_path / "out")
    assert report.skipped.keys() == BROKEN.keys()
    for name, (_, words) in BROKEN.items():
        assert words in report.skipped[name] and f"skipped {name}: " in caplog.text
    assert "5 pairs could not be used and were skipped (first: no file:" in str(report)
    assert "1 of 26 recordings were resampled to 8000 Hz" in caplog.text
    assert len(read_items(tmp_path / "out")) == 13
    again = run(lm, tmp_path / "suite/pairs.jsonl", tmp_path / "out")
    assert again.to_dict() == report.to_dict()


def test_a_suite_of_broken_pairs_is_one_line(lm, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"better": "a.wav", "worse": "b.wav"}\n')
    with pytest.raises(ValueError, match="none of 1 pairs can be used \\(first: 1: .*a.wav: no such file\\)"):
        run(lm, tmp_path / "pairs.jsonl")


def test_a_folder_with_results_of_other_settings_is_refused(lm, suite, tmp_path):
    run(lm, suite, tmp_path)
    with pytest.raises(ValueError, match="a run with another window \\(0.1 s, not 0.2 s\\); choose another --out"):
        run(lm, suite, tmp_path, PairsConfig(window_s=0.2))


def test_what_was_cut_off_or_made_from_another_recording_is_scored_again(lm, suite, tmp_path):
    shutil.copytree(suite.parent, tmp_path / "suite")
    first = run(lm, tmp_path / "suite/pairs.jsonl", tmp_path / "out")
    items = read_items(tmp_path / "out")
    content = (tmp_path / "out/items.jsonl").read_bytes()
    (tmp_path / "out/items.jsonl").write_bytes(content[:-40])  # as a kill in the middle of a line leaves it
    again = run(lm, tmp_path / "suite/pairs.jsonl", tmp_path / "out")
    assert again.to_dict() == first.to_dict()
    assert {item.name: item for item in read_items(tmp_path / "out")} == {item.name: item for item in items}
    shutil.copy(tmp_path / "suite/1_better.wav", tmp_path / "suite/0_better.wav")
    changed = run(lm, tmp_path / "suite/pairs.jsonl", tmp_path / "out")
    assert changed.settings["data_hash"] != first.settings["data_hash"]
    now = {item.name: item for item in read_items(tmp_path / "out")}
    assert now["1"].model.whole[0] != items[0].model.whole[0]


def test_a_run_against_itself_and_another_model_is_matched_item_by_item(lm, suite, make_model, tmp_path):
    other = make_model((0, 0, 0), codec=lm.codec, seed=1)
    save_model(other, lm.codec, tmp_path / "other")
    run(lm, suite, tmp_path / "a")
    against = PairsConfig(window_s=0.1, against=str(tmp_path / "a"))
    report = run(codeclm.load(str(tmp_path / "other")), suite, tmp_path / "b", against)
    here, there = read_items(tmp_path / "b"), read_items(tmp_path / "a")
    assert report.comparison is not None and report.comparison.num_matched == 12
    found = report.comparison.differences["a"]["norm."]
    mine, theirs = (np.array([margins(item, "model")["norm."] for item in items]) for items in (here, there))
    asked = np.array([item.task == "a" for item in here])
    assert (found.here, found.there) == (np.mean(mine[asked] > 0), np.mean(theirs[asked] > 0))
    assert found.interval[0] <= found.here - found.there <= found.interval[1]
    change = report.comparison.changed_most[0]
    assert abs(change.here - change.there) == pytest.approx(np.abs(mine - theirs).max())
    assert "12 of 12 pairs are the same" in str(report)
    same = compare(here, here, "itself")
    assert all(each.interval == (0.0, 0.0) for scores in same.differences.values() for each in scores.values())
    moved = [replace(item, sha256=["0", "1"]) for item in there]
    with pytest.raises(ValueError, match="has none of these 12 pairs"):
        compare(here, moved, "moved")


def test_the_verb_writes_what_it_prints(lm, suite, tmp_path, capsys):
    from codeclm.train.cli import main

    flags = ["--window-s", "0.1", "--bootstrap-samples", "50", "--out", str(tmp_path / "out")]
    main(["evaluate", str(suite), "--model", lm.name, *flags, "--json", str(tmp_path / "report.json")])
    stored, printed = json.loads((tmp_path / "report.json").read_text()), capsys.readouterr().out
    assert stored["accuracy"].keys() == {"a", "b"}
    value = stored["accuracy"]["a"]["model"]["local"]["value"]
    assert value == run(lm, suite).accuracy["a"]["model"]["local"].value and f"{100 * value:.1f} (" in printed


def test_every_suite_is_named_in_the_help_of_its_option():
    from codeclm.inference import config

    source = Path(config.__file__).read_text()
    assert all(name in source.split("suite: str")[1].splitlines()[0] for name in SUITES)


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_a_thousand_pairs_goes_on_to_the_same_results(lm, suite, tmp_path):
    lines = [json.loads(line) for line in suite.read_text().splitlines()]
    many = [line | {"name": f"{turn}/{number}"} for turn in range(84) for number, line in enumerate(lines)][:1000]
    path = suite.parent / "many.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in many))
    flags = ["--window-s", "0.1", "--bootstrap-samples", "50", "--threads", "1"]
    command = [COMMAND, "evaluate", path, "--model", lm.name, *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def tables(out: Path) -> list[str]:
        done = subprocess.run([*command, "--out", out], env=environment, capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if line.startswith(("a ", "b ", " ", "checkpoint"))]

    process = subprocess.Popen(
        [*command, "--out", tmp_path / "killed"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    items = tmp_path / "killed/items.jsonl"
    while not items.exists() or items.read_bytes().count(b"\n") < 100:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    scored = items.read_bytes().count(b"\n")
    assert 100 <= scored < 1000
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole")
    assert sorted(items.read_text().splitlines()) == sorted((tmp_path / "whole/items.jsonl").read_text().splitlines())
    assert len(read_items(tmp_path / "killed")) == 1000
