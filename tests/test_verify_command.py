"""`codeclm verify`: a table, a file of JSON, the exit status and the verdict."""

import json
from dataclasses import replace

import pytest
import torch

from codeclm.inference.loading import save_model
from codeclm.inference.verify.checks import CHECKS, DTYPES, verify
from codeclm.inference.verify.options import TinyModel, tiny_models
from codeclm.inference.verify.report import verdict
from codeclm.train.cli import main

from .breakages import break_arrange, leak_frame

TINY = tiny_models()


@pytest.fixture
def folder(make_model, make_codec, tmp_path):
    codec = make_codec()
    save_model(make_model((0, 1, 1), codec=codec, dtype=torch.float32), codec, tmp_path / "model")
    return tmp_path / "model"


def test_the_command_prints_a_table_and_writes_json(folder, tmp_path, capsys):
    main(["verify", str(folder), "--json", str(tmp_path / "out.json")])
    lines = capsys.readouterr().out.splitlines()
    assert "3 codebooks of 8 codes; its files are what was written (checksums.json)" in lines[0]
    assert lines[-1] == "all 11 checks passed"
    for check in CHECKS:
        (line,) = [line for line in lines if line.startswith(f"{check.name} ")]
        assert line.endswith("  ok") and check.claim in line
    assert all(len(line) <= 100 for line in lines[1:])
    (stored,) = json.loads((tmp_path / "out.json").read_text()).values()
    assert len(stored) == 2 * len(CHECKS) + 1
    assert all(row["difference"] <= row["bound"] for row in stored)


def test_the_command_ends_with_status_1_and_the_names_of_what_failed(folder, monkeypatch, capsys, tmp_path):
    break_arrange(leak_frame)(monkeypatch)
    monkeypatch.setattr("codeclm.inference.verify.options.tiny_models", lambda: TINY[-1:])
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(folder), "--every-option", "--json", str(tmp_path / "out.json")])
    assert stopped.value.code == 1
    out = capsys.readouterr().out
    last = out.splitlines()[-1]
    assert last.startswith("FAILED: ") and "on 2 of 2 models: causality, distribution" in last
    assert "the current frame leaks into its own prediction" in out and "see first: causality" in out
    assert len(json.loads((tmp_path / "out.json").read_text())) == 2


def test_the_verdict_counts_checks_and_models():
    results = verify(TinyModel("a", TINY[0].config).make(), names=["loss", "padding"], dtypes=DTYPES[:1])
    broken = [replace(result, outcome="failed") if result.check == "loss" else result for result in results]
    assert verdict({"a": results}) == "all 2 checks passed"
    assert verdict({"a": results, "b": results}) == "all 2 checks passed on 2 models"
    assert verdict({"a": broken}) == "FAILED: 1 of 2 checks: loss"
    assert verdict({"a": results, "b": broken}) == "FAILED: 1 of 2 checks on 1 of 2 models: loss"
