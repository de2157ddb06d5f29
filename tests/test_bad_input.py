"""What people give by mistake ends in one clear line and exit status 2, and leaves nothing half-written behind."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from codeclm.data.audio import load_audio
from codeclm.inference.loading import save_model
from codeclm.model.codec_reference import CodecReference
from codeclm.model.codecs import SpectralCodec, SpectralConfig
from codeclm.model.lm import SpeechLM
from codeclm.model.shapes import TransformerConfig
from codeclm.model.speech_lm_config import SpeechLMConfig
from codeclm.train.cli import main

RATE = 16_000
SMALL = TransformerConfig(dim=16, num_layers=1, num_heads=2, num_kv_heads=2, ff_dim=32)
COMMAND = Path(sys.executable).parent / "codeclm"
VERBS = ("generate", "roundtrip", "evaluate", "continuations", "prepare", "finetune", "report")


def tiny_codec(seed: int) -> SpectralCodec:
    torch.manual_seed(seed)
    layers = dict(encoder_layers=1, decoder_layers=1, bottleneck_layers=1)
    books = dict(num_codebooks=3, codebook_size=16, codebook_dim=4)
    return SpectralCodec(SpectralConfig(encoder_dim=16, dim=16, **layers, **books)).eval()


def speech(seconds: float, rate: int = RATE) -> np.ndarray:
    """A gliding tone with overtones: not silent, and no two seconds alike."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (120 * time + 3 * np.sin(2 * np.pi * 2 * time))
    return 0.1 * sum(np.sin(k * phase) / k for k in range(1, 8))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    codec = tiny_codec(0)
    reference = CodecReference.of(codec)
    config = SpeechLMConfig(num_codebooks=3, codebook_size=16, backbone=SMALL, depth=SMALL, codec=reference)
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model(SpeechLM(config), codec, folder)
    return folder


@pytest.fixture
def good(tmp_path) -> Path:
    soundfile.write(tmp_path / "good.wav", speech(1.0), RATE)
    return tmp_path / "good.wav"


@pytest.fixture(scope="module")
def store(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    for i in range(6):
        (folder / "audio").mkdir(exist_ok=True)
        soundfile.write(folder / f"audio/{i}.wav", speech(1.0 + i / 7), RATE)
    main(["prepare", str(folder / "audio"), str(folder / "tokens"), "--codec", str(model / "codec")])
    return folder / "tokens"


def arguments(verb: str, audio: Path, model: Path, out: Path) -> list[str]:
    short = ["--duration", "0.2"]
    return [
        str(argument)
        for argument in {
            "generate": ["generate", audio, "--model", model, "--out", out / "a.wav", *short],
            "roundtrip": ["codec", "roundtrip", audio, out / "a.wav", "--codec", model / "codec"],
            "evaluate": ["evaluate", audio, "--model", model, "--json", out / "a.json"],
            "continuations": [
                *("evaluate", audio, "--model", model, "--json", out / "a.json", "--out", out / "wav"),
                *("--continuations", "1", "--prompt-s", "0.5", *short),
            ],
            "prepare": ["prepare", audio, out, "--codec", model / "codec"],
            "finetune": ["finetune", audio, "--from", model, "--out", out, "--steps", "1"],
            "report": ["codec", "report", audio, "--codec", model / "codec", "--json", out / "a.json"],
        }[verb]
    ]


def refused(args: list, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command -> the one line that it leaves on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(arg) for arg in args])
    captured = capsys.readouterr()
    # a progress bar may have been there before
    lines = [line for line in re.split(r"[\r\n]|\x1b\[A", captured.err) if line.strip() and "%|" not in line]
    assert caught.value.code == 2, lines
    assert len(lines) == 1 and lines[0].startswith("codeclm: "), lines
    assert "Errno" not in lines[0] and "Traceback" not in lines[0]
    print(lines[0])  # shown by pytest -rP, to be read by people
    return lines[0]


def assert_nothing_usable(out: Path) -> None:
    left = {path.name for path in out.rglob("*") if path.is_file()} if out.exists() else set()
    assert "store.json" not in left, left


