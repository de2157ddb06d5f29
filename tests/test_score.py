"""evaluate/score.py: one definition of bits/s, whatever the batch, and numbers that say where they come from."""

import itertools
import json
import math
import tracemalloc
from dataclasses import asdict

import numpy as np
import pytest
import torch

from codeclm.data.store_writer import Utterance, commit_store, write_shard
from codeclm.data.token_store import TokenStore
from codeclm.inference import EvaluateConfig
from codeclm.inference.compress.codes import compress_codes
from codeclm.inference.evaluate.report import DEFINITION, likelihood
from codeclm.inference.evaluate.score import choose, evaluate, score_store
from codeclm.inference.loading import checkpoint_hash
from codeclm.inference.verify.sequences import Rows, walked_end
from codeclm.model.codec_reference import CodecReference

LENGTHS = [5, 12, 1, 7, 30, 7, 3, 19]


@pytest.fixture(scope="module")
def codec(make_codec):
    return make_codec()


@pytest.fixture(scope="module")
def model(make_model, codec):
    return make_model((0, 1, 1), codec=codec)


@pytest.fixture(scope="module")
def utterances() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 8, (length, 3)) for length in LENGTHS]


@pytest.fixture(scope="module")
def store(make_store, codec, utterances, tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("score"), utterances, codec)


@torch.no_grad()
def nll_of(model, codes: np.ndarray, ends: bool = True) -> tuple[np.ndarray, float]:
    output = model(torch.from_numpy(codes.T[None].astype(np.int64)), torch.tensor([ends]))
    return output.nll[0].sum(dim=-1).numpy(), float(output.eos_nll)


@torch.no_grad()
def nll_by_frame(model, codes: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(codes.T[None].astype(np.int64))).nll[0].numpy()


@pytest.mark.parametrize("frames_per_batch", [1, 20, 33, 10_000])
def test_scores_are_the_models_nll_in_store_order_for_any_batch(model, store, utterances, frames_per_batch):
    scores = score_store(model, store, EvaluateConfig(frames_per_batch), progress=False)
    expected = [nll_of(model, codes) for codes in utterances]
    np.testing.assert_allclose(scores.nll, [nll for nll, _ in expected], rtol=0, atol=1e-9)
    np.testing.assert_allclose(scores.eos_nll, [eos for _, eos in expected], rtol=0, atol=1e-9)
    assert scores.num_frames.tolist() == LENGTHS


def test_eos_is_scored_only_where_a_recording_ends(model, codec, utterances, tmp_path):
    goes_on, info = [True, False] * 4, CodecReference.of(codec)
    entries = [
        Utterance(f"u{i}", 1, codes, goes_on=more)
        for i, (codes, more) in enumerate(zip(utterances, goes_on, strict=True))
    ]
    commit_store(tmp_path, info, [write_shard(tmp_path, 0, entries, info)])
    store, expected = TokenStore(tmp_path), [nll_of(model, codes) for codes in utterances]
    scores = score_store(model, store, EvaluateConfig(33), progress=False)
    eos = [0.0 if more else eos for more, (_, eos) in zip(goes_on, expected, strict=True)]
    np.testing.assert_allclose(scores.eos_nll, eos, rtol=0, atol=1e-9)
    np.testing.assert_allclose(scores.nll, [nll for nll, _ in expected], rtol=0, atol=1e-9)
    assert evaluate(model, store, "0" * 64).eos_nats == pytest.approx(np.mean(eos[1::2]))


def test_chosen_utterances_keep_the_order_they_were_asked_for(model, store):
    everything = score_store(model, store, progress=False)
    some = score_store(model, store, indices=[4, 0, 6], progress=False)
    np.testing.assert_allclose(some.nll, everything.nll[[4, 0, 6]], rtol=0, atol=1e-9)
    assert some.num_frames.tolist() == [30, 5, 3]


