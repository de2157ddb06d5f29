"""The Python API: what a verb does in a shell, a call does here, with paths as text and settings by name."""

import subprocess
import sys

import numpy as np
import pytest
from safetensors.torch import load_file

import codeclm
from codeclm.data import PrepareConfig, TokenStore
from codeclm.data.audio_out import save_audio
from codeclm.data.config import with_settings
from codeclm.inference.loading import save_model
from codeclm.train.cli import main
from codeclm.train.finetune_config import FINETUNE

SHORT = {"steps": 2, "evaluate_every": 1, "bf16": False}
SHORT_FLAGS = ["--steps", "2", "--evaluate-every", "1", "--no-bf16"]


@pytest.fixture(scope="module")
def lm(tmp_path_factory, make_model, make_codec) -> codeclm.SpeechGenerator:
    folder, codec = tmp_path_factory.mktemp("lm") / "model", make_codec()
    save_model(make_model((0, 0, 0), codec=codec), codec, folder)
    return codeclm.load(str(folder), device="cpu")


def test_evaluate_gives_the_same_numbers_for_audio_a_store_and_an_open_store(lm, audio, tmp_path):
    codeclm.data.prepare(str(audio), str(tmp_path / "tokens"), lm.codec)
    reports = [
        lm.evaluate(data, progress=False)
        for data in (str(audio), audio, str(tmp_path / "tokens"), TokenStore(tmp_path / "tokens"))
    ]
    assert len({report.to_json() for report in reports}) == 1
    assert reports[0].num_utterances == 4 and str(reports[0]) == reports[0].table()


def test_evaluate_is_the_verb(lm, audio, tmp_path):
    main(["evaluate", str(audio), "--model", lm.name, "--json", str(tmp_path / "report.json"), "--limit", "3"])
    assert lm.evaluate(audio, limit=3, progress=False).to_json() == (tmp_path / "report.json").read_text().rstrip()


def test_evaluate_counts_the_baselines_on_the_data_that_is_given(lm, audio, tmp_path):
    codeclm.data.prepare(audio, tmp_path / "tokens", lm.codec)
    store = TokenStore(tmp_path / "tokens")
    own, given = lm.evaluate(audio, progress=False), lm.evaluate(audio, store, progress=False)
    assert given.bigram.bits_per_second < own.bigram.bits_per_second  # counted on the very speech that is predicted
    assert given.model == own.model and given.baselines_from == str(tmp_path / "tokens")


def test_evaluate_refuses_tokens_of_another_codec(lm, audio, tmp_path, make_codec):
    codeclm.data.prepare(audio, tmp_path / "tokens", make_codec(seed=1))
    for data in (tmp_path / "tokens", TokenStore(tmp_path / "tokens")):
        with pytest.raises(ValueError, match="codec"):
            lm.evaluate(data)


def test_prepare_takes_a_codec_by_its_name(audio, tmp_path):
    summary = codeclm.data.prepare(str(audio), str(tmp_path / "named"), "mulaw", max_utterance_s=1)
    main(["prepare", str(audio), str(tmp_path / "verb"), "--codec", "mulaw", "--max-utterance-s", "1"])
    assert summary.num_utterances == 4
    assert TokenStore(tmp_path / "named").data_hash == TokenStore(tmp_path / "verb").data_hash


