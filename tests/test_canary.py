"""train/canary.py: prompts that are continued at evaluations, and the time that this may take."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from codeclm.train import canary as module
from codeclm.train.canary import Canary, numbers
from codeclm.train.loop import train
from codeclm.train.new_model import new_model
from codeclm.train.trainer import Trainer

from .training import SHORT, assert_same_bits, metrics, run, state_of

pytestmark = pytest.mark.usefixtures("one_thread")
HEARD = replace(SHORT, canary=3, canary_share=1.0, evaluate_every=6)


@pytest.fixture(autouse=True)
def short_and_without_whisper(monkeypatch):
    monkeypatch.setattr(module, "PROMPT_S", 0.2)
    monkeypatch.setattr(module, "DURATION_S", 0.4)
    monkeypatch.setattr(module, "find_spec", lambda name: None)


def test_the_canary_is_measured_heard_and_changes_nothing_about_the_run(store, codec, tmp_path):
    learned = run(store, codec, tmp_path / "run", HEARD)
    assert_same_bits(learned, run(store, codec, tmp_path / "plain", replace(HEARD, canary=0)))
    shares = metrics(tmp_path / "run", "canary_silent_share")
    assert list(shares) == [6, 12] and all(0 <= share <= 1 for share in shares.values())
    assert all(0 < seconds <= 0.45 for seconds in metrics(tmp_path / "run", "canary_seconds").values())
    files = sorted((tmp_path / "run/samples/step-00000012").iterdir())
    assert len(files) == 3 and files[0].name.startswith("01-")
    audio, rate = soundfile.read(files[0])
    assert rate == codec.sample_rate and len(audio) > 0.2 * rate
    assert not list(tmp_path.glob("plain/samples"))


def test_the_prompts_are_held_out_and_always_the_same(store, codec, tmp_path):
    chosen = []
    for seed in (0, 1):
        config = replace(HEARD, seed=seed)
        with Trainer(new_model(store, config), codec, store, tmp_path / "run", config) as trainer:
            canary = Canary(trainer)
            assert set(canary.prompts) <= set(trainer.corpora[0].heldout) and len(canary.prompts) == 3
            chosen.append(canary.prompts)
            one, two = canary.listen(), canary.listen()
            assert trainer.raw_model.training
            assert numbers(one) == numbers(two)
            assert np.array_equal(one[0][1].audio, two[0][1].audio)
    assert chosen[0] == chosen[1]


def test_the_canary_waits_until_its_share_of_the_time_is_there(store, codec, tmp_path):
    config = replace(HEARD, canary_share=0.05)
    with Trainer(new_model(store, config), codec, store, tmp_path / "run", config) as trainer:
        canary = Canary(trainer)
        assert not canary.is_due(39) and canary.is_due(41)
        canary.spent_s, canary.newest_s = 3.0, 3.0
        assert not canary.is_due(119) and canary.is_due(121)
    with Trainer(new_model(store, HEARD), codec, store, tmp_path / "run", replace(HEARD, canary=0)) as trainer:
        assert not Canary(trainer).is_due(1e9)


def test_an_average_of_the_weights_is_what_is_heard(store, codec, tmp_path, monkeypatch):
    heard = []
    original = Canary.continued
    monkeypatch.setattr(
        Canary, "continued", lambda self: heard.append(self.trainer.raw_model.head_0.weight.clone()) or original(self)
    )
    config = replace(HEARD, ema_decay=0.9)
    model = new_model(store, config)
    train(model, codec, store, tmp_path / "run", config)
    learned = state_of(tmp_path / "run", 12)
    assert not np.array_equal(heard[-1].detach().numpy(), learned["head_0.weight"].numpy())
    assert Path(tmp_path / "run/samples").is_dir()
