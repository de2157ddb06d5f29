"""A loss that is not finite: who is to blame, and going on without the batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from codeclm.train.checkpoint import latest_checkpoint, load_state
from codeclm.train.loop import train
from codeclm.train.new_model import new_model
from codeclm.train.trainer import Trainer

from .training import SHORT, SOURCE, assert_same_bits, draw, metrics, state_of

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = replace(SHORT, depth_fraction=1.0, steps=8, evaluate_every=8, track="none")
BAD = 3  # the code whose embedding is broken


@pytest.fixture(scope="module")
def poisoned(make_store, codec, tmp_path_factory):
    """A store in which two utterances that are trained on have code 3 in codebook 0, and the name of those."""
    folder = tmp_path_factory.mktemp("poisoned")
    codes = [np.minimum(x, BAD - 1) for x in draw(SOURCE, [20] * 30, 5)]
    plain = make_store(folder / "plain", codes, codec)
    with Trainer(new_model(plain, CONFIG), codec, plain, folder / "run", CONFIG) as trainer:
        chosen = trainer.batches.indices[[2, 7]].tolist()
    for i in chosen:
        codes[i] = codes[i].copy()
        codes[i][5, 0] = BAD
    store = make_store(folder / "store", codes, codec)
    return store, [store.names[i] for i in chosen]


def broken_model(store):
    model = new_model(store, CONFIG)
    model.frame_embedding.weight.data[BAD] = float("nan")
    return model


def test_a_loss_that_is_not_finite_names_its_utterances_and_no_others(poisoned, codec, tmp_path):
    store, names = poisoned
    with pytest.raises(FloatingPointError, match="the loss is nan") as caught:
        train(broken_model(store), codec, store, tmp_path / "run", CONFIG)
    said = str(caught.value)
    named = [name for name in store.names if f"{name} (" in said]
    assert named and set(named) <= set(names)
    assert "pieces: " in said and "--skip-bad leaves such a batch out" in said and "\n" not in said


def test_where_all_weights_are_broken_all_pieces_are_to_blame(poisoned, codec, tmp_path):
    store, _ = poisoned
    model = new_model(store, CONFIG)
    model.head_0.weight.data.fill_(float("inf"))
    blame = pytest.raises(FloatingPointError, match="by all of its pieces: ")
    with Trainer(model, codec, store, tmp_path / "run", CONFIG) as trainer, blame:
        trainer.train_step()


def test_a_batch_that_is_skipped_is_counted_logged_and_changes_no_weight(poisoned, codec, tmp_path, caplog):
    store, names = poisoned
    config = replace(CONFIG, skip_bad=True)
    model = broken_model(store)
    train(model, codec, store, tmp_path / "run", config)
    state = load_state(latest_checkpoint(tmp_path / "run"))
    assert state["step"] == 8 and state["skipped"] >= 1
    assert caplog.text.count("the batch was left out") == state["skipped"]
    assert any(name in caplog.text for name in names)
    assert metrics(tmp_path / "run", "skipped")[8] == state["skipped"]
    assert np.isfinite(metrics(tmp_path / "run", "loss")[8])
    healthy = torch.cat([p.flatten() for n, p in model.named_parameters() if n != "frame_embedding.weight"])
    assert healthy.isfinite().all()


def test_skipping_goes_on_after_an_interruption_as_without_one(poisoned, codec, tmp_path):
    store, _ = poisoned
    config = replace(CONFIG, skip_bad=True, evaluate_every=4)
    train(broken_model(store), codec, store, tmp_path / "whole", config)
    for steps in (3, 8):
        part = replace(config, steps=steps, optimizer=replace(config.optimizer, schedule="wsd", decay_share=0.01))
        train(broken_model(store), codec, store, tmp_path / "parts", part)
    again = replace(config, optimizer=part.optimizer)
    train(broken_model(store), codec, store, tmp_path / "unbroken", again)
    one, other = (state_of(tmp_path / name, 8) for name in ("parts", "unbroken"))
    assert_same_bits(*({key: value.nan_to_num(7.0) for key, value in found.items()} for found in (one, other)))
    counts = [load_state(latest_checkpoint(tmp_path / name))["skipped"] for name in ("parts", "unbroken")]
    assert counts[0] == counts[1] > 0
