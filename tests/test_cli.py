"""The command `codeclm`, from recordings to a fine-tuned model, as a user runs it and as it looks on the screen."""

import json
import logging
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import codeclm as codeclm_package
from codeclm.data.progress import progress_bar
from codeclm.inference.loading import load
from codeclm.inference.screen import log_lines
from codeclm.model.codecs import SpectralCodec, SpectralConfig
from codeclm.train.cli import CODEC_VERBS, VERBS, interrupted, main

RATE = 16_000
COMMAND = Path(sys.executable).parent / "codeclm"
SIZES = [
    "--no-bf16",  # accelerate keeps one precision for a whole process, and other tests share this one
    *("--batch.frames-per-batch", "128", "--batch.max-frames", "32", "--batch.heldout-share", "0.4"),
    *("--model.backbone.dim", "16", "--model.backbone.num-layers", "1", "--model.backbone.ff-dim", "16"),
    *("--model.depth.dim", "16", "--model.depth.num-layers", "1", "--model.depth.ff-dim", "16"),
]
SPEED = re.compile(r"\[\d\d:\d\d<\d\d:\d\d, +[\d.]+\w+/s")  # elapsed, remaining, rate
# what libraries print by themselves
NOISE = ("Writing model shards", "Loading weights", "Warning", "warn(", "Traceback", "deprecated", "HF_", "huggingface")


class Project:
    """A folder with recordings, a codec, a token store and a trained run, each made by the real command."""

    def __init__(self, folder: Path):
        self.audio, self.codec, self.tokens, self.run = (folder / name for name in ("audio", "codec", "tokens", "run"))
        self.prompt = self.audio / "ann" / "0.wav"
        for i in range(8):
            path = self.audio / ("ann" if i < 5 else "bob") / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, voice(1.0 + i / 10, 110 + 10 * i), RATE)
        torch.manual_seed(0)
        layers = dict(encoder_layers=1, decoder_layers=1, bottleneck_layers=1)
        books = dict(num_codebooks=3, codebook_size=16, codebook_dim=4)
        SpectralCodec(SpectralConfig(encoder_dim=16, dim=16, **layers, **books)).save(self.codec)
        codeclm("prepare", self.audio, self.tokens, "--codec", self.codec)
        codeclm("train", self.tokens, "--codec", self.codec, "--out", self.run, "--steps", "3", *SIZES)


def voice(seconds: float, pitch: float) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * (pitch * time + 3 * np.sin(2 * np.pi * 2 * time))
    return 0.1 * sum(np.sin(k * phase) / k for k in range(1, 8))


def codeclm(*args: object) -> None:
    """Run the command in this process; a failure is a SystemExit."""
    main([str(arg) for arg in args])


def screen(*args: object) -> tuple[str, str]:
    """Run the command in a process of its own -> stdout, stderr."""
    result = subprocess.run([COMMAND, *map(str, args)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for word in NOISE:
        assert word not in result.stdout + result.stderr, result.stdout + result.stderr
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))


