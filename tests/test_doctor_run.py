"""`codeclm doctor RUN` finds faults that were planted in runs that really ran, and accuses none of the healthy twin."""

import copy
import json
import math
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from codeclm.data.token_store import TokenStore
from codeclm.inference.doctor.checkup import checkup
from codeclm.inference.doctor.curve import Curve, examine_curve
from codeclm.inference.doctor.findings import Examination, Report
from codeclm.train.cli import main
from codeclm.train.config import BatchConfig, OptimizerConfig
from codeclm.train.loop import train
from codeclm.train.new_model import new_model
from codeclm.train.optim import make_optimizer

from .breakages import break_arrange, shift_targets
from .test_doctor import told
from .training import SHORT, SOURCE, draw

LEARNS = replace(SHORT, steps=60, evaluate_every=10, depth_fraction=1.0)


@pytest.fixture(scope="module")
def speech(make_store, codec, tmp_path_factory) -> TokenStore:
    return make_store(tmp_path_factory.mktemp("speech"), draw(SOURCE, [60, 80, 70, 90] * 20, 0), codec)


@pytest.fixture(scope="module")
def healthy(speech, codec, tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return run(speech, codec, tmp_path_factory.mktemp("healthy") / "run")


def run(store: TokenStore, codec, out: Path, config=LEARNS) -> Path:
    train(new_model(store, config), codec, store, out, config, start="random")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("waited_s", None)  # a matter of what else runs on this machine
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


def looked_at(folder: Path, store: TokenStore, codec) -> Report:
    """With its speech; what is found of the speech itself is left out."""
    report = checkup([store.folder, folder], codec, seconds=1.0)
    return Report([one for one in report.examined if one.path == folder], report.between)


def serious(report: Report) -> list[str]:
    return [f"{finding.check}: {finding.found}" for finding in report.findings if finding.severity != "note"]


def test_a_healthy_run_is_not_accused(healthy, speech, codec):
    report = looked_at(healthy, speech, codec)
    assert serious(report) == []
    facts = report.examined[0].facts
    bits = {int(shift): value for shift, value in facts["bits_by_shift"].items()}
    assert min(bits, key=bits.__getitem__) == 0 and bits[0] < 1.5 < 2 < bits[1]
    assert facts["last_step"] == 60 and list(facts["heldout_bits_per_second"]) == list(range(0, 61, 10))


def test_shifted_labels_are_found_by_the_model_they_left(speech, codec, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        break_arrange(shift_targets)(patch)
        folder = run(speech, codec, tmp_path / "run")
    found = told(looked_at(folder, speech, codec), "misaligned")
    assert len(found) == 1 and found[0].startswith("error"), found
    assert "what it predicts for a frame fits the frame 1 later" in found[0]


def test_a_learning_rate_of_0_is_named(speech, codec, tmp_path, monkeypatch):
    monkeypatch.setattr("codeclm.train.trainer.learning_rate", lambda *_: 0.0)
    folder = run(speech, codec, tmp_path / "run", replace(LEARNS, steps=30))
    found = told(looked_at(folder, speech, codec), "never moved")
    assert len(found) == 1 and found[0].startswith("error") and "the learning rate was 0" in found[0], found


def test_frozen_weights_are_told_from_a_learning_rate_of_0(speech, codec, tmp_path, monkeypatch):
    monkeypatch.setattr(  # an optimizer that holds other weights
        "codeclm.train.trainer.make_optimizer", lambda model, config: make_optimizer(copy.deepcopy(model), config)
    )
    folder = run(speech, codec, tmp_path / "run", replace(LEARNS, steps=30))
    found = told(looked_at(folder, speech, codec), "never moved")
    assert len(found) == 1 and "with a learning rate of up to 0.0089" in found[0], found


def test_a_run_that_learns_by_heart_is_overfit(make_store, codec, tmp_path):
    rng = np.random.default_rng(0)
    store = make_store(tmp_path / "store", [rng.integers(0, 4, (32, 2)) for _ in range(6)], codec)
    config = replace(LEARNS, steps=150, optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=3))
    report = looked_at(run(store, codec, tmp_path / "run", config), store, codec)
    found = told(report, "overfit")
    assert len(found) == 1 and found[0].startswith("warning held-out speech was cheapest at step"), serious(report)
    assert told(report, "diverged") == []


def test_too_high_a_learning_rate_has_diverged_or_was_unstable(speech, codec, tmp_path):
    for optimizer, check in (
        (OptimizerConfig(learning_rate=6.0, warmup_steps=40, final_share=1.0), "diverged"),
        (OptimizerConfig(learning_rate=1.0, warmup_steps=3), "unstable"),
    ):
        folder = run(speech, codec, tmp_path / check, replace(LEARNS, optimizer=optimizer))
        report = looked_at(folder, speech, codec)
        assert len(told(report, check)) == 1 and told(report, "overfit") == [], serious(report)


def test_held_out_speech_that_is_also_learned_is_found(make_store, codec, tmp_path):
    codes = draw(SOURCE, [60, 80, 70, 90] * 5, 0)
    config = replace(LEARNS, steps=2, batch=BatchConfig(frames_per_batch=128, max_frames=32, heldout_share=0.3))
    store = make_store(tmp_path / "twin", codes, codec)
    assert told(looked_at(run(store, codec, tmp_path / "healthy", config), store, codec), "leakage") == []
    names = [f"u{i}" for i in range(40)]
    store = make_store(tmp_path / "store", codes * 2, codec, names)
    found = told(looked_at(run(store, codec, tmp_path / "run", config), store, codec), "leakage")
    assert len(found) == 1 and found[0].startswith("error what is held out is also learned:")


def test_voices_that_a_fine_tune_forgot_are_named(healthy, speech, codec, tmp_path):
    folder = Path(shutil.copytree(healthy, tmp_path / "run"))
    rows = [{"name": "bundled prompt", "minutes": 0.1, "before": 1600.0, "after": 1650.0}]
    for more, expected in (([], 0), ([{"name": "others", "minutes": 1.0, "before": 1800.0, "after": 2000.0}], 1)):
        (folder / "comparison.json").write_text(json.dumps({"identity": {}, "rows": rows + more}))
        found = told(looked_at(folder, speech, codec), "forgetting")
        assert len(found) == expected and all("(others +11.1%)" in line for line in found), found


def test_weights_that_cannot_be_read_are_an_error(healthy, speech, codec, tmp_path):
    folder = Path(shutil.copytree(healthy, tmp_path / "run"))
    weights = folder / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    found = told(looked_at(folder, speech, codec), "weights")
    assert len(found) == 1 and "model.safetensors" in found[0]


# --- curves of runs that are too long for a test, and of runs that cannot be made any more ---


def written(healthy: Path, out: Path, change: Callable[[dict], dict | None], **settings) -> Examination:
    """The healthy run with other lines of metrics.jsonl, read."""
    out.mkdir()
    config = json.loads((healthy / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | settings))
    lines = [change(json.loads(line)) for line in (healthy / "metrics.jsonl").read_text().splitlines()]
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))
    seen = Examination(out, "")
    examine_curve(Curve.read(out), seen)
    return seen


