"""model/dial.py: one number that sizes a model and its training."""

from dataclasses import replace

import pytest

from codeclm.model.dial import FEWEST, MOST, batch_by_layers, shape_by_layers
from codeclm.model.presets import PRESETS
from codeclm.train.config import BatchConfig, ModelConfig, OptimizerConfig, TrainConfig


def test_twelve_layers_are_the_preset_small():
    assert shape_by_layers(12) == PRESETS["small"]


def test_every_number_of_layers_is_a_model_and_more_are_never_smaller():
    sizes = [shape_by_layers(layers) for layers in range(FEWEST, MOST + 1)]
    for (one, one_depth), (two, two_depth) in zip(sizes, sizes[1:], strict=False):
        assert one.dim < two.dim and one.ff_dim <= two.ff_dim and one_depth.dim <= two_depth.dim
    batches = [batch_by_layers(layers) for layers in range(FEWEST, MOST + 1)]
    assert batches == sorted(batches) and batches[2] == (4096, 1e-3)


def test_the_dial_chooses_batch_and_rate_unless_they_are_given():
    by_rule = TrainConfig(model=ModelConfig(layers=12))
    assert by_rule.batch.frames_per_batch == 16384 and by_rule.optimizer.learning_rate == pytest.approx(2e-3)
    assert replace(by_rule, steps=3).optimizer == by_rule.optimizer
    given = TrainConfig(
        model=ModelConfig(layers=12),
        batch=BatchConfig(frames_per_batch=1024),
        optimizer=OptimizerConfig(learning_rate=3e-4),
    )
    assert given.batch.frames_per_batch == 1024 and given.optimizer.learning_rate == 3e-4
    assert TrainConfig() == TrainConfig(model=ModelConfig(layers=0))


@pytest.mark.parametrize("layers", [-1, 1, 65])
def test_a_number_of_layers_out_of_range_is_refused(layers):
    with pytest.raises(ValueError, match="it must be from 2 to 64, or 0"):
        ModelConfig(layers=layers)


def test_a_preset_and_the_dial_are_one_choice():
    with pytest.raises(ValueError, match="layers and preset 'small' both choose the sizes"):
        ModelConfig(preset="small", layers=8)