@pytest.mark.slow
def test_the_whole_way_from_recordings_to_a_finetuned_voice_reads_well(project, tmp_path):
    codec = ("--codec", project.codec)
    out, _ = screen("prepare", project.audio, tmp_path / "tokens", *codec)
    assert out == f"{tmp_path / 'tokens'}: 0.2 min of audio, 8 utterances, 272 frames\n"

    out, err = screen("train", tmp_path / "tokens", *codec, "--out", tmp_path / "run", "--steps", "3", *SIZES)
    assert re.search(r"parameters .* utterances held out; 3 steps on 1 x \w+, precision", out)
    assert re.search(r"step 0: held-out [\d.]+ bits/s\nstep 3: held-out [\d.]+ bits/s( \(.*\))?\n", out)
    assert out.splitlines()[-1].startswith(f"{tmp_path / 'run/model'}: ") and SPEED.search(err)

    out, err = screen("generate", project.prompt, "--model", tmp_path / "run", "--duration", "0.4", "--out", "a/a.wav")
    assert re.fullmatch(r"a/a.wav: 0.40 s, \d+ bits/s, seed 0\n", out) and SPEED.search(err)
    Path("a/a.wav").unlink()
    Path("a").rmdir()

    out, err = screen("evaluate", project.audio, "--model", tmp_path / "run")
    assert out.startswith(f"{project.audio}: 0.2 min of audio, 8 utterances") and "/tmp/tmp" not in out
    assert re.search(r"\nmodel +[\d.]+ .*\nbigram +[\d.]+ .*\nunigram +[\d.]+ .*\nraw codes +300.0\n", out)

    out, _ = screen("finetune", project.audio, "--from", tmp_path / "run", "--out", tmp_path / "bob", "--steps", "2")
    assert out.splitlines()[-1].startswith(f"{tmp_path / 'bob/model'}: ")
    assert load(tmp_path / "bob").generate(project.prompt, duration_s=0.2).audio.shape == (0.2 * RATE,)


@pytest.mark.slow
def test_same_seed_gives_the_same_bytes_and_another_seed_others(project, tmp_path):
    files = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        files[name] = tmp_path / f"{name}.wav"
        arguments = (project.prompt, "--model", project.run, "--duration", "0.4", "--seed", seed, "--out", files[name])
        (screen("generate", *arguments) if name == "b" else codeclm("generate", *arguments))  # b: another process
    a, b, c = (path.read_bytes() for path in files.values())
    assert a == b and a != c


def test_generate_works_from_nothing_and_can_keep_the_prompt(project, tmp_path):
    codeclm("generate", "--model", project.run, "--duration", "0.4", "--out", tmp_path / "nothing.wav")
    assert soundfile.info(tmp_path / "nothing.wav").frames == 0.4 * RATE
    prompted = ("generate", project.prompt, "--model", project.run, "--duration", "0.4")
    codeclm(*prompted, "--out", tmp_path / "without.wav")
    codeclm(*prompted, "--with-prompt", "--out", tmp_path / "with.wav")
    whole, continuation = (soundfile.read(tmp_path / name)[0] for name in ("with.wav", "without.wav"))
    assert len(whole) == 1.4 * RATE
    assert np.array_equal(whole[-len(continuation) :], continuation)


@pytest.mark.slow
def test_a_model_with_a_sliding_window_is_trained_and_scored_and_goes_on_past_its_context(project, tmp_path, capsys):
    run = tmp_path / "run"
    window = ("--model.backbone.sliding-window", "8", "--steps", "3")
    codeclm("train", project.tokens, "--codec", project.codec, "--out", run, *window, *SIZES)
    assert load(run).model.config.backbone.sliding_window == 8
    codeclm("evaluate", project.audio, "--model", run)
    assert "as far back as the model's sliding window shows" in capsys.readouterr().out
    codeclm("generate", "--model", run, "--duration", "4", "--report", "--out", tmp_path / "long.wav")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-5:-1]] == ["0.0", "1.0", "2.0", "3.0"] and "bits/s" in lines[-6]


def test_evaluating_audio_tokens_and_json_gives_the_same_numbers(project, tmp_path, capsys):
    codeclm("evaluate", project.audio, "--model", project.run, "--json", tmp_path / "new/audio.json")
    codeclm("evaluate", project.tokens, "--model", project.run, "--json", tmp_path / "new/tokens.json")
    audio, tokens = (json.loads((tmp_path / f"new/{name}.json").read_text()) for name in ("audio", "tokens"))
    assert audio["data_hash"] == tokens["data_hash"] and audio["model"] == tokens["model"]
    assert f"{audio['model']['bits_per_second']:.1f}" in capsys.readouterr().out
    assert len(audio["model"]["perplexity"]) == 3 and audio["num_utterances"] == 8


