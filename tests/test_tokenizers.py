"""`codeclm tokenizers`: codecs compared as a language model sees them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from codeclm.data.audio_out import save_audio
from codeclm.data.split import split_heldout
from codeclm.data.token_store import TokenStore
from codeclm.inference.compress.container import HEADER, ClmFile
from codeclm.inference.evaluate.score import score_store
from codeclm.inference.loading import load
from codeclm.model.codecs import load_codec
from codeclm.model.shapes import DepthConfig, TransformerConfig
from codeclm.train.cli import main
from codeclm.train.config import BatchConfig, ModelConfig, OptimizerConfig
from codeclm.train.tokenizers import compare
from codeclm.train.tokenizers.compare import compare_codecs
from codeclm.train.tokenizers.config import TokenizersConfig, run_folders
from codeclm.train.tokenizers.table import NOT_COMPARABLE, rates, table

SHAPE = {"dim": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "ff_dim": 32}
CONFIG = TokenizersConfig(
    budget=2e-4,
    clips=2,
    prompts=1,
    prompt_s=0.3,
    duration_s=0.05,
    compressed_s=0.02,
    bf16=False,
    batch=BatchConfig(frames_per_batch=64, max_frames=32, heldout_share=0.2),
    optimizer=OptimizerConfig(learning_rate=1e-2, schedule="cosine"),
    model=ModelConfig(backbone=TransformerConfig(**SHAPE), depth=DepthConfig(**SHAPE)),
)


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """Twelve recordings of a voice-like buzz."""
    folder, rng = tmp_path_factory.mktemp("speech"), np.random.default_rng(0)
    for number in range(12):
        time = np.arange(8000 * rng.uniform(0.5, 0.7)) / 8000
        buzz = np.sign(np.sin(2 * np.pi * (110 + 10 * number) * time + 3 * np.sin(6 * time)))
        save_audio(folder / f"voice/{number}.wav", 0.2 * buzz + 0.01 * rng.standard_normal(len(time)), 8000)
    return folder


@pytest.fixture(scope="module")
def codecs(make_codec):
    return {"tiny": make_codec(), "tiny:2": make_codec(num_codebooks=2), "mulaw": load_codec("mulaw")}


@pytest.fixture(scope="module")
def compared(speech, codecs, tmp_path_factory):
    """OUT, and what is found in it."""
    out = tmp_path_factory.mktemp("out")
    found = compare_codecs(speech, codecs, out, CONFIG)
    AcceleratorState._reset_state(reset_partial_state=True)
    return out, *found


def test_each_codec_is_trained_for_the_same_operations_and_scored_on_the_same_speech(compared, codecs):
    out, results, speech = compared
    assert [row.codec for row in results] == list(codecs)
    heldout = set()
    for row, folder in zip(results, run_folders(tuple(codecs), out).values(), strict=True):
        per_step = row.teraflops / row.steps
        assert CONFIG.budget - per_step < row.teraflops <= CONFIG.budget
        store = TokenStore(folder / "tokens")
        training, _ = split_heldout(store, 3 / 12, 0)  # three recordings at least
        assert set(speech.scored).isdisjoint(store.names[i] for i in training)
        heldout.add(len(store) - len(training))
    assert heldout == {len(speech.scored)} == {len(speech.recordings)}
    tiny, tiny_2, mulaw = results
    assert (tiny.frame_rate, mulaw.frame_rate) == (100, 8000) and tiny.raw == 100 * 3 * 3 and mulaw.raw == 64_000
    assert tiny.trained_s > 10 * mulaw.trained_s and tiny_2.steps > tiny.steps


def test_the_bits_of_a_codec_are_those_of_evaluate_and_of_counting_by_hand(compared):
    out, results, speech = compared
    for row in results[0], results[2]:
        folder = run_folders((row.codec,), out)[row.codec]
        store, lm = TokenStore(folder / "tokens"), load(folder / "run")
        chosen = [i for i, name in enumerate(store.names) if name in speech.scored]
        scores = score_store(lm.model, store, indices=chosen)
        seconds = scores.num_frames.sum() / row.frame_rate
        assert row.model == pytest.approx(scores.nll.sum() / math.log(2) / seconds, rel=1e-9)
        others = np.concatenate([store.codes(i) for i in range(len(store)) if i not in chosen])
        bits = 0.0
        for k in range(row.num_codebooks):
            counts = np.bincount(others[:, k], minlength=row.codebook_size) + 0.5
            bits -= sum(np.log2(counts / counts.sum())[store.codes(i)[:, k]].sum() for i in chosen)
        assert row.unigram == pytest.approx(bits / seconds, rel=1e-6)  # counts are in float32


@pytest.mark.parametrize("name", ["tiny", "mulaw"])
def test_bits_are_the_size_of_a_compressed_file(name, compared, tmp_path):
    """But for the header, and the last bytes of the arithmetic code."""
    out, results, _ = compared
    time = np.arange(800) / 8000
    save_audio(tmp_path / "a.wav", 0.2 * np.sign(np.sin(2 * np.pi * 140 * time)), 8000)
    main(["codec", "compress", f"{tmp_path}/a.wav", f"{tmp_path}/a.clm", "--model", f"{out}/{name}/run"])
    file = ClmFile.read(tmp_path / "a.clm")
    main(["evaluate", f"{tmp_path}/a.wav", "--model", f"{out}/{name}/run", "--json", f"{tmp_path}/a.json",
          "--baseline-data", f"{out}/{name}/tokens"])  # fmt: skip
    found = json.loads((tmp_path / "a.json").read_text())
    assert (tmp_path / "a.clm").stat().st_size == HEADER.size + len(file.payload)
    assert 8 * len(file.payload) == pytest.approx(found["model"]["bits_per_second"] * found["duration_s"], abs=16)
    (ratio,) = (row.compressed_ratio for row in results if row.codec == name)
    bits_in_file = {"tiny": 2 * 9, "mulaw": 160 * 8}[name]  # in a stretch of compressed_s, at most
    assert ratio is not None and 1 - 1e-3 < ratio < 1 + 16 / (bits_in_file / 4)


def test_a_finished_comparison_is_read_and_another_codec_joins_it(compared, codecs, speech, make_codec, monkeypatch):
    out, results, _ = compared
    trained = []
    train = compare.train
    monkeypatch.setattr(compare, "train", lambda *args, **settings: trained.append(1) or train(*args, **settings))
    assert compare_codecs(speech, codecs, out, CONFIG)[0] == results and not trained
    one = {"one": make_codec(num_codebooks=1), "mulaw": codecs["mulaw"]}
    more = compare_codecs(speech, one, out, CONFIG)[0]
    assert more[1] == results[2] and more[0].raw == 300 and trained == [1]


@pytest.mark.slow
def test_a_comparison_that_was_interrupted_gives_the_numbers_of_one_that_was_not(
    compared, codecs, speech, tmp_path, monkeypatch, one_thread
):
    def interrupted(*_):
        raise KeyboardInterrupt

    tiny = {"tiny": codecs["tiny"]}
    for name in ("likelihoods", "round_trip"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(compare, name, interrupted)
            compare_codecs(speech, tiny, tmp_path / "out", CONFIG)
    (row,), _ = compare_codecs(speech, tiny, tmp_path / "out", CONFIG)
    assert replace(row, minutes=0) == replace(compared[1][0], minutes=0)


def test_the_table_says_that_bits_compare_only_beside_quality(compared):
    _, results, speech = compared
    heading, tiny, *_ = rates(results)
    assert tiny[: heading.index("unigram")] == ["tiny", "100", "300", "10", "900"]
    printed = table(results, speech, CONFIG)
    assert NOT_COMPARABLE in printed and "file / model" in printed and "threads: 1," in printed


def test_positions_of_a_flattened_model_are_codes(compared, codecs):
    _, results, speech = compared
    flat = replace(CONFIG, model=replace(CONFIG.model, pattern="flatten"))
    assert flat.training(20).model.pattern == "flatten"
    assert rates([replace(results[0], positions_per_second=300)])[1][3] == "3.33"


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"budget": 1e-6}, "--budget 1e-06: 0 steps with 'tiny'"),
        ({"batch": replace(CONFIG.batch, frames_per_batch=100_000)}, "of speech to train on, and a step of 'tiny' has"),
        ({"prompt_s": 5.0}, "no held-out recording lasts 5 s"),
    ],
)
def test_too_little_budget_or_speech_is_told_before_training(settings, words, codecs, speech, tmp_path):
    with pytest.raises(ValueError, match=words):
        compare_codecs(speech, {"tiny": codecs["tiny"]}, tmp_path / "out", replace(CONFIG, **settings))
    assert not (tmp_path / "out/tiny/run").exists()


def test_another_comparison_in_the_same_folder_is_refused(compared, codecs, speech):
    out, *_ = compared
    with pytest.raises(ValueError, match=r"is of another comparison; .*\(settings.budget was 0.0002, is 0.001\)"):
        compare_codecs(speech, codecs, out, replace(CONFIG, budget=1e-3))


@pytest.mark.parametrize(
    "settings",
    [{"budget": 0}, {"budget": math.inf}, {"clips": 0}, {"prompts": -1}, {"model": ModelConfig(delays=(0, 1))}],
)
def test_a_comparison_without_a_meaning_is_refused(settings):
    with pytest.raises(ValueError, match="|".join([*settings, "model.delays"])):
        TokenizersConfig(**settings)


@pytest.mark.slow
def test_the_command_writes_a_table_a_picture_and_the_numbers(speech, codecs, tmp_path, capsys, one_thread):
    codecs["tiny"].save(tmp_path / "tiny")
    options = "--budget 2e-4 --clips 1 --prompts 0 --compressed-s 0 --batch.frames-per-batch 64 --batch.max-frames 32"
    shape = " ".join(
        f"--model.{part}.{name.replace('_', '-')} {value}"
        for part in ("backbone", "depth")
        for name, value in SHAPE.items()
    )
    command = f"tokenizers {speech} --out {tmp_path}/out --codec {tmp_path}/tiny:2 {options} {shape}"
    main(command.split())
    assert (tmp_path / "out/tokenizers.png").read_bytes().startswith(b"\x89PNG")
    assert "![bits/s" in (tmp_path / "out/table.md").read_text()
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert [row["num_codebooks"] for row in found["results"]] == [2]
    assert NOT_COMPARABLE in capsys.readouterr().out
