"""A training run that travels as files: what is sent arrives, a run ends by the clock, and what comes back is a run."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codeclm.data.split import split_heldout
from codeclm.data.store_writer import Utterance, commit_store, join_stores, write_shard
from codeclm.data.text_times import TextTimes, write_times
from codeclm.data.token_store import TokenStore
from codeclm.inference.config import EvaluateConfig
from codeclm.inference.evaluate.score import score_store
from codeclm.inference.loading import load
from codeclm.model.codec_reference import CodecReference
from codeclm.train.config import LossConfig, TrainConfig
from codeclm.train.recipes.embedded.language_model import ON_CPU, ON_GPU
from codeclm.train.recipes.embedded.lent.pack import SETTINGS, join, newest_run, pack, read_settings, unpack
from codeclm.train.recipes.embedded.lent.packed_store import num_bits, pack_codes, unpack_codes
from codeclm.train.recipes.embedded.lent.parcel import receive, send
from codeclm.train.recipes.embedded.lent.timed_run import Trial, checked, first_model

from .training import SHAPE, SOURCE

ROOT = Path(__file__).parent.parent
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
# what the lent machine does not have
ABSENT = ("soundfile", "soxr", "tyro", "pydantic", "faster_whisper", "av", "num2words")
BARE = f"""
import importlib.metadata, runpy, sys

def version(name, known=importlib.metadata.version):
    return known("a package that is not installed" if name == "codeclm" else name)

