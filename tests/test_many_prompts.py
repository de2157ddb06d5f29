"""`codeclm generate PROMPTS.jsonl --out FOLDER`: a file for each line, as alone; a bad line stops no other."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from codeclm.data.audio import load_audio
from codeclm.data.audio_out import save_audio
from codeclm.inference import SamplingConfig, load, many_prompts
from codeclm.inference.loading import save_model
from codeclm.inference.row_batch import RowBatch
from codeclm.train.cli import main

RATE, HOP = 8000, 80


@pytest.fixture(scope="module")
def model(make_model, make_codec, tmp_path_factory) -> Path:
    codec = make_codec()
    folder = tmp_path_factory.mktemp("many") / "model"
    save_model(make_model((0, 1, 1), codec=codec, dtype=torch.float32, context_frames=40), codec, folder)
    return folder


@pytest.fixture
def world(tmp_path, monkeypatch) -> Path:
    """Two prompts of a length and one of another, in the folder where commands run."""
    for name, seconds in (("a", 0.5), ("b", 0.5), ("c", 0.3)):
        noise = np.random.default_rng(ord(name)).standard_normal(round(seconds * RATE))
        save_audio(tmp_path / "audio" / f"{name}.wav", 0.1 * noise, RATE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, lines: list) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def run(model: Path, *more: object) -> None:
    main(["generate", "audio/all.jsonl", "--out", "out", "--model", str(model), *map(str, more)])


def names(folder: Path) -> list[str]:
    """What is whole: a file that is being written is hidden until then."""
    return sorted(path.name for path in folder.glob("[!.]*"))


LINES = [
    {"prompt": "a.wav"},
    {"prompt": "b.wav", "seed": 5, "temperature": [1.5, 0.5], "top_k": 0, "name": "own"},
    {"prompt": "a.wav", "seed": 6, "temperature": 0, "top_p": 0.5},
    {"prompt": "c.wav", "duration": 0.2},
    {"duration": 0.2, "seed": 7},
    {"seed": 7, "stop_at_end": True, "min_p": 0.1},
]
NAMES = ["0001-a.wav", "0003-a.wav", "0004-c.wav", "0005.wav", "0006.wav", "own.wav"]


def test_every_line_gives_the_file_that_it_would_give_alone(model, world, capsys):
    write(world / "audio/all.jsonl", LINES)
    run(model, "--duration", 0.1, "--seed", 3, "--temperature", 1.2)
    assert "out: 6 made" in capsys.readouterr().out and names(world / "out") == NAMES
    lm = load(model)
    for line, name in zip(LINES, ["0001-a", "own", "0003-a", "0004-c", "0005", "0006"], strict=True):
        settings = {"temperature": 1.2} | {key: line[key] for key in line if hasattr(SamplingConfig, key)}
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        prompt = world / "audio" / line["prompt"] if "prompt" in line else None
        seed, sampling = line.get("seed", 3), SamplingConfig(**settings)
        alone = lm.generate(prompt, line.get("duration", 0.1), seed, sampling)
        made = load_audio(world / f"out/{name}.wav", RATE, check_speech=False)
        np.testing.assert_allclose(made, np.clip(alone.audio, -1, 1), rtol=0, atol=1e-3)


def test_lines_of_any_length_and_setting_are_drawn_together_and_a_file_appears_when_its_line_is_over(
    model, world, monkeypatch
):
    more = [{"repetition_share": 0.1, "repetition_frames": 4}, {"num_codebooks": 2}, {"prompt": "c.wav"}, {"top_k": 3}]
    lines = [{"prompt": "ab"[i % 2] + ".wav", "duration": 0.05 * (i + 1), "name": f"{i:02d}"} for i in range(11)]
    write(world / "audio/all.jsonl", [line | more[i % 4] for i, line in enumerate(lines)])
    steps = []
    real = RowBatch.step

    def step(self):
        steps.append((len(self.taken), names(world / "out") if (world / "out").is_dir() else []))
        return real(self)

    monkeypatch.setattr(RowBatch, "step", step)
    run(model)
    rows, files = zip(*steps, strict=True)
    assert max(rows) == many_prompts.BATCH and len(steps) < 80  # line 8 takes the row of line 0, and so on
    assert files[6] == ["00.wav"] and len(names(world / "out")) == 11


BROKEN = {
    "not json": "is no JSON",
    "[1]": "it must be an object",
    '{"prompt": "missing.wav"}': "missing.wav: no such file",
    '{"prompt": "silent.wav"}': "silent",
    '{"prompt": 3}': "prompt is 3; it must be a text",
    '{"promt": "a.wav"}': "did you mean 'prompt'?",
    '{"prompt": "a.wav", "duration": -1}': "duration is -1 s",
    '{"prompt": "a.wav", "duration": NaN}': "duration is nan s",
    '{"prompt": "a.wav", "duration": true}': "it must be a number",
    '{"prompt": "a.wav", "seed": -4}': "seed -4",
    '{"prompt": "a.wav", "seed": 1.5}': "seed is 1.5",
    '{"prompt": "a.wav", "top_p": 3}': "top_p is 3",
    '{"prompt": "a.wav", "temperature": "hot"}': "temperature is 'hot'; it must be a number",
    '{"prompt": "a.wav", "temperature": [1, 1, 1, 1]}': "temperature has 4 numbers; this model has 3 codebooks",
    '{"prompt": "a.wav", "text": "hello"}': "cannot speak a given text",
    '{"prompt": "a.wav", "guidance": 2}': "it weighs the text",
    '{"prompt": "a.wav", "name": "../a"}': "without a folder",
    '{"prompt": "a.wav", "name": ""}': "without a folder",
    '{"prompt": "a.wav", "name": "0001-a"}': "name '0001-a' is that of line 1",
    '{"prompt": "a.wav", "name": "\\ud800"}': "without a folder",
    json.dumps({"prompt": "a.wav", "name": 100 * "long"}): "not too long",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_line_among_others_is_told_by_its_number_and_the_others_are_made(broken, model, world, capsys):
    save_audio(world / "audio/silent.wav", np.zeros(RATE), RATE)
    write(world / "audio/all.jsonl", [*(4 * [{"prompt": "a.wav"}]), broken, "", *(4 * [{"prompt": "a.wav"}])])
    with pytest.raises(SystemExit) as stopped:
        run(model, "--duration", 0.1)
    told = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "%|" not in line]
    first, last = [line for line in told if line.strip()]
    assert stopped.value.code == 2 and first.startswith("warning: audio/all.jsonl line 5: ") and BROKEN[broken] in first
    assert last == "codeclm: audio/all.jsonl: 1 of 9 lines could not be made; out: 8 made"
    assert names(world / "out") == [f"{i:04d}-a.wav" for i in (1, 2, 3, 4, 7, 8, 9, 10)]


def test_what_is_there_is_not_made_again_and_only_a_whole_file_counts(model, world, capsys):
    write(world / "audio/all.jsonl", LINES)
    run(model, "--duration", 0.1)
    before = {name: (world / "out" / name).stat().st_mtime_ns for name in NAMES}
    (world / "out/own.wav").unlink()
    (world / "out/.own.wav.partial").write_bytes(b"RIFF")  # what a power cut leaves
    capsys.readouterr()
    run(model, "--duration", 0.1)
    assert "out: 1 made, 5 there already" in capsys.readouterr().out and names(world / "out") == NAMES
    changed = [name for name in NAMES if (world / "out" / name).stat().st_mtime_ns != before[name]]
    assert changed == ["own.wav"]


def test_where_memory_is_too_small_fewer_lines_are_drawn_at_once(model, world, monkeypatch, capsys):
    write(world / "audio/all.jsonl", 9 * [{"prompt": "a.wav"}])
    real = RowBatch.step

    def starved(self):
        if len(self.taken) > 2:
            raise MemoryError("too many rows")
        return real(self)

    monkeypatch.setattr(RowBatch, "step", starved)
    run(model, "--duration", 0.1)
    told = capsys.readouterr()
    assert "out: 9 made" in told.out
    assert "memory is too small for 4 requests at once: from now on 2 are drawn" in told.err


@pytest.mark.slow
def test_files_that_were_made_before_an_interrupt_are_kept_and_the_same_command_goes_on(model, world):
    write(world / "audio/all.jsonl", [{"prompt": "a.wav", "duration": 3 + i} for i in range(60)])
    command = [sys.executable, "-m", "codeclm", "generate", "audio/all.jsonl", "--out", "out", "--model", str(model)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (world / "out").is_dir() or len(names(world / "out")) < 3:
            time.sleep(0.02)
            assert process.poll() is None
        os.kill(process.pid, signal.SIGTERM)
        assert process.stderr is not None
        last = process.stderr.read().splitlines()[-1]
    assert process.returncode == 143 and last.endswith("run the same command again to make what out lacks"), last
    made = names(world / "out")
    assert 3 <= len(made) < 60 and all(len(load_audio(world / "out" / name, RATE)) >= 3 * RATE for name in made)
