"""train/compare_patterns.py: trains every pattern under both budgets, and does not repeat what is done."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from codeclm.model.presets import PRESETS
from codeclm.model.shapes import DepthConfig, TransformerConfig
from codeclm.train.compare_patterns import compare_patterns, table
from codeclm.train.config import BatchConfig, ModelConfig, OptimizerConfig
from codeclm.train.patterns_config import PatternsConfig

SHAPE = {"dim": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "ff_dim": 32}
CONFIG = PatternsConfig(
    minutes=0.01,
    generated_frames=3,
    bf16=False,
    batch=BatchConfig(frames_per_batch=64, max_frames=32, heldout_share=0.2),
    optimizer=OptimizerConfig(learning_rate=1e-2),
    model=ModelConfig(backbone=TransformerConfig(**SHAPE), depth=DepthConfig(**SHAPE)),
)


@pytest.mark.slow
def test_every_pattern_is_measured_under_both_budgets_and_only_once(make_store, make_codec, tmp_path):
    torch.set_num_threads(1)
    codec, rng = make_codec(), np.random.default_rng(0)
    store = make_store(tmp_path / "store", [rng.integers(0, 8, (20, 3)) for _ in range(20)], codec)
    results = compare_patterns(store, codec, tmp_path / "out", CONFIG)
    assert [(row.pattern, row.budget) for row in results] == [
        (pattern, budget) for budget in ("time", "flops") for pattern in CONFIG.patterns
    ]
    by = {(row.pattern, row.budget): row for row in results}
    budget = by["depth", "time"].petaflops
    assert by["depth", "flops"] == replace(by["depth", "time"], budget="flops")
    for pattern in CONFIG.patterns:
        row = by[pattern, "flops"]
        per_step = row.petaflops / row.steps
        assert abs(row.petaflops - budget) <= per_step or row.steps == 2  # as many steps as fit
        assert row.bits_per_second > 0 and row.generated_frames_per_second > 0
        assert row.interval[0] <= row.bits_per_second <= row.interval[1]
    assert by["flatten", "flops"].petaflops / by["flatten", "flops"].steps > budget / by["depth", "time"].steps / 4
    again = compare_patterns(store, codec, tmp_path / "out", CONFIG)
    assert again == results  # read back, not run again
    printed = table(results, CONFIG)
    assert all(pattern in printed for pattern in CONFIG.patterns)
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["results"]) == 8


@pytest.mark.slow
def test_groups_of_codebooks_are_priced_beside_single_ones(make_store, make_codec, tmp_path):
    codec, rng = make_codec(), np.random.default_rng(0)
    store = make_store(tmp_path / "store", [rng.integers(0, 8, (20, 3)) for _ in range(20)], codec)
    config = replace(CONFIG, patterns=("depth", "depth-2"))
    results = compare_patterns(store, codec, tmp_path / "out", config)
    one, two = (next(row for row in results if (row.pattern, row.budget) == (name, "time")) for name in config.patterns)
    assert two.petaflops / two.steps < one.petaflops / one.steps  # a pass less for a frame
    settings = json.loads((tmp_path / "out/depth-2-time/config.json").read_text())["model"]
    assert settings["pattern"] == "depth" and settings["depth"]["group_size"] == 2
    assert "depth-2" in table(results, config)


def test_groups_are_compared_with_any_preset():
    training = PatternsConfig(patterns=("depth-4",)).training("depth-4", 1)
    assert training.model.parts[1] == replace(PRESETS["tiny"][1], group_size=4) and training.model.pattern == "depth"


@pytest.mark.parametrize(
    "settings",
    [
        *({"minutes": 0}, {"patterns": ("depth", "deep")}, {"patterns": ()}, {"patterns": ("delay-2",)}),
        {"model": ModelConfig(depth=DepthConfig(group_size=2))},
    ],
)
def test_a_comparison_without_a_meaning_is_refused(settings):
    with pytest.raises(ValueError, match="minutes|patterns"):
        PatternsConfig(**settings)
