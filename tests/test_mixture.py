"""data/mixture.py, train/corpora.py: several corpora by weight, the same batches on any number of ranks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from codeclm.data.dataset import TokenBatches
from codeclm.data.mixture import MixedBatches
from codeclm.data.rows import Rows
from codeclm.data.split import split_heldout
from codeclm.data.token_store import TokenStore
from codeclm.inference.config import EvaluateConfig
from codeclm.inference.evaluate.score import score_store
from codeclm.inference.loading import load
from codeclm.train.cli import main
from codeclm.train.corpora import corpora
from codeclm.train.loop import train
from codeclm.train.new_model import new_model

from .training import SHORT, Source, draw, metrics

SIZES = {"frames_per_batch": 120, "max_frames": 30, "seed": 3}


@pytest.fixture(autouse=True)
def one(one_thread):
    pass


@pytest.fixture(scope="module")
def stores(make_store, codec, tmp_path_factory) -> list[TokenStore]:
    """Three corpora; the codes of a frame tell which one it is from, and the last one is a scrap."""
    lengths = [[20, 33, 7, 50, 12] * 30, [28, 41, 5] * 20, [9, 4]]
    return [
        make_store(tmp_path_factory.mktemp("mix"), [np.full((n, 2), number) for n in part], codec)
        for number, part in enumerate(lengths)
    ]


def mixed(stores, weights, packed=True, **options) -> MixedBatches:
    return MixedBatches([TokenBatches(store, **SIZES, packed=packed, **options) for store in stores], weights)


def frames_of(rows: Rows) -> np.ndarray:
    """Frames of each corpus."""
    codes = rows.codes[:, 0]
    return np.bincount(codes[codes >= 0], minlength=3)


@pytest.mark.parametrize("packed", [True, False])
def test_a_mixed_batch_is_a_pure_function_of_seed_and_step_on_any_number_of_ranks(stores, packed):
    one, other = (mixed(stores, (5, 2, 1), packed) for _ in range(2))
    steps = [0, 1, 300, 255, 256, 2, 700]
    for step in steps:
        whole, again = one.rows(step), other.rows(step)
        assert torch.equal(whole.codes, again.codes)
        for ranks in (2, 3):
            parts = [other.rows(step, rank, ranks) for rank in range(ranks)]
            for rank, part in enumerate(parts):
                assert torch.equal(part.codes, whole.codes[rank::ranks])
    assert not all(torch.equal(one.rows(step).codes, one.rows(step + 1).codes) for step in steps)


@pytest.mark.parametrize("weights", [(5, 2, 1), (1, 1, 1), (0.9, 0.099, 0.001)])
def test_the_rows_of_any_stretch_have_the_shares_that_were_asked_for(stores, weights):
    batches, steps = mixed(stores, weights), 600
    drawn = np.array([[row[0, 0] for row in batches.rows(step).codes] for step in range(steps)])
    assert drawn.shape == (steps, 4)
    for part in (drawn[:100], drawn[100:300], drawn):
        counts = np.bincount(part.ravel(), minlength=3)
        assert abs(counts - part.size * np.array(weights) / sum(weights)).max() <= 4


def test_all_rows_have_one_shape_also_those_of_a_scrap(stores):
    batches = mixed(stores, (1, 1, 1))
    assert {tuple(batches.rows(step).codes.shape) for step in range(40)} == {(4, 2, 30)}
    assert batches.most_rows == 4


def test_each_corpus_is_gone_through_epoch_by_epoch(stores):
    """Every frame as often as any other of its corpus, but for the epoch that is not over."""
    batches = mixed(stores[:2], (1, 2))
    seen = sum(frames_of(batches.rows(step)) for step in range(400))
    for number, store in enumerate(stores[:2]):
        assert seen[number] > 2 * store.num_frames.sum()
    units = [part.epoch_batches(0).num_rows for part in batches.parts]
    numbers: list[set] = [set(), set()]
    for step in range(200):
        for grids, row in batches.batch(step):
            corpus = [part.grids for part in batches.parts].index(grids)
            numbers[corpus].update(row[:, 0].tolist())
    assert units[1] < 200 and numbers[1] == set(range(len(stores[1])))


def test_without_weights_corpora_are_mixed_by_their_length(stores):
    found = corpora(stores[:2], SHORT.batch)
    frames = [corpus.store.num_frames[corpus.training].sum() for corpus in found]
    assert [corpus.share for corpus in found] == pytest.approx([n / sum(frames) for n in frames])


def test_weights_that_do_not_fit_are_refused(stores, make_codec, make_store, tmp_path):
    with pytest.raises(ValueError, match="mix has 3 weights for 2 corpora; give one for each"):
        corpora(stores[:2], replace(SHORT.batch, mix=(1, 2, 3)))
    with pytest.raises(ValueError, match="is given twice"):
        corpora([stores[0], stores[0]], SHORT.batch)
    with pytest.raises(ValueError, match="each weight must be more than 0"):
        replace(SHORT.batch, mix=(1, 0))
    foreign = make_store(tmp_path, [np.zeros((5, 3), int)] * 3, make_codec())
    with pytest.raises(ValueError, match="holds tokens of codec"):
        corpora([stores[0], foreign], SHORT.batch)


@pytest.fixture(scope="module")
def mixed_run(store, make_store, codec, tmp_path_factory) -> tuple[Path, list[TokenStore]]:
    folder = tmp_path_factory.mktemp("run")
    other = make_store(folder / "other", draw(Source((0.1, 0.1, 0.1, 0.7), 0.6), [20, 33, 7, 50] * 8, 5), codec)
    config = replace(SHORT, batch=replace(SHORT.batch, mix=(2, 1), heldout_frames=100))
    train(new_model(store, config), codec, [store, other], folder / "run", config)
    return folder / "run", [store, other]


def test_a_run_on_two_corpora_scores_each_and_keeps_the_best_by_share(mixed_run):
    out, stores = mixed_run
    each = [metrics(out, f"heldout_bits_per_second of {store.folder}") for store in stores]
    together = metrics(out, "heldout_bits_per_second")
    assert list(together) == [0, 6, 12] == list(each[0])
    for step, bits in together.items():
        assert bits == pytest.approx((2 * each[0][step] + each[1][step]) / 3, abs=1e-5)
    assert json.loads((out / "config.json").read_text())["data"] == [store.data_hash for store in stores]


def test_the_heldout_number_of_a_run_can_be_had_from_the_command_line(mixed_run, capsys, tmp_path):
    out, stores = mixed_run
    bits = metrics(out, "heldout_bits_per_second")
    best = min((step for step in bits if step), key=lambda step: bits[step])
    for store in stores:
        main(["evaluate", str(store.folder), "--model", str(out), "--split", "heldout", "--json", str(tmp_path / "x")])
        report = json.loads((tmp_path / "x").read_text())
        own = metrics(out, f"heldout_bits_per_second of {store.folder}")[best]
        assert report["model"]["bits_per_second"] == pytest.approx(own, abs=1e-4)
        assert report["num_frames"] <= 100
    assert "bits/s" in capsys.readouterr().out


def test_the_training_part_is_the_rest_and_limit_holds_within_it(mixed_run):
    out, (store, _) = mixed_run
    lm = load(out)
    training, _ = split_heldout(store, *SHORT.batch.split)
    config = EvaluateConfig(split="training", run=str(out))
    report = lm.evaluate(store, config=config, progress=False)
    assert report.num_utterances == len(training) and report.num_frames == store.num_frames[training].sum()
    assert lm.evaluate(store, config=replace(config, limit=4), progress=False).num_utterances == 4
    scores = score_store(lm.model, store, indices=training.tolist(), progress=False)
    assert report.model.bits_per_frame == pytest.approx(
        scores.nll.sum() / scores.num_frames.sum() / np.log(2), rel=1e-6
    )


def test_a_split_needs_a_store_and_a_run(mixed_run, tmp_path):
    out, (store, _) = mixed_run
    lm = load(out / "model")
    for data, config, message in [
        (tmp_path, EvaluateConfig(split="heldout"), "is no token store"),
        (store, EvaluateConfig(split="heldout", run=str(tmp_path)), "is no training run; give the run"),
        (store, EvaluateConfig(run=str(out)), "--run: of use only with --split"),
    ]:
        with pytest.raises(ValueError, match=message):
            lm.evaluate(data, config=config, progress=False)
    assert lm.evaluate(store, split="heldout", progress=False).num_frames <= 100  # RUN/model knows its run, too