@pytest.mark.parametrize("first", ["import codeclm.data.preparation", "from codeclm.data import preparation", ""])
def test_prepare_is_the_function_whatever_was_imported_before(first):
    code = (
        f"{first}\nfrom codeclm.data import prepare\nimport codeclm\nassert codeclm.data.prepare is prepare\nprepare()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "prepare() missing 2 required positional arguments: 'audio' and 'out'" in result.stderr


def test_finetune_is_the_verb_and_leaves_the_model_as_it_is(lm, audio, tmp_path):
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    best = codeclm.train.finetune(lm, str(audio), str(tmp_path / "called"), **SHORT)
    main(["finetune", str(audio), "--from", lm.name, "--out", str(tmp_path / "verb"), *SHORT_FLAGS])
    assert best == tmp_path / "called/model"
    ours, theirs = (load_file(tmp_path / name / "model/model.safetensors") for name in ("called", "verb"))
    assert all(ours[name].equal(theirs[name]) for name in ours | theirs)
    assert (tmp_path / "called/config.json").read_text() == (tmp_path / "verb/config.json").read_text()
    assert all(tensor.equal(before[name]) for name, tensor in lm.model.state_dict().items())
    assert any(not tensor.equal(ours[name]) for name, tensor in before.items())


@pytest.mark.slow
def test_finetune_learns_from_a_single_recording(lm, tmp_path):
    """It is cut and copied for training, which `codeclm prepare` does not do; pieces of it are held out."""
    save_audio(tmp_path / "long.wav", 0.1 * np.random.default_rng(0).standard_normal(45 * 8000), 8000)
    codeclm.train.finetune(lm, tmp_path / "long.wav", tmp_path / "run", **SHORT)
    names = TokenStore(tmp_path / "run/tokens").names
    assert names == [f"long#{piece}~{copy}" for piece in range(3) for copy in range(8)]


def test_finetune_takes_a_name_a_store_and_goes_on_where_it_stood(lm, audio, tmp_path):
    codeclm.data.prepare(audio, tmp_path / "tokens", lm.codec)
    first = codeclm.train.finetune(lm.name, tmp_path / "tokens", tmp_path / "run", **SHORT)
    written = (tmp_path / "run/metrics.jsonl").read_bytes()
    assert codeclm.train.finetune(lm, TokenStore(tmp_path / "tokens"), tmp_path / "run", **SHORT) == first
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == written


@pytest.mark.slow
def test_train_is_the_verb(audio, tmp_path):
    codeclm.data.prepare(audio, tmp_path / "tokens", max_utterance_s=20)
    shape = {"model": {"preset": "tiny"}, "batch": {"heldout_share": 0.3, "frames_per_batch": 64}}
    flags = ["--model.preset", "tiny", "--batch.heldout-share", "0.3", "--batch.frames-per-batch", "64"]
    best = codeclm.train.train(tmp_path / "tokens", tmp_path / "called", **SHORT, **shape)
    main(["train", str(tmp_path / "tokens"), "--out", str(tmp_path / "verb"), *SHORT_FLAGS, *flags])
    ours, theirs = (load_file(tmp_path / name / "model/model.safetensors") for name in ("called", "verb"))
    assert best == tmp_path / "called/model" and all(ours[name].equal(theirs[name]) for name in ours | theirs)


def test_settings_by_name_change_no_others():
    changed = with_settings(FINETUNE, {"steps": 20, "optimizer": {"learning_rate": 1}})
    assert (changed.steps, changed.optimizer.learning_rate) == (20, 1.0)
    assert (changed.evaluate_every, changed.optimizer.warmup_steps) == (40, FINETUNE.optimizer.warmup_steps)
    assert with_settings(changed, {"steps": 320, "optimizer": FINETUNE.optimizer}) == FINETUNE


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"step": 20}, "unknown setting 'step'; did you mean 'steps'?"),
        ({"steps": 0}, "steps 0, evaluate_every 40, save_every 80: each must be at least 1"),
        ({"steps": "20"}, "steps is '20'; it must be a whole number"),
        ({"optimizer": {"rate": 1e-4}}, "unknown setting 'rate'; did you mean 'learning_rate'?"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_is_done(lm, audio, tmp_path, settings, message):
    with pytest.raises(ValueError) as caught:
        codeclm.train.finetune(lm, audio, tmp_path / "run", **settings)
    assert str(caught.value) == message and not (tmp_path / "run").exists()


def test_wrong_settings_of_prepare_and_evaluate_are_told_too(lm, audio, tmp_path):
    with pytest.raises(ValueError, match="unknown setting 'copy'; did you mean 'copies'"):
        codeclm.data.prepare(audio, tmp_path / "tokens", lm.codec, copy=2)
    with pytest.raises(ValueError, match="unknown setting 'context'; did you mean 'context_frames'"):
        lm.evaluate(audio, context=20)
    assert with_settings(PrepareConfig(), {"max_utterance_s": 20}) == PrepareConfig(max_utterance_s=20.0)
