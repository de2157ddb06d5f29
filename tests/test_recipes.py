"""train/recipes/large.md: its tables are computed, and its commands run, shortened, on seconds of speech.

The speech has the form of the page's datasets: tar files of Libri-Light, and parquet files with the columns and the
card of each dataset of the hub, in a folder that stands for it.
"""

import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from codeclm.data.sources import tables
from codeclm.data.token_store import TokenStore
from codeclm.model.cost import forward_flops_per_frame
from codeclm.model.lm import SpeechLM
from codeclm.model.pretrained import PROMPT
from codeclm.model.speech_lm_config import SpeechLMConfig
from codeclm.train import cli
from codeclm.train.config import ModelConfig, TrainConfig
from codeclm.train.meter import NOMINAL
from codeclm.train.recipes import plan

PAGE = (Path(plan.__file__).parent / "large.md").read_text()
LINES = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
SHORT = {
    "model.layers": "2", "steps": "2", "evaluate-every": "2", "save-every": "2", "batch.frames-per-batch": "256",
    "batch.frames-per-microbatch": "256", "canary": "0", "batch.heldout-share": "0.1",
}  # fmt: skip
WITHOUT = " --codec mimi:8", " --device cuda", " --ray"  # a codec to download, and more than one process
NUM_CLIPS, NUM_SPEAKERS = 12, 4


def test_a_plan_is_the_cost_of_the_steps_at_a_share_of_the_rate():
    config = TrainConfig(steps=10, depth_fraction=0.25, model=ModelConfig(preset="tiny"))
    model = SpeechLMConfig(8, 2048, *config.model.parts)
    found = plan.plan(2.0, model, 12.5, config)
    assert found.parameters == sum(weight.numel() for weight in SpeechLM(model).parameters())
    assert found.epochs == pytest.approx(10 * config.batch.frames_per_batch / (2 * 3600 * 12.5))
    flops = 3 * forward_flops_per_frame(model, 512, 0.25) * 10 * config.batch.frames_per_batch
    assert found.hours(1e12) == pytest.approx(flops / 1e12 / 3600)
    row = plan.table(found, config, ("L4",), 2, (0.5,)).splitlines()[-1]
    assert row.endswith(f"| {found.hours(NOMINAL['L4']):.1f} |")


def test_the_tables_of_the_page_are_what_the_plan_prints():
    commands = [line for line in LINES if line.startswith("python -m codeclm.train.recipes.plan")]
    assert len(commands) == 2
    for line in commands:
        printed = subprocess.run([sys.executable, *shlex.split(line)[1:]], capture_output=True, text=True, check=True)
        assert printed.stdout in PAGE


def test_a_card_that_is_unknown_is_told_in_one_line():
    command = [sys.executable, "-m", "codeclm.train.recipes.plan", "--hours", "1", "--cards", "H300"]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 2 and told.stderr.count("\n") == 1 and "--cards H300: unknown" in told.stderr


def flac(number: int) -> bytes:
    """Another 3 s of the bundled speech for each number."""
    speech, rate = sf.read(PROMPT)
    speech = np.roll(speech, number * 5003)[: 3 * rate] * (1 - 0.05 * number)
    packed = io.BytesIO()
    sf.write(packed, speech, rate, format="FLAC")
    return packed.getvalue()


def write_libri_light(file: Path) -> None:
    file.parent.mkdir(parents=True)
    with tarfile.open(file, "w") as tar:
        for number in range(NUM_CLIPS):
            about = {"speaker": str(number % NUM_SPEAKERS), "book_meta": {"id": "319"}, "voice_activity": [[0.4, 2.3]]}
            for suffix, content in (("json", json.dumps(about).encode()), ("flac", flac(number))):
                member = tarfile.TarInfo(f"small/{number % NUM_SPEAKERS}/book_64kb_mp3/{number:02}_book_64kb.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_dataset(folder: Path, subset: str, split: str, columns: dict[str, list]) -> None:
    """Parquet files and a card, as a dataset of the hub has them."""
    folder.mkdir(parents=True)
    audio = [{"bytes": flac(number), "path": f"{number}.flac"} for number in range(NUM_CLIPS)]
    pq.write_table(pa.table({"audio": audio} | columns), folder / "0000.parquet", row_group_size=5)
    card = f"configs:\n- config_name: {subset}\n  data_files:\n  - split: {split}\n    path: 0000.parquet\n"
    (folder / "README.md").write_text(f"---\n{card}---\n")


def write_hub(hub: Path) -> None:
    numbers, text = range(NUM_CLIPS), ["a few words"] * NUM_CLIPS
    names = [f"{number % NUM_SPEAKERS}_7_{number:06}" for number in numbers]
    speakers = [number % NUM_SPEAKERS for number in numbers]
    of_mls = {
        "original_path": ["http://example.org/a.mp3"] * NUM_CLIPS,
        "begin_time": [100.0 + number for number in numbers],
        "end_time": [103.0 + number for number in numbers],
        "transcript": text,
        "audio_duration": [3.0] * NUM_CLIPS,
        "speaker_id": list(map(str, speakers)),
    }
    write_dataset(hub / "parler-tts/mls_eng", "default", "train", of_mls | {"book_id": ["7"] * NUM_CLIPS})
    of_german = of_mls | {"chapter_id": ["7"] * NUM_CLIPS, "file": names, "id": names}
    write_dataset(hub / "facebook/multilingual_librispeech", "german", "train", of_german)
    of_librispeech = {"file": names, "text": text, "speaker_id": speakers, "chapter_id": speakers, "id": names}
    write_dataset(hub / "openslr/librispeech_asr", "clean", "validation", of_librispeech)


def shortened(line: str) -> list[str]:
    for flag, value in SHORT.items():
        line = re.sub(rf"--{flag} \S+", f"--{flag} {value}", line)
    for flags in WITHOUT:
        line = line.replace(flags, "")
    if "finetune" in line:
        line += " --steps 2 --batch.frames-per-batch 256 --batch.heldout-share 0.1 --canary 0"
    return shlex.split(line.split("--no-python ")[-1].removeprefix("codeclm "))


@pytest.mark.slow
def test_the_commands_of_the_page_run_one_after_another(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    of_hub, hub = tables.hub_files, tmp_path / "hub"
    monkeypatch.setattr(tables, "hub_files", lambda name, *rest: of_hub(str(hub / name), *rest))
    write_hub(hub)
    write_libri_light(tmp_path / "datasets/librilight/small.tar")
    (tmp_path / "my_voice").mkdir()
    for number in range(4):
        (tmp_path / f"my_voice/{number}.flac").write_bytes(flac(number))
    for line in [line for line in LINES if "codeclm doctor" not in line and "recipes.plan" not in line]:
        args = shortened(line)
        if "--check" in args:  # its alarms ring: the clips are parts of one sentence
            args.remove("--check")
        if "self" in args:  # minutes of drawing
            args[args.index("self")] = "runs/english"
        cli.main(args)
    for store in ("librilight", "mls", "german", "english"):
        opened = TokenStore(tmp_path / "runs" / store)
        assert len(opened) == NUM_CLIPS, store
        assert len({opened.speaker(number) for number in range(NUM_CLIPS)}) == NUM_SPEAKERS, store
        assert (opened.text(0) == "a few words") == (store != "librilight"), store
    for run in ("day", "large", "sharded", "day_german", "day_voice"):
        assert (tmp_path / "runs" / run / "model/model.safetensors").is_file(), run
    compared = json.loads((tmp_path / "runs/day_german/comparison.json").read_text())["rows"]
    assert "english" in [row["name"] for row in compared]