def test_a_long_utterance_is_scored_in_windows_that_are_given_half_of_the_one_before(model, store, utterances):
    scores = score_store(model, store, EvaluateConfig(context_frames=8, frames_per_batch=24), progress=False)
    for row, codes in enumerate(utterances):
        expected, eos = nll_of(model, codes[:8])
        for first in range(8, len(codes) + 1, 4):  # the last one predicts the end, where it has no frame the end alone
            given = nll_by_frame(model, codes[first - 4 : first + 4])
            expected = expected + given[:, 4:].sum(axis=1)
            eos = nll_of(model, codes[first - 4 : first + 4])[1]
        np.testing.assert_allclose(scores.nll[row], expected, rtol=0, atol=1e-9)
        assert scores.eos_nll[row] == pytest.approx(eos, abs=1e-9)  # after the last one
    whole = score_store(model, store, progress=False)
    assert abs(scores.nll[4] - whole.nll[4]).max() > 1e-3 and np.allclose(scores.nll[0], whole.nll[0], atol=1e-9)


@pytest.mark.parametrize("pattern", ["depth", "delay", "parallel", "flatten"])
@torch.no_grad()
def test_the_probabilities_of_all_utterances_sum_to_one_also_across_windows(make_model, make_store, tmp_path, pattern):
    """Every utterance of 1 to 4 frames that has ended, and all that go on, where the context is 2 frames."""
    delays = (0, 1) if pattern in ("depth", "delay") else (0, 0)
    model = make_model(delays, codebook_size=2, pattern=pattern, context_frames=2)
    longest = 4
    total = ended_at_once = float(walked_end(model, no_frames(model)).neg().exp())
    assert 0 < ended_at_once < 1
    for num_frames in range(1, longest + 1):
        codes = np.array(list(itertools.product(range(2), repeat=2 * num_frames))).reshape(-1, num_frames, 2)
        store = make_store(tmp_path / f"{num_frames}", list(codes), model.config.codec)
        scores = score_store(model, store, progress=False)
        reached = np.exp(-scores.nll.sum(axis=1))
        ended = reached * np.exp(-scores.eos_nll)
        total += float(ended.sum()) + float((reached - ended).sum()) * (num_frames == longest)
    assert total == pytest.approx(1, abs=1e-9)


def no_frames(model) -> Rows:
    return Rows("audio", torch.zeros(1, model.num_codebooks, 0, dtype=torch.long), torch.tensor([True]), (0,))


def test_a_model_without_bos_pays_for_its_first_frame_in_every_utterance(make_model, make_store, codec, tmp_path):
    """As many bits as its compressed codes take: `codeclm codec compress` codes them with equal probabilities."""
    model = make_model((0, 0, 0), codec=codec, bos=False, end="zeros")
    utterances = [np.random.default_rng(1).integers(0, 8, (length, 3)) for length in (1, 30, 6)]
    store = make_store(tmp_path / "store", utterances, codec)
    nats = score_store(model, store, progress=False).nll.sum(axis=1)
    payloads = compress_codes(model, [torch.from_numpy(codes.T.astype(np.int64)) for codes in utterances])
    assert nats[0] == pytest.approx(3 * math.log(8), abs=1e-9)  # one frame, of which nothing is known
    for bits, payload in zip(nats / math.log(2), payloads, strict=True):
        assert bits - 1 <= 8 * len(payload) <= 1.01 * bits + 16


def test_scores_do_not_depend_on_train_mode_or_an_autocast_around_them(make_model, codec, store):
    model = make_model((0, 1, 1), codec=codec, dtype=torch.float32)
    for block in model.backbone.blocks:
        block.dropout = 0.5
    expected = score_store(model, store, progress=False).nll
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        found = score_store(model, store, progress=False).nll
        report = evaluate(model, store, "0" * 64)
    assert model.training and report.precision == "float32"
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_scopes_count_the_coarsest_codebook_or_the_others_and_sum_to_all(model, store):
    whole, coarse, fine = (
        evaluate(model, store, "0" * 64, config=EvaluateConfig(scope=scope)) for scope in ("all", "coarse", "fine")
    )
    for row in ("model", "bigram", "unigram"):
        parts = [getattr(report, row).bits_per_second for report in (coarse, fine)]
        assert sum(parts) == pytest.approx(getattr(whole, row).bits_per_second)
    assert coarse.model.bits_per_second == pytest.approx(whole.model.coarse_bits_per_second)
    assert coarse.raw_bits_per_second * 2 == fine.raw_bits_per_second and coarse.scope == "coarse"
    assert coarse.model.perplexity == fine.model.perplexity == whole.model.perplexity