def missing(path: Path) -> str:
    return "no such file"


def empty(path: Path) -> str:
    path.write_bytes(b"")
    return "the file is empty"


def text(path: Path) -> str:
    path.write_text("not audio at all\n" * 100)
    return "cannot be read as audio"


def truncated(path: Path) -> str:
    soundfile.write(path, speech(1.0), RATE)
    path.write_bytes(path.read_bytes()[:20_000])
    return "cut off"


def not_a_number(path: Path) -> str:
    samples = speech(1.0)
    samples[500] = np.nan
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    return "NaN"


def silent(path: Path) -> str:
    soundfile.write(path, np.zeros(RATE), RATE)
    return "silent"


def too_short(path: Path) -> str:
    soundfile.write(path, speech(0.05), RATE)
    return "too short"


def integers_as_floats(path: Path) -> str:
    soundfile.write(path, speech(1.0) * 32768, RATE, subtype="FLOAT")
    return "must lie in -1..1"


BAD_FILES = [missing, empty, text, truncated, not_a_number, silent, too_short, integers_as_floats]


@pytest.mark.parametrize("make", BAD_FILES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("verb", VERBS)
def test_a_bad_file_is_refused_by_name(verb, make: Callable[[Path], str], model, tmp_path, capsys):
    reason = make(tmp_path / "bad.wav")
    line = refused(arguments(verb, tmp_path / "bad.wav", model, tmp_path / "out"), capsys)
    assert reason in line and "bad" in line and str(tmp_path / "out") not in line
    assert_nothing_usable(tmp_path / "out")
    assert (tmp_path / "out").exists() <= (verb in ("prepare", "finetune"))


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("generate", "roundtrip")])
def test_a_folder_of_which_nothing_can_be_used_is_refused(verb, model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("hello")
    assert "no audio file" in refused(arguments(verb, tmp_path / "in", model, tmp_path / "out"), capsys)
    assert not (tmp_path / "out").exists()
    for make in BAD_FILES[1:]:
        make(tmp_path / "in" / f"{make.__name__}.wav")
    line = refused(arguments(verb, tmp_path / "in", model, tmp_path / "out"), capsys)
    assert "empty.wav" in line or f"none of {len(BAD_FILES) - 1} audio files" in line
    assert_nothing_usable(tmp_path / "out")


@pytest.mark.parametrize("verb", ["generate", "roundtrip"])
def test_a_folder_where_a_file_is_needed_is_refused(verb, model, tmp_path, capsys):
    assert "is a folder" in refused(arguments(verb, tmp_path, model, tmp_path / "out"), capsys)


@pytest.mark.parametrize("verb", VERBS)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(verb, model, good, tmp_path, capsys):
    (tmp_path / "file.txt").write_text("keep me")
    line = refused(arguments(verb, good, model, tmp_path / "file.txt"), capsys)
    assert str(tmp_path / "file.txt") in line
    line = refused(arguments(verb, good, model, tmp_path / "file.txt" / "below"), capsys)
    assert str(tmp_path / "file.txt") in line
    assert (tmp_path / "file.txt").read_text() == "keep me"


@pytest.mark.parametrize("verb", ["generate", "roundtrip"])
def test_a_folder_as_output_file_is_refused(verb, model, good, tmp_path, capsys):
    args = [str(tmp_path) if arg.endswith("a.wav") else arg for arg in arguments(verb, good, model, tmp_path / "out")]
    assert "is a folder" in refused(args, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["generate", "roundtrip", "prepare", "train"])
def test_a_full_disk_is_one_line_and_leaves_no_half_file(verb, model, store, good, tmp_path):
    out = tmp_path / "out"
    sizes = [
        *("--model.backbone.dim", "16", "--model.backbone.num-layers", "1", "--model.depth.dim", "16"),
        *("--model.depth.num-layers", "1", "--batch.heldout-share", "0.4"),
    ]
    soundfile.write(tmp_path / "good.wav", speech(60.0), RATE)
    codec = ["--codec", str(model / "codec")]
    training = ["train", store, "--out", out, *codec, "--steps", "1", *sizes]
    args = training if verb == "train" else arguments(verb, good, model, out)
    code = (
        "import resource, sys\n"
        "from codeclm.train.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "main(sys.argv[1:])"
    )
    process = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)
    last = process.stderr.splitlines()[-1]
    assert process.returncode == 2 and last.startswith("codeclm: ") and "Traceback" not in process.stderr, (
        process.stderr
    )
    assert str(out) in last, last
    print(last)
    whole = {"config.json", "metrics.jsonl", "codec_probe.json", ".lock"}
    assert {path.name for path in out.rglob("*") if path.is_file()} <= whole, list(out.rglob("*"))


