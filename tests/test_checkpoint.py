"""Checkpoints are whole or absent, and an optimizer goes on from one as if it had never stopped."""

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from codeclm.train.background import Background
from codeclm.train.checkpoint import (
    Part,
    checkpoint_problem,
    latest_checkpoint,
    load_state,
    load_tensors,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
    write_part,
)


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3, 2), value), "b": torch.arange(5, dtype=torch.int64)}


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path: Path):
    transposed = {"t": torch.arange(6.0).reshape(2, 3).t()}
    path = save_checkpoint(tmp_path, 7, {"model": tensors(), "other": transposed}, {"config": {"lr": 0.1}})
    assert path == latest_checkpoint(tmp_path) == tmp_path / "step-00000007"
    assert load_state(path) == {"step": 7, "config": {"lr": 0.1}}
    for name, expected in (("model", tensors()), ("other", transposed)):
        loaded = load_tensors(path, name)
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-00000007"]


def test_a_run_without_checkpoints_has_no_latest_one(tmp_path: Path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None


def test_only_the_newest_are_kept(tmp_path: Path):
    for step in (5, 10, 100, 20_000):
        save_checkpoint(tmp_path, step, {"model": tensors()}, {}, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100", "step-00020000"]


def test_writing_a_step_again_replaces_it(tmp_path: Path):
    save_checkpoint(tmp_path, 5, {"model": tensors(1.0)}, {})
    path = save_checkpoint(tmp_path, 5, {"model": tensors(2.0)}, {})
    assert load_tensors(path, "model")["a"][0, 0] == 2.0
    assert len(list(tmp_path.iterdir())) == 1


def truncate(path: Path) -> None:
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    "damage, words",
    [
        (truncate, "model.safetensors does not have the content"),
        (flip_a_bit, "model.safetensors does not have the content"),
        (lambda path: (path / "state.json").write_text("{}"), "state.json does not have the content"),
        (lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda path: (path / "COMPLETE").unlink(), "not finished"),
        (lambda path: (path / "COMPLETE").write_text('{"model'), "not finished"),
        (lambda path: (path / "COMPLETE").write_text("[]"), "not finished"),
    ],
)
def test_a_damaged_newest_checkpoint_is_passed_over_by_name(tmp_path: Path, caplog, damage, words: str):
    older = save_checkpoint(tmp_path, 1, {"model": tensors()}, {})
    newest = save_checkpoint(tmp_path, 2, {"model": tensors()}, {})
    damage(newest)
    assert words in str(checkpoint_problem(newest))
    assert latest_checkpoint(tmp_path) == older
    assert "step-00000002: passed over" in caplog.text


def test_a_broken_later_checkpoint_does_not_push_out_good_ones(tmp_path: Path):
    for step in (1, 2, 9):
        save_checkpoint(tmp_path, step, {"model": tensors()}, {}, keep=3)
    truncate(tmp_path / "step-00000009")
    save_checkpoint(tmp_path, 3, {"model": tensors()}, {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_a_folder_left_by_a_killed_writer_is_ignored_and_later_replaced(tmp_path: Path):
    older = save_checkpoint(tmp_path, 1, {"model": tensors()}, {})
    left = tmp_path / ".step-00000002.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) == older
    assert checkpoint_problem(save_checkpoint(tmp_path, 2, {"model": tensors()}, {})) is None
    assert not left.exists()


@pytest.mark.parametrize("before", [True, False], ids=["one before", "none before"])
def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_scrap(tmp_path: Path, before: bool):
    earlier = [save_checkpoint(tmp_path, 1, {"model": tensors()}, {})] if before else []
    code = f"""
import resource, signal, torch
from pathlib import Path
from codeclm.train.checkpoint import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(Path({str(tmp_path)!r}), 2, {{"model": {{"a": torch.ones(100_000)}}}}, {{}}, keep=1)
except OSError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "step-00000002: the checkpoint could not be written" in result.stdout, result.stderr
    assert len(result.stdout.splitlines()) == 1 and ("step-00000001 is intact" in result.stdout) == before
    assert list(tmp_path.iterdir()) == earlier
    assert latest_checkpoint(tmp_path) == (earlier[0] if before else None)


def test_a_checkpoint_can_be_read_by_whoever_the_umask_allows(tmp_path: Path):
    """safetensors itself makes files for their owner only."""
    mask = os.umask(0o027)
    try:
        path = save_checkpoint(tmp_path, 1, {"model": tensors()}, {})
    finally:
        os.umask(mask)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o640}


def trained(steps: int, through: Path | None = None, at: int = 0, amsgrad: bool = False) -> list[torch.Tensor]:
    """Parameters after `steps` AdamW steps; `through`: everything passes a checkpoint there after step `at`."""

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=amsgrad)

    model, optimizer = build()
    for step in range(steps):
        if through is not None and step == at:
            path = save_checkpoint(through, step, {"m": model.state_dict(), "o": pack_optimizer(optimizer)}, {})
            model, optimizer = build()
            model.load_state_dict(load_tensors(path, "m"))
            unpack_optimizer(optimizer, load_tensors(path, "o"))
        optimizer.zero_grad()
        model(torch.randn(16, 4, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("at", [0, 1, 6])
def test_an_optimizer_goes_on_bit_for_bit(tmp_path: Path, at: int, amsgrad: bool):
    resumed, uninterrupted = trained(10, tmp_path, at, amsgrad), trained(10, amsgrad=amsgrad)
    assert all(torch.equal(a, b) for a, b in zip(resumed, uninterrupted, strict=True))


def test_the_hashes_cover_every_file(tmp_path: Path):
    path = save_checkpoint(tmp_path, 1, {"model": tensors(), "codec": tensors(2.0)}, {})
    names = {file.name for file in path.iterdir()} - {"COMPLETE"}
    assert set(json.loads((path / "COMPLETE").read_text())) == names


def test_what_several_ranks_have_written_reads_as_whole_tensors(tmp_path: Path):
    whole = {"rows": torch.arange(10.0).view(5, 2), "scalar": torch.tensor(3.0)}
    own = {"rows": whole["rows"][:3], "scalar": whole["scalar"]}, {"rows": whole["rows"][3:]}
    for index, tensors in enumerate(own):
        write_part(tmp_path, {"model": tensors}, Part(index))
        (tmp_path / "model.safetensors").rename(tmp_path / Part(index, 2).file("model"))
    found = load_tensors(tmp_path, "model")
    assert found.keys() == whole.keys() and all(torch.equal(found[key], whole[key]) for key in whole)


# --- in the background ---


def test_work_in_the_background_is_waited_for_and_its_failure_is_raised():
    background, gate, done = Background(), threading.Event(), []

    def fail() -> None:
        gate.wait()
        raise OSError("disk full")

    background.start(fail)
    background.check()  # not over yet
    gate.set()
    with pytest.raises(OSError, match="disk full"):
        background.start(lambda: done.append(1))
    background.start(lambda: done.append(2))
    background.close()
    assert done == [2]
