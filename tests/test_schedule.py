"""train/schedule.py and extension.py: the learning rate of each step, and a run that is given more of them."""

import shutil
from dataclasses import replace

import pytest

from codeclm.train.checkpoint import load_state
from codeclm.train.config import OptimizerConfig
from codeclm.train.extension import BEFORE_DECAY
from codeclm.train.schedule import decay_start, learning_rate

from .training import SHORT, assert_same_bits, metrics, run

pytestmark = pytest.mark.usefixtures("one_thread")
WSD = replace(SHORT, steps=10, evaluate_every=3, optimizer=replace(SHORT.optimizer, schedule="wsd", decay_share=0.4))


def test_wsd_warms_up_stays_at_the_peak_and_decays_in_the_last_share():
    config = OptimizerConfig(learning_rate=2.0, schedule="wsd", decay_share=0.2, final_share=0.1, warmup_steps=10)
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.2) and set(rates[9:81]) == {2.0}
    assert rates[85] == pytest.approx(2.0 * (1 - 0.9 * 0.5)) and rates[100] == pytest.approx(0.2)
    assert all(earlier > later for earlier, later in zip(rates[80:], rates[81:], strict=False))


def test_until_its_decay_wsd_is_the_same_for_any_number_of_steps():
    config = OptimizerConfig(schedule="wsd", warmup_steps=5)
    first = decay_start(config, 40)
    assert first == 32
    assert [learning_rate(config, n, 40) for n in range(first)] == [learning_rate(config, n, 400) for n in range(first)]


@pytest.fixture(scope="module")
def finished(store, codec, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    run(store, codec, out, WSD)
    return out


def test_a_run_that_is_extended_equals_the_longer_run_bit_for_bit(store, codec, finished, tmp_path, caplog):
    caplog.set_level("INFO", "codeclm")
    shutil.copytree(finished, tmp_path / "extended")
    longer = replace(WSD, steps=20)
    extended = run(store, codec, tmp_path / "extended", longer)
    assert "steps was 10 and is 20" in caplog.text and "the run goes on from step 6" in caplog.text
    assert_same_bits(extended, run(store, codec, tmp_path / "whole", longer))
    one, other = (metrics(tmp_path / name, "heldout_bits_per_second") for name in ("extended", "whole"))
    assert one == other and min(one) == 0 and max(one) == 20
    assert load_state(tmp_path / "extended" / BEFORE_DECAY / "step-00000012")["step"] == 12


def test_the_best_weights_of_the_shorter_run_stay_until_the_longer_one_is_better(store, codec, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    before = load_state(finished / "step-00000010")
    run(store, codec, tmp_path / "run", replace(WSD, steps=20))
    assert load_state(tmp_path / "run/step-00000020")["best"] <= before["best"]


def test_without_its_checkpoint_before_the_decay_a_run_decays_again_and_says_so(
    store, codec, finished, tmp_path, caplog
):
    caplog.set_level("INFO", "codeclm")
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / BEFORE_DECAY)
    run(store, codec, tmp_path / "run", replace(WSD, steps=16))
    assert "resumed at step 10" in caplog.text and "rises to its peak again" in caplog.text
    assert max(metrics(tmp_path / "run", "learning_rate")) == 16


def test_a_run_that_has_not_begun_to_decay_is_extended_where_it_stands(store, codec, tmp_path, caplog):
    caplog.set_level("INFO", "codeclm")
    run(store, codec, tmp_path / "run", replace(WSD, steps=4, optimizer=replace(WSD.optimizer, warmup_steps=4)))
    run(store, codec, tmp_path / "run", replace(WSD, steps=8, optimizer=replace(WSD.optimizer, warmup_steps=4)))
    assert "resumed at step 4" in caplog.text and "the learning rate decays from step 5" in caplog.text