@pytest.mark.parametrize(
    "extra, reason",
    [
        (["--duration", "0"], "duration"),
        (["--duration", "-1"], "duration"),
        (["--duration", "nan"], "duration"),
        (["--duration", "inf"], "duration"),
        (["--temperature", "nan"], "temperature"),
        (["--temperature", "-0.1"], "temperature"),
        (["--top-p", "1.5"], "--top-p is"),
        (["--top-k", "-1"], "--top-k is -1"),
        (["--seed", "-1"], "seed"),
        (["--seed", str(2**70)], "seed"),
    ],
    ids=" ".join,
)
def test_a_number_out_of_range_is_refused(extra, reason, model, good, tmp_path, capsys):
    line = refused([*arguments("generate", good, model, tmp_path / "out"), *extra], capsys)
    assert reason in line and extra[1].lstrip("-0.")[:3] in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "verb, extra",
    [
        ("continuations", ["--prompt-s", "nan"]),
        ("continuations", ["--prompt-s", "-1"]),
        ("continuations", ["--continuations", "-1"]),
        ("continuations", ["--duration", "nan"]),
        ("evaluate", ["--limit", "-1"]),
        ("evaluate", ["--context-frames", "1"]),
        ("evaluate", ["--bootstrap-samples", "0"]),
        ("evaluate", ["--seed", "-1"]),
        ("prepare", ["--num-workers", "-1"]),
        ("prepare", ["--max-utterance-s", "nan"]),
        ("prepare", ["--max-utterance-s", "-1"]),
        ("finetune", ["--steps", "0"]),
        ("finetune", ["--steps", "-1"]),
        ("finetune", ["--evaluate-every", "0"]),
        ("finetune", ["--save-every", "0"]),
        ("finetune", ["--seed", "-1"]),
        ("finetune", ["--depth-fraction", "0"]),
        ("finetune", ["--depth-fraction", "nan"]),
        ("report", ["--limit", "-1"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_setting_out_of_range_is_refused(verb, extra, model, store, tmp_path, capsys):
    line = refused([*arguments(verb, store.parent / "audio", model, tmp_path / "out"), *extra], capsys)
    assert extra[0].split(".")[-1].strip("-").replace("-", "_") in line.replace("-", "_")


@pytest.mark.parametrize(
    "extra",
    [
        ["--batch.frames-per-batch", "0"],
        ["--batch.max-frames", "0"],
        ["--batch.heldout-share", "nan"],
        ["--optimizer.learning-rate", "nan"],
        ["--optimizer.learning-rate", "-1"],
    ],
    ids=" ".join,
)
def test_a_nested_setting_out_of_range_is_refused(extra, model, store, tmp_path, capsys):
    line = refused([*arguments("finetune", store.parent / "audio", model, tmp_path / "out"), *extra], capsys)
    assert extra[0] in line and line.endswith("(codeclm finetune --help)")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("extra", [["--seed", "x"], ["--duration", "long"], ["--no-such-flag"]], ids=" ".join)
def test_what_is_no_number_or_no_flag_ends_with_status_2(extra, model, good, tmp_path, capsys):
    assert extra[0] in refused([*arguments("generate", good, model, tmp_path / "out"), *extra], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["generate", "evaluate", "finetune"])
def test_a_model_whose_codec_was_replaced_is_refused(verb, model, good, tmp_path, capsys):
    other = shutil.copytree(model, tmp_path / "model")
    tiny_codec(1).save(other / "codec")
    line = refused(arguments(verb, good, other, tmp_path / "out"), capsys)
    assert tiny_codec(0).fingerprint[:12] in line and tiny_codec(1).fingerprint[:12] in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "codec/model.safetensors", "codec/config.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_a_damaged_model_folder_is_refused_by_the_name_of_the_file(name, damage, model, good, tmp_path, capsys):
    broken = shutil.copytree(model, tmp_path / "model")
    content = (broken / name).read_bytes()
    (broken / name).unlink()
    if damage != "gone":
        (broken / name).write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    line = refused(arguments("generate", good, broken, tmp_path / "out"), capsys)
    assert name.split("/")[-1] in line


def test_a_run_with_half_a_checkpoint_is_no_model(good, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "step-00000010").mkdir(parents=True)
    (run / "step-00000010/model.safetensors").write_bytes(b"\0" * 100)
    (run / ".model.partial").mkdir()
    (run / ".model.partial/config.json").write_text("{}")
    for place in (run, run / "step-00000010", tmp_path / "nowhere"):
        line = refused(arguments("generate", good, place, tmp_path / "out"), capsys)
        assert str(place) in line


@pytest.mark.parametrize("kind", ["shard-*.bin", "index-*.arrow", "store.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "changed"])
def test_a_damaged_token_store_is_refused(kind, damage, model, store, tmp_path, capsys):
    tokens = shutil.copytree(store, tmp_path / "tokens")
    path = next(tokens.glob(kind))
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        path.write_bytes(content.replace(b"5", b"6") if path.suffix == ".json" else b"\1" * len(content))
    line = refused(["evaluate", tokens, "--model", model], capsys)
    assert str(tokens) in line
    refused(["train", tokens, "--out", tmp_path / "run", "--codec", model / "codec", "--steps", "1"], capsys)
    assert not (tmp_path / "run/model").exists()


def test_tokens_of_another_codec_are_refused(model, store, tmp_path, capsys):
    tiny_codec(1).save(tmp_path / "other")
    line = refused(["train", store, "--out", tmp_path / "run", "--codec", tmp_path / "other"], capsys)
    assert tiny_codec(0).fingerprint[:12] in line and tiny_codec(1).fingerprint[:12] in line
    refused(["prepare", store.parent / "audio", store, "--codec", tmp_path / "other"], capsys)


def test_a_single_utterance_has_no_baselines_of_its_own(model, good, capsys):
    line = refused(["evaluate", good, "--model", model], capsys)
    assert str(good) in line and "--baseline-data" in line


def stereo(path: Path) -> Path:
    soundfile.write(path.with_suffix(".wav"), np.stack([speech(1.0), 0.5 * speech(1.0)], axis=1), RATE)
    return path.with_suffix(".wav")


def kind(suffix: str, rate: int, **options: str) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        soundfile.write(path.with_suffix(suffix), speech(1.0, rate), rate, **options)
        return path.with_suffix(suffix)

    return write


@pytest.mark.parametrize(
    "make",
    [
        stereo,
        kind(".wav", RATE, subtype="PCM_U8"),
        kind(".wav", 8_000),
        kind(".wav", 44_100, subtype="PCM_24"),
        kind(".flac", 48_000),
        kind(".ogg", 24_000, subtype="VORBIS"),
        kind(".opus", 48_000, format="OGG", subtype="OPUS"),
        kind(".mp3", 44_100),
    ],
    ids=["stereo", "8-bit", "8-khz", "44.1-khz-24-bit", "flac", "ogg", "opus", "mp3"],
)
def test_every_common_format_is_continued(make, model, tmp_path):
    path = make(tmp_path / "prompt")
    main(arguments("generate", path, model, tmp_path / "out"))
    assert soundfile.info(tmp_path / "out/a.wav").frames == round(0.2 * RATE)
    main(arguments("roundtrip", path, model, tmp_path / "out"))
    assert abs(soundfile.info(tmp_path / "out/a.wav").frames - RATE) < 0.1 * RATE
    assert abs(len(load_audio(path, RATE)) - RATE) < 0.1 * RATE