def test_bfloat16_scores_nearly_the_same_and_says_so(make_model, codec, store):
    model = make_model((0, 1, 1), codec=codec, dtype=torch.float32)
    exact, rough = (evaluate(model, store, "0" * 64, config=EvaluateConfig(bf16=bf16)) for bf16 in (False, True))
    assert (exact.precision, rough.precision) == ("float32", "bfloat16")
    assert rough.model.bits_per_second != exact.model.bits_per_second
    assert rough.model.bits_per_second == pytest.approx(exact.model.bits_per_second, rel=0.01)


def test_bits_per_second_is_the_formula_by_hand():
    nll, frames = np.array([[6.0, 3.0], [2.0, 1.0]]), np.array([3, 1])
    result = likelihood(nll, frames, 25.0, EvaluateConfig())
    assert result.bits_per_frame == pytest.approx((8 / 4 + 4 / 4) / 0.6931471805599453)
    assert result.bits_per_second == pytest.approx(25 * 3 / 0.6931471805599453)
    assert result.coarse_bits_per_second == pytest.approx(25 * 2 / 0.6931471805599453)
    assert result.perplexity == pytest.approx([math.e**2, math.e])
    assert result.interval == pytest.approx((result.bits_per_second,) * 2)  # both utterances cost 3 nats per frame


def test_the_bootstrap_interval_holds_the_mean_and_narrows_and_is_the_same_every_time():
    rng = np.random.default_rng(0)
    frames = rng.integers(5, 50, 200)
    nll = frames[:, None] * rng.gamma(4, 0.5, (200, 3))
    result = likelihood(nll, frames, 25.0, EvaluateConfig())
    assert result.interval[0] < result.bits_per_second < result.interval[1]
    assert result == likelihood(nll, frames, 25.0, EvaluateConfig())
    assert result.interval != likelihood(nll, frames, 25.0, EvaluateConfig(seed=1)).interval
    fewer = likelihood(nll[:20], frames[:20], 25.0, EvaluateConfig())
    assert fewer.interval[1] - fewer.interval[0] > 1.5 * (result.interval[1] - result.interval[0])


def test_the_bootstrap_needs_no_more_memory_for_many_utterances():
    """All draws at once were 15 KB an utterance: 450 MB here."""
    rng = np.random.default_rng(0)
    frames = rng.integers(5, 50, 30_000)
    nll = frames[:, None] * rng.gamma(4, 0.5, (30_000, 1))
    tracemalloc.start()
    found = likelihood(nll, frames, 25.0, EvaluateConfig(bootstrap_samples=200))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6
    draws = np.random.default_rng(0).integers(0, 30_000, (200, 30_000))  # the same, drawn at once
    resampled = 25 / math.log(2) * nll.sum(axis=1)[draws].sum(axis=1) / frames[draws].sum(axis=1)
    assert found.interval == pytest.approx(np.quantile(resampled, [0.025, 0.975]), rel=1e-12)


def test_the_interval_covers_the_truth_about_95_times_in_100():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        nll = rng.gamma(4, 0.5, (60, 1)) * 10
        low, high = likelihood(nll, np.full(60, 10), 1.0, EvaluateConfig(bootstrap_samples=200)).interval
        hits += low < 2 / math.log(2) < high
    assert 176 <= hits <= 200