def test_baselines_can_be_counted_on_other_data(project, tmp_path, capsys):
    for data in (project.audio / "ann", project.tokens):
        codeclm("evaluate", project.audio / "bob", "--model", project.run, "--baseline-data", data)
        assert f"baselines counted on {data}\n" in capsys.readouterr().out


def test_continuations_are_measured_and_kept(project, tmp_path, capsys):
    length = ("--prompt-s", "0.6", "--duration", "0.8")
    codeclm(
        *("evaluate", project.audio, "--model", project.run, "--continuations", "2", *length),
        *("--out", tmp_path / "wav", "--json", tmp_path / "report.json"),
    )
    assert "0.8 s after prompts of 0.6 s, seed 0" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert [item["name"] for item in report["continuations"]] == ["0.wav", "5.wav"]
    assert sorted(path.name for path in (tmp_path / "wav").glob("*.wav")) == ["01-0.wav", "02-5.wav"]
    lines = [json.loads(line) for line in (tmp_path / "wav/items.jsonl").read_text().splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["0.wav", "5.wav"]
    assert "<audio" in (tmp_path / "wav/index.html").read_text()


def test_continuations_are_chosen_among_files_that_can_be_continued(project, tmp_path, capsys):
    shutil.copytree(project.audio / "ann", tmp_path / "mixed")
    soundfile.write(tmp_path / "mixed/0-short.wav", voice(0.3, 120), RATE)
    soundfile.write(tmp_path / "mixed/0-silent.wav", np.zeros(2 * RATE), RATE)
    (tmp_path / "mixed/00-broken.wav").write_bytes(b"no music")
    command = ("evaluate", tmp_path / "mixed", "--model", project.run, "--prompt-s", "0.6", "--duration", "0.2")
    codeclm(*command, "--continuations", "5", "--json", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [item["name"] for item in report["continuations"]] == [f"{i}.wav" for i in range(5)]
    assert report["skipped"] == [] and "--out FOLDER keeps them" in capsys.readouterr().out
    codeclm(*command, "--continuations", "8")
    out = capsys.readouterr().out
    assert "skipped" in out and "0-short.wav: shorter than the prompt (--prompt-s 0.6)" in out
    assert "0-silent.wav: silent" in out and "5 of 5" in out.replace("0 of 5", "5 of 5")


@pytest.mark.slow
def test_evaluating_some_files_gives_the_numbers_it_gave_and_leaves_the_others_alone(project, tmp_path, capsys):
    mixed = shutil.copytree(project.audio, tmp_path / "mixed")
    for i in range(8):
        (mixed / f"broken{i}.wav").write_bytes(b"no music")
    for limit in (2, 5):
        some = ("--model", project.run, "--limit", limit, "--json", tmp_path / "some.json")
        found = []
        for data in (project.tokens, project.audio, mixed):
            codeclm("evaluate", data, *some)
            found.append(json.loads((tmp_path / "some.json").read_text()))
        of_store, of_audio, of_mixed = found
        assert of_audio["num_utterances"] == of_mixed["num_utterances"] == limit
        for part in ("model", "unigram", "bigram"):  # as when everything had been tokenized
            for report in (of_audio, of_mixed):
                assert report[part]["perplexity"] == pytest.approx(of_store[part]["perplexity"], rel=1e-6)
                assert report[part]["interval"] == pytest.approx(of_store[part]["interval"], rel=1e-6)
    capsys.readouterr()
    codeclm("evaluate", project.audio, "--model", project.run, "--limit", "2")
    assert " 2 utterances" in capsys.readouterr().out.splitlines()[0]


def test_a_baseline_that_does_not_fit_is_told_before_the_audio_is_tokenized(project, tmp_path, capsys):
    codeclm("prepare", project.audio, tmp_path / "other", "--codec", "spectral:4")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        codeclm("evaluate", project.audio, "--model", project.run, "--baseline-data", tmp_path / "other")
    captured = capsys.readouterr()
    assert captured.out == "" and f"{tmp_path / 'other'}: holds tokens of codec" in captured.err


def test_a_model_that_loses_to_the_bigram_is_told_what_to_do(project, tmp_path, capsys):
    codeclm("evaluate", project.audio, "--model", project.run, "--json", tmp_path / "report.json")
    report, out = json.loads((tmp_path / "report.json").read_text()), capsys.readouterr().out
    assert report["model"]["bits_per_second"] > report["bigram"]["bits_per_second"]  # three steps of training
    assert f"codeclm finetune FOLDER --from {project.run} --out RUN" in out.splitlines()[-1]


@pytest.mark.slow
def test_transcribe_and_say_give_what_the_model_does(project, tmp_path, capsys):
    for path in project.audio.rglob("*.wav"):
        target = tmp_path / "spoken" / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
        target.with_suffix(".txt").write_text("one two three four five six seven eight nine ten")
    text = ("--model.text.layout", "mixed", "--model.text.vocab-size", "275")
    codeclm(
        "train", tmp_path / "spoken", "--codec", project.codec, "--out", tmp_path / "run", "--steps", 1, *SIZES, *text
    )
    capsys.readouterr()
    codeclm("transcribe", project.prompt, "--model", tmp_path / "run", "--max-s", "1")
    lm = load(tmp_path / "run")
    assert capsys.readouterr().out == lm.transcribe(project.prompt, max_s=1.0) + "\n"
    said = lm.say("one two", project.prompt, seed=3, duration_s=0.5)
    said.save(tmp_path / "expected.wav")
    how = "--model", tmp_path / "run", "--seed", 3, "--duration", 0.5
    codeclm("say", "one two", "--voice", project.prompt, "--out", tmp_path / "said.wav", *how)
    assert f"said.wav: {len(said.audio) / said.sample_rate:.2f} s, seed 3" in capsys.readouterr().out
    assert (tmp_path / "said.wav").read_bytes() == (tmp_path / "expected.wav").read_bytes()
    for chosen in (), ("--temperature", 0.3, "--guidance", 3):  # as `say` does by itself
        more = *how, "--stop-at-end", *chosen, "--out", tmp_path / f"again-{len(chosen)}.wav"
        codeclm("generate", project.prompt, "--text", "one two", *more)
        assert (tmp_path / f"again-{len(chosen)}.wav").read_bytes() == (tmp_path / "expected.wav").read_bytes()
    codeclm("evaluate", project.tokens, "--model", tmp_path / "run", "--given-text")
    assert "its transcript, then" in capsys.readouterr().out


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_generation_says_that_nothing_was_written(number, status, project, tmp_path):
    command = [COMMAND, "generate", "--model", project.run, "--duration", "3600", "--out", "out.wav"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while process.stderr.read(1) not in ("]", ""):  # the progress bar is there, whole
        pass
    process.send_signal(number)
    said = process.stderr.read()
    assert process.wait() == status and list(tmp_path.iterdir()) == []
    assert said.strip().endswith("codeclm: interrupted; nothing was written")  # after the bar, however far it came


@pytest.mark.parametrize("verb", ["prepare", "train", "finetune", "patterns", "tokenizers"])
def test_verbs_that_resume_say_so_when_they_are_interrupted(verb):
    assert interrupted(VERBS[verb]) == "; run the same command again to go on"


def test_a_run_goes_on_where_it_stood_when_the_command_is_given_again(project, tmp_path, capsys):
    command = ("train", project.tokens, "--codec", project.codec, "--out", tmp_path / "run", *SIZES)
    codeclm(*command, "--steps", "2")
    capsys.readouterr()
    codeclm(*command, "--steps", "4")
    out = capsys.readouterr().out
    assert "resumed at step 2" in out and "step 4: held-out" in out and "step 0:" not in out


def test_bad_files_in_a_folder_are_named_and_the_rest_is_used(project, tmp_path, capsys):
    (tmp_path / "mixed").mkdir()
    for i in range(2):
        soundfile.write(tmp_path / f"mixed/good{i}.wav", voice(1.0, 120), RATE)
    (tmp_path / "mixed/broken.mp3").write_bytes(b"no music")
    codeclm("prepare", tmp_path / "mixed", tmp_path / "tokens", "--codec", project.codec)
    out = capsys.readouterr().out
    assert f"skipped {tmp_path / 'mixed/broken.mp3'}: " in out
    assert "2 utterances" in out and "1 rejected (of 3 files)" in out
    codeclm("evaluate", tmp_path / "mixed", "--model", project.run)
    assert "2 utterances, 50 frames; 1 skipped\n" in capsys.readouterr().out


def test_codec_roundtrip_writes_audio_of_the_same_length(project, tmp_path, capsys):
    codeclm("codec", "roundtrip", project.prompt, tmp_path / "out.wav", "--codec", project.codec)
    assert soundfile.info(tmp_path / "out.wav").frames == soundfile.info(project.prompt).frames
    assert re.search(r"out.wav: 1.00 s, 3 x 25 codes, 300 bits/s, log-mel distance [\d.]+\n", capsys.readouterr().out)


def test_codec_report_measures_each_clip(project, tmp_path, capsys):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    options = ("--codec", project.codec, "--limit", "2", "--json", tmp_path / "report.json")
    codeclm("codec", "report", project.audio, *options)
    assert "PESQ-WB" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "report.json").read_text())["clips"]) == 2