importlib.metadata.version = version
sys.modules.update(dict.fromkeys({ABSENT!r}))
sys.argv[:] = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def recipe(codec, tmp_path_factory) -> Path:
    """A folder of the recipe with tokens in two shards, train/ and heldout/, which have texts and speakers."""
    out, rng, info = tmp_path_factory.mktemp("recipe"), np.random.default_rng(0), CodecReference.of(codec)
    (out / "tokens").mkdir()
    shards = []
    for side, count in (("heldout", 6), ("train", 60)):
        spoken = [
            Utterance(
                f"{side}/0000{i % 2}/{i}", 640 * 25, SOURCE.draw(int(rng.integers(8, 40)), rng),
                text=" ".join(rng.choice(WORDS, 3)), speaker=f"voice{i % 3}", source=f"{side}.tar",
            )
            for i in range(count)
        ]  # fmt: skip
        shards.append(write_shard(out / "tokens", {"heldout": "ab" * 8, "train": "cd" * 8}[side], spoken, info))
    commit_store(out / "tokens", info, shards)
    store = TokenStore(out / "tokens")
    texts = [store.text(i) or "" for i in range(len(store))]
    write_times(store, [np.arange(len(text)) * store.num_frames[i] // len(text) for i, text in enumerate(texts)])
    codec.save(out / "codec/int8")
    return out


@pytest.fixture(scope="module")
def small() -> TrainConfig:
    """The settings of the lent run, for a model of the tests."""
    shape = replace(SHAPE, text=replace(ON_GPU.model.text, vocab_size=300, numbers="", phonemes=""))
    batch = replace(ON_GPU.batch, frames_per_batch=256, max_frames=64)
    optimizer = replace(ON_GPU.optimizer, warmup_steps=5)
    return replace(ON_GPU, evaluate_every=50, loss=LossConfig(), model=shape, batch=batch, optimizer=optimizer)


@given(st.integers(2, 2**16), st.integers(0, 40), st.integers(0, 9))
@settings(max_examples=50)
def test_codes_of_any_codebook_come_back_and_take_no_more_bits_than_they_need(size: int, count: int, seed: int):
    codes = np.random.default_rng(seed).integers(0, size, count).astype("<u2")
    packed = pack_codes(codes, size)
    assert len(packed) == -(-count * num_bits(size) // 8) and 2 ** (num_bits(size) - 1) < size
    back = unpack_codes(np.frombuffer(packed, np.uint8), count, size)
    assert back.dtype == codes.dtype and np.array_equal(back, codes)


def test_what_is_sent_in_parts_arrives_and_a_part_that_is_missing_or_changed_is_named(tmp_path: Path):
    rng = np.random.default_rng(0)
    (tmp_path / "given/inner").mkdir(parents=True)
    for name in ("a", "inner/b"):
        (tmp_path / "given" / name).write_bytes(rng.bytes(5000))
    parts = send(tmp_path / "given", tmp_path / "sent", 4096)
    assert len(parts) == 3 and max(part.stat().st_size for part in parts) == 4096
    (tmp_path / "back").mkdir()
    receive(tmp_path / "sent", tmp_path / "back")
    for name in ("a", "inner/b"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "given" / name).read_bytes()
    content = bytearray(parts[1].read_bytes())
    content[100] ^= 1
    parts[1].write_bytes(content)
    with pytest.raises(ValueError, match="part-01: is not what was sent"):
        receive(tmp_path / "sent", tmp_path / "back")
    parts[1].unlink()
    with pytest.raises(FileNotFoundError, match="part-01: is missing; the parcel has 3 parts"):
        receive(tmp_path / "sent", tmp_path / "back")
    with pytest.raises(FileNotFoundError, match="holds no parcel"):
        receive(tmp_path / "given", tmp_path / "back")


def test_the_store_that_arrives_is_the_store_that_was_packed(recipe: Path, small: TrainConfig, tmp_path: Path):
    pack(recipe, tmp_path / "sent", small, None, 1000)
    there, here = unpack(tmp_path / "sent", tmp_path / "there"), TokenStore(recipe / "tokens")
    assert there.data_hash == here.data_hash and there.codec == here.codec
    assert there.table.equals(here.table)
    assert all(np.array_equal(there.codes(i), here.codes(i)) for i in range(len(here)))
    there.verify(full=True)
    assert (tmp_path / "there/tokenizer.model").is_file()
    assert read_settings(tmp_path / "sent").batch == small.batch
    path = tmp_path / "sent" / SETTINGS
    path.write_text(path.read_text().replace('"depth_fraction"', '"depth_share"'))
    with pytest.raises(ValueError, match="settings.json: .*depth_share"):
        read_settings(tmp_path / "sent")


def test_hours_that_came_later_are_in_the_store_with_their_times(
    recipe: Path, small: TrainConfig, make_store, codec, tmp_path: Path
):
    codes = [SOURCE.draw(20, np.random.default_rng(seed)) for seed in range(3)]
    names = [f"{side}/later/{number}" for number, side in enumerate(("heldout", "train", "train"))]
    later = make_store(tmp_path / "later/tokens", codes, codec, names, ["one two", "two", "four"])
    text = replace(small.model.text, layout="mixed", vocab_size=0)  # needs no times
    mixed = replace(small, model=replace(small.model, text=text))
    pack(recipe, tmp_path / "sent", small, None, 1000)
    pack(tmp_path / "later", tmp_path / "sent/more", mixed, None, 1000)
    here, there = TokenStore(recipe / "tokens"), unpack(tmp_path / "sent", tmp_path / "there")
    count = len(here)
    assert there.names == [*here.names, *later.names] and there.text(count) == "one two"
    assert np.array_equal(there.codes(count + 2), codes[2])
    before, after = TextTimes(here), TextTimes(there)
    assert after.is_known.tolist() == [*before.is_known.tolist(), False, False, False]
    assert np.array_equal(after.frames, before.frames)
    write_times(later, [np.arange(7), np.arange(3), np.arange(4)])
    pack(tmp_path / "later", tmp_path / "sent/more", mixed, None, 1000)
    after = TextTimes(unpack(tmp_path / "sent", tmp_path / "again"))
    assert after.frames[after.starts[count + 1] :].tolist() == [0, 1, 2, 0, 1, 2, 3]
    shutil.copytree(tmp_path / "sent/more", tmp_path / "sent/twice")
    with pytest.raises(ValueError, match="a shard of that name is in another of the stores, too"):
        unpack(tmp_path / "sent", tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_stores_of_several_codecs_are_not_joined(make_store, make_codec, tmp_path: Path):
    for size in (4, 8):
        make_store(tmp_path / str(size), [np.zeros((3, 2), np.int64)], make_codec(num_codebooks=2, codebook_size=size))
    with pytest.raises(ValueError, match="8: has tokens of another codec than .*4; encode it with the same"):
        join_stores([tmp_path / "4", tmp_path / "8"], tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_both_settings_are_of_one_model_and_hold_out_what_the_recipe_holds_out(recipe: Path):
    assert ON_CPU.model == ON_GPU.model and ON_CPU.batch.split == ON_GPU.batch.split
    training, heldout = split_heldout(TokenStore(recipe / "tokens"), *ON_CPU.batch.split)
    assert (len(training), len(heldout)) == (60, 6)


def there(arguments: list[str], **environment: str) -> str:
    """What the command says on a machine that has this checkout, and not the packages that the lent one lacks."""
    command = [sys.executable, "-c", BARE, str(ROOT / "train/recipes/embedded/lent/__main__.py"), *arguments]
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_settings_that_do_not_work_there_are_left_out_and_said(caplog):
    def attempt(config: TrainConfig, compiled: float = 0.0) -> Trial:
        if not 0 < config.batch.frames_per_microbatch <= 5000:
            raise torch.OutOfMemoryError
        if config.compile and not compiled:
            raise RuntimeError("no compiler")
        if config.compile and compiled < 0:
            time.sleep(5)
        return Trial(1.0, 1.0, compiled if config.compile else 100.0, "works")

    def chosen(compiled: float) -> TrainConfig:
        return checked(replace(ON_GPU, compile=True), partial(attempt, compiled=compiled), 0.1)[0]

    caplog.set_level("INFO")
    fits = replace(ON_GPU, batch=replace(ON_GPU.batch, frames_per_microbatch=4096))
    for compiled, said in ((0.0, "without (RuntimeError: no compiler)"), (-1.0, "TimeoutError"), (101.0, "not faster")):
        assert chosen(compiled) == fits
        assert said in caplog.text
    assert "out of memory: 8192 frames at a time" in caplog.text and "4096 frames" in caplog.text
    assert chosen(150.0) == replace(fits, compile=True)
    with pytest.raises(torch.OutOfMemoryError):
        checked(replace(ON_GPU, batch=replace(ON_GPU.batch, max_frames=6000)), attempt, 0.1)


@pytest.mark.slow
def test_a_run_elsewhere_ends_by_the_clock_and_comes_back_as_a_run_to_go_on_from(
    recipe: Path, small: TrainConfig, codec, tmp_path: Path, one_thread
):
    pack(recipe, tmp_path / "sent", small, newest_run(recipe), 20_000)
    assert read(tmp_path / "sent" / SETTINGS)["steps"] == small.steps
    work, out = str(tmp_path / "work"), tmp_path / "out"
    told = there(["train", str(tmp_path / "sent"), "--work", work, "--out", str(out), "--minutes", "0.3"])
    join(out / "run", recipe / "lent-1", recipe / "codec/int8")

    steps = read(recipe / "lent-1/config.json")["steps"]
    lines = [json.loads(line) for line in (recipe / "lent-1/metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}
    assert 20 < steps < small.steps and f"the run has {steps} steps" in told
    # on a machine that is busy with other things it may be stopped before its end
    assert rates[max(rates)] < 0.7 * max(rates.values())
    looks = [line for line in lines if "heldout_bits_per_second" in line]
    shares = small.batch.text
    said = shares.say + shares.say_voice

    def judged(look: dict) -> float:
        alone, with_text = look["heldout_bits_per_second"], look["heldout_bits_per_second_given_text"]
        return alone + said * (with_text - alone)

    best = min(looks[1:], key=judged)  # the first is of the weights before
    assert judged(best) < 0.9 * judged(looks[0])

    lm, store = load(recipe / "lent-1"), TokenStore(recipe / "tokens")
    assert lm.codec.fingerprint == codec.fingerprint and lm.tokenizer is not None
    assert lm.model.config.text.layout == "timed"
    _, scored = split_heldout(store, *small.batch.split)
    for given_text, name in ((False, "heldout_bits_per_second"), (True, "heldout_bits_per_second_given_text")):
        scores = score_store(
            lm.model, store, EvaluateConfig(given_text=given_text), scored.tolist(), False, lm.tokenizer
        )
        bits = store.codec.frame_rate * scores.nll.sum() / scores.num_frames.sum() / math.log(2)
        assert abs(bits / best[name] - 1) < 0.02  # what came back is what was looked at there, in bfloat16

    assert newest_run(recipe) == recipe / "lent-1"
    pack(recipe, tmp_path / "again", small, newest_run(recipe), 20_000)
    model, tokenizer = first_model(tmp_path / "more", unpack(tmp_path / "again", tmp_path / "more"), small)
    assert tokenizer is not None and tokenizer.fingerprint == lm.model.config.text.tokenizer
    codes = torch.from_numpy(store.codes(0).T.astype(int))[None]
    torch.testing.assert_close(model(codes).nll.mean(), lm.model(codes).nll.mean(), rtol=0.02, atol=0)


def read(path: Path) -> dict:
    return json.loads(path.read_text())