def test_a_report_says_where_its_numbers_come_from(model, store, codec):
    report = evaluate(model, store, "c" * 64)
    stored = json.loads(report.to_json())
    assert stored == json.loads(json.dumps(asdict(report)))
    assert stored["definition"] == DEFINITION and stored["checkpoint_hash"] == "c" * 64
    assert stored["codec_fingerprint"] == codec.fingerprint and stored["data_hash"] == store.data_hash
    assert stored["num_frames"] == sum(LENGTHS) and stored["num_utterances"] == len(LENGTHS)
    assert stored["duration_s"] == pytest.approx(sum(LENGTHS) / 100)
    scores = score_store(model, store, progress=False)
    assert stored["model"]["bits_per_second"] == pytest.approx(100 * scores.nll.sum() / sum(LENGTHS) / math.log(2))
    assert stored["raw_bits_per_second"] == pytest.approx(codec.bitrate) == pytest.approx(100 * 3 * 3)
    for words in ("bits/s", codec.fingerprint[:12], store.data_hash[:12], "cccccccccccc", "the other half"):
        assert words in report.table()


def test_zero_heads_cost_the_raw_rate(make_model, codec, store):
    model = make_model((0, 1, 1), codec=codec)
    with torch.no_grad():
        model.head_0.weight.zero_()
        model.depth_decoder.heads.zero_()
    report = evaluate(model, store, "")
    assert report.model.perplexity[1:] == pytest.approx([8, 8])
    assert report.model.coarse_bits_per_second == pytest.approx(100 * math.log2(9))  # EOS is a ninth class
    finer = report.model.bits_per_second - report.model.coarse_bits_per_second
    assert finer == pytest.approx(report.raw_bits_per_second * 2 / 3)
    assert report.eos_nats == pytest.approx(math.log(9))


def test_a_store_of_another_codec_is_refused(make_model, make_codec, store):
    other = make_codec(seed=1)
    with pytest.raises(ValueError, match=f"{store.codec.fingerprint[:12]}.*{other.fingerprint[:12]}"):
        score_store(make_model((0, 1, 1), codec=other), store, progress=False)


def test_a_baseline_store_of_another_codec_is_refused(model, store, make_codec, make_store, tmp_path):
    other = make_store(tmp_path / "other", [np.zeros((3, 3), int)], make_codec(seed=1))
    with pytest.raises(ValueError, match="other: holds tokens of codec"):
        evaluate(model, store, "", baseline_store=other)


def test_a_limit_picks_a_subset_that_does_not_depend_on_the_rest_of_the_store(store, make_store, utterances, tmp_path):
    assert choose(store, EvaluateConfig()) == list(range(len(LENGTHS)))
    subsets = [choose(store, EvaluateConfig(limit=limit)) for limit in (1, 3, 5, 100)]
    assert [len(subset) for subset in subsets] == [1, 3, 5, len(LENGTHS)]
    assert all(set(a) < set(b) and b == sorted(b) for a, b in zip(subsets, subsets[1:], strict=False))
    picked = [store.names[i] for i in subsets[1]]
    kept = [i for i, name in enumerate(store.names) if name in picked or i % 2]
    fewer = make_store(tmp_path, [utterances[i] for i in kept], store.codec, [store.names[i] for i in kept])
    assert len(picked) < len(kept) < len(LENGTHS)
    assert [fewer.names[i] for i in choose(fewer, EvaluateConfig(limit=3))] == picked


def test_one_utterance_has_no_other_half_for_the_baselines(model, store):
    with pytest.raises(ValueError, match="one utterance is not enough for the baselines; give --baseline-data"):
        evaluate(model, store, "", config=EvaluateConfig(limit=1))
    assert evaluate(model, store, "", baseline_store=store, config=EvaluateConfig(limit=1)).num_utterances == 1


def test_the_checkpoint_hash_changes_with_one_weight(make_model, codec, tmp_path):
    model = make_model((0, 1, 1), codec=codec)
    model.save_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    with torch.no_grad():
        model.head_0.weight[0, 0] += 1e-6
    model.save_pretrained(tmp_path / "c")
    a, b, c = (checkpoint_hash(tmp_path / name) for name in "abc")
    assert a == b != c