def checks(seen: Examination) -> list[str]:
    return [f"{finding.severity} {finding.check}" for finding in seen.findings if finding.severity != "note"]


def test_numbers_that_are_none_are_an_error(healthy, tmp_path):
    def change(line: dict) -> dict:
        return line | ({"loss": math.nan} if "loss" in line and line["step"] >= 40 else {})

    seen = written(healthy, tmp_path / "run", change)
    assert checks(seen) == ["error not finite"] and "from step 40" in seen.findings[0].found


def test_random_weights_that_know_the_answers_are_an_error(healthy, tmp_path):
    def scaled(factor: float) -> Callable[[dict], dict]:
        return lambda line: line | ({"heldout_bits_per_second": factor * 400} if line["step"] == 0 else {})

    assert checks(written(healthy, tmp_path / "same", scaled(1.02))) == []  # 100 frames/s, 2 codebooks of 4 codes
    assert checks(written(healthy, tmp_path / "leak", scaled(0.8))) == ["error first loss"]
    assert checks(written(healthy, tmp_path / "wide", scaled(1.5))) == ["warning first loss"]
    assert checks(written(healthy, tmp_path / "tuned", scaled(0.8), start="0" * 64)) == []


def test_spikes_of_the_gradient_waiting_for_data_and_a_mute_canary_are_told(healthy, tmp_path):
    folder = Path(shutil.copytree(healthy, tmp_path / "long"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    template = next(line for line in lines if "loss" in line)
    steps = [template | {"step": step, "gradient_norm": 1 + step % 7 / 7} for step in range(1, 61)]
    looks = [line for line in lines if "loss" not in line]

    def read(steps: list[dict], out: str) -> list[str]:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps + looks))
        return checks(written(folder, tmp_path / out, lambda line: line))

    assert read(steps, "calm") == []
    spikes = [line | ({"gradient_norm": 50.0} if line["step"] in (30, 45) else {}) for line in steps]
    assert read(spikes, "spikes") == ["warning spikes"]
    steps = [line | {"codes": 200, "codes_per_second": 1000.0} for line in steps]  # a fifth of a second each
    assert read([line | {"waited_s": 0.002} for line in steps], "quick") == []
    assert read([line | {"waited_s": 0.1} for line in steps], "slow") == ["warning waiting"]
    looks = [line | {"canary_silent_share": 0.9 if line["step"] < 60 else 0.3} for line in looks]
    assert read(steps, "speaks") == []
    looks = [line | {"canary_silent_share": 0.9} for line in looks]
    assert read(steps, "mute") == ["warning canary"]


def test_a_run_that_still_learns_or_was_stopped_gets_a_note(healthy, tmp_path):
    def falling(line: dict) -> dict:
        return line | ({"heldout_bits_per_second": 400 - line["step"]} if "loss" not in line else {})

    notes = [finding.check for finding in written(healthy, tmp_path / "run", falling, steps=100).findings]
    assert notes == ["under-trained", "unfinished"]


# --- the command ---


def test_a_bundle_holds_settings_metrics_versions_and_the_report_and_no_home(healthy, tmp_path, monkeypatch, capsys):
    home = tmp_path / "home"
    folder = Path(shutil.copytree(healthy, home / "run"))
    monkeypatch.setenv("HOME", str(home))
    main(["doctor", str(folder), "--bundle", str(tmp_path / "bug.zip")])
    assert "bug.zip: settings, metrics" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "bug.zip") as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist()}
    assert set(files) == {"report.txt", "report.json", "machine.json", "config.json", "metrics.jsonl"}
    assert files["metrics.jsonl"] == (folder / "metrics.jsonl").read_text()
    assert json.loads(files["machine.json"])["packages"]["torch"] == version("torch")
    assert [name for name, text in files.items() if str(home) in text] == [] and "~/run: training run" in files[
        "report.txt"
    ]


def test_what_is_no_run_of_a_language_model_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(FileNotFoundError, match="config.json: is missing"):
        checkup([tmp_path])
    (tmp_path / "config.json").write_text('{"run": "a pattern comparison"}')
    with pytest.raises(ValueError, match="holds a pattern comparison; give a folder of codeclm train or finetune"):
        checkup([tmp_path])
