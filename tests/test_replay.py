"""Base speech that is heard again: drawn by the model itself or given."""

import numpy as np
import pytest

import codeclm
from codeclm.data import TokenStore
from codeclm.inference.evaluate.score import score_store
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.loading import save_model
from codeclm.train.replay import own_speech

SHORT = {"steps": 2, "evaluate_every": 1, "save_every": 1, "bf16": False, "copies": 1}


@pytest.fixture
def lm(tmp_path, make_model, make_codec) -> SpeechGenerator:
    codec = make_codec()
    save_model(make_model((0, 1, 1), codec=codec), codec, tmp_path / "lm")
    return codeclm.load(tmp_path / "lm", device="cpu")


def test_own_speech_is_what_the_model_draws_and_is_drawn_once(lm, tmp_path):
    store = own_speech(lm, tmp_path / "own", minutes=0.3)
    store.require_model(lm.model.config)
    store.verify()
    assert store.num_frames.sum() / store.codec.frame_rate / 60 == pytest.approx(0.3, rel=0.2)
    assert not store.ends(0) and not np.array_equal(store.codes(0), store.codes(1))
    written = (tmp_path / "own/store.json").stat().st_mtime_ns
    assert own_speech(lm, tmp_path / "own", minutes=0.3).data_hash == store.data_hash
    assert (tmp_path / "own/store.json").stat().st_mtime_ns == written


def test_own_speech_fits_the_model_that_drew_it_better_than_another(lm, tmp_path, make_model):
    store = own_speech(lm, tmp_path / "own", minutes=0.2)
    other = make_model((0, 1, 1), codec=lm.codec, seed=1)
    bits = [float(score_store(model, store, progress=False).nll.sum()) for model in (lm.model, other)]
    assert bits[0] < bits[1]


def test_a_fine_tune_hears_its_base_again(lm, store_of_lm, tmp_path):
    for name, replay in (("self", "self"), ("data", str(store_of_lm.folder)), ("none", "")):
        codeclm.train.finetune(lm, store_of_lm, tmp_path / name, replay=replay, **SHORT)
    losses = {name: (tmp_path / name / "metrics.jsonl").read_text() for name in ("self", "data", "none")}
    assert len(set(losses.values())) == 3
    with pytest.raises(ValueError, match="another replay"):
        codeclm.train.finetune(lm, store_of_lm, tmp_path / "none", replay="self", **SHORT)


@pytest.fixture
def store_of_lm(lm, tmp_path) -> TokenStore:
    return own_speech(lm, tmp_path / "speech", minutes=0.1, seed=5)