@pytest.mark.parametrize("verb", [[verb] for verb in VERBS] + [["codec", verb] for verb in CODEC_VERBS], ids=" ".join)
def test_every_verb_explains_itself_with_each_default(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*verb, "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0 and f"codeclm {' '.join(verb)}" in out
    _, *options = re.split(r"^[│ ] +(?:-h, )?(?=--\w)", out, flags=re.MULTILINE)
    unsaid = [text.split()[0] for text in options if not re.search(r"\((default:|required|optional|repeatable)", text)]
    assert unsaid == ["--help"]


@pytest.mark.parametrize("args, verbs", [([], VERBS), (["codec"], CODEC_VERBS)])
def test_without_a_verb_the_verbs_are_listed(args, verbs, capsys):
    with pytest.raises(SystemExit) as caught:
        main(args)
    out = capsys.readouterr().out
    assert caught.value.code == 0 and all(f"• {verb}" in out for verb in verbs)


def test_log_lines_appear_without_tearing_a_progress_bar(capsys):
    with log_lines():
        with progress_bar(total=2, desc="work") as bar:
            bar.update()
            logging.getLogger("codeclm.somewhere").info("half is %s", "done")
            logging.getLogger("codeclm.somewhere").warning("mind the %s", "gap")
            logging.getLogger("another").warning("not ours")
        logging.getLogger("codeclm.somewhere").debug("too much")
    logging.getLogger("codeclm").info("after the command")
    captured = capsys.readouterr()
    assert captured.out == "half is done\n"
    assert "warning: mind the gap\n" in captured.err and "gap%" not in captured.err
    assert "half" not in captured.err and "too much" not in captured.err


def test_python_m_codeclm_is_the_command(tmp_path):
    run = [sys.executable, "-m", "codeclm", "--version"]
    out = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out.startswith(f"codeclm {codeclm_package.__version__} (Python ") and out == screen("--version")[0]


@pytest.mark.parametrize(
    "args", [["--help"], ["train", "--help"], ["generate", "--help"], ["codec", "report", "--help"]]
)
def test_help_imports_nothing_heavy(args):
    code = (
        "import sys\nfrom codeclm.train.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'soundfile', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_stops_early_is_no_error():
    pipe = f"set -o pipefail; {COMMAND} train --help | head -n 1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True)
    assert result.stdout.startswith("usage: codeclm train") and result.stderr == ""
