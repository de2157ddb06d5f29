"""What a run would cost, before it is run."""

import pytest

from codeclm.model.speech_lm_config import SpeechLMConfig
from codeclm.train.config import TrainConfig
from codeclm.train.recipes.plan import plan, table


def test_twice_the_steps_and_half_the_gpus_cost_four_times_the_hours():
    model = SpeechLMConfig(num_codebooks=8, codebook_size=64)
    one, two = (plan(10, model, 12.5, TrainConfig(steps=steps)) for steps in (100, 200))
    assert two.hours(1e12) == pytest.approx(4 * one.hours(2e12))
    assert one.epochs == pytest.approx(100 * 4096 / (10 * 3600 * 12.5)) and one.num_codebooks == 8


def test_the_table_has_a_row_for_each_card_and_names_an_unknown_one():
    found = plan(10, SpeechLMConfig(num_codebooks=2, codebook_size=64), 12.5, TrainConfig())
    lines = table(found, TrainConfig(), ("H100", "L4"), 2, (0.1,)).splitlines()
    assert [line.split("|")[1].strip() for line in lines[-2:]] == ["2 x H100", "2 x L4"]
    with pytest.raises(ValueError, match="--cards K80"):
        table(found, TrainConfig(), ("K80",), 1, (0.1,))
