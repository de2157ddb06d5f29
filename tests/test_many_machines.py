"""Preparation by ranks and by Ray: the store of a single process, whatever is killed."""

import logging
from pathlib import Path

import pytest
from filelock import FileLock

from codeclm.data.config import PrepareConfig
from codeclm.data.preparation import prepare, prepare_rank
from codeclm.data.ranks import Rank
from codeclm.data.token_store import TokenStore
from codeclm.model.codecs import Codec, load_codec
from codeclm.train.cli import main

from . import killed_prepare
from .killed_prepare import CONFIG, content, write_clips


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load_codec("spectral")


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips") / "audio")


@pytest.fixture(scope="module")
def truth(audio, codec, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("truth") / "tokens"
    prepare(audio, out, codec, CONFIG)
    return content(out)


def test_ranks_in_any_order_make_the_store_of_one_process(audio, codec, truth, tmp_path, capsys):
    out = tmp_path / "tokens"
    told = str(prepare_rank(audio, out, Rank(2, 3), codec, CONFIG))
    assert "rank 2 of 3 has made 8 shards, 17 shards are still missing" in told and "--commit" in told
    with pytest.raises(ValueError, match=r"17 of 25 shards are missing: shard 0 \('000', ...\), shard 1 \(.*run those"):
        prepare(audio, out, codec, CONFIG, commit=True)
    prepare_rank(audio, out, Rank(0, 3), codec, CONFIG)
    assert prepare_rank(audio, out, Rank(0, 3), codec, CONFIG).num_made == 0
    main(["prepare", str(audio), str(out), "--files-per-shard", "2", "--rank", "1", "--world-size", "3"])
    assert "no shard is missing" in capsys.readouterr().out
    main(["prepare", str(audio), str(out), "--files-per-shard", "2", "--commit"])
    assert content(out) == truth and "1 rejected" in capsys.readouterr().out
    TokenStore(out).verify()


def test_the_plan_of_a_rank_does_not_depend_on_what_others_have_made(audio, codec, truth, tmp_path):
    """By bytes: a group that closed because of its size must not grow once the next one is finished."""
    config = PrepareConfig(shard_mb=0.1)
    prepare(audio, tmp_path / "one", codec, config)
    for number in (1, 3, 0, 2):
        prepare_rank(audio, tmp_path / "many", Rank(number, 4), codec, config)
    prepare(audio, tmp_path / "many", codec, config, commit=True)
    assert content(tmp_path / "many") == content(tmp_path / "one")
    sizes = [path.stat().st_size for path in (tmp_path / "one").glob("shard-*.bin")]
    assert 5 < len(sizes) < 25


def test_a_second_process_of_a_rank_other_counts_and_a_plain_prepare_are_refused(audio, codec, tmp_path, monkeypatch):
    monkeypatch.setattr("codeclm.data.ranks.PATIENCE_S", 0.1)
    with FileLock(tmp_path / ".rank-1-of-3.lock"):
        with pytest.raises(OSError, match="another codeclm prepare is rank 1 of 3 here"):
            prepare_rank(audio, tmp_path, Rank(1, 3), codec, CONFIG)
        with pytest.raises(OSError, match="3 ranks are at work here; give --world-size 3"):
            prepare_rank(audio, tmp_path, Rank(1, 4), codec, CONFIG)
        with pytest.raises(OSError, match="3 ranks are at work here; wait for them"):
            prepare(audio, tmp_path, codec, CONFIG)
    with FileLock(tmp_path / ".lock"), pytest.raises(OSError, match="another codeclm prepare is writing here"):
        prepare_rank(audio, tmp_path, Rank(1, 3), codec, CONFIG)
    with pytest.raises(ValueError, match="rank 3 of 3"):
        Rank(3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.4, 1.5])
def test_a_killed_prepare_and_a_killed_rank_change_nothing(audio, codec, truth, tmp_path, after_s):
    killed_prepare.killed_alone(audio, tmp_path / "alone", codec, after_s)
    assert content(tmp_path / "alone") == truth
    killed_prepare.killed_ranks(audio, tmp_path / "ranks", codec, after_s)
    assert content(tmp_path / "ranks") == truth


@pytest.mark.slow
def test_ray_makes_the_same_bytes_though_an_actor_is_killed(audio, codec, truth, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        done = killed_prepare.killed_actor(audio, tmp_path / "tokens", codec, 6.0)
    finally:
        ray.shutdown()
    assert 0 <= done < 25, "the actor was killed when all was done"
    assert content(tmp_path / "tokens") == truth
