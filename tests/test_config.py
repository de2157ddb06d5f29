"""model/shapes.py, model/speech_lm_config.py: the presets have their sizes; nonsense is refused by name."""

from dataclasses import asdict
from typing import get_args

import pytest
import torch

from codeclm.model import SpeechLM, SpeechLMConfig
from codeclm.model.presets import PRESETS, SHAPE_S, Preset
from codeclm.model.shapes import BACKBONE, DEPTH, DepthConfig, TransformerConfig
from codeclm.train.config import ModelConfig, TextOptions


def num_parameters(module: torch.nn.Module) -> float:
    """In millions."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


# K, V, then millions of parameters: in all, of the backbone, of the depth decoder's transformer
SIZES = {
    "tiny": (8, 1024, 11, 5.1, 0.9),
    "S": (8, 1024, 46, 33.6, 4.2),
    "small": (8, 2048, 142, 99, 13.6),
    "base": (8, 2048, 1088, 973, 45),
}


@pytest.mark.parametrize("preset", SIZES)
def test_a_preset_has_the_size_that_it_promises(preset):
    num_codebooks, codebook_size, total, backbone, depth = SIZES[preset]
    with torch.device("meta"):
        model = SpeechLM(SpeechLMConfig(num_codebooks, codebook_size, *(PRESETS | {"S": SHAPE_S})[preset]))
    assert num_parameters(model) == pytest.approx(total, rel=0.02)
    assert num_parameters(model.backbone) == pytest.approx(backbone, rel=0.02)
    assert num_parameters(model.depth_decoder.transformer) == pytest.approx(depth, rel=0.02)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_the_same_whichever_way_it_is_asked_for(preset, tmp_path):
    backbone, depth = PRESETS[preset]
    assert ModelConfig(preset=preset).parts == (backbone, depth)
    config = SpeechLMConfig(4, 64, backbone, depth)
    assert SpeechLMConfig(4, 64, asdict(backbone), asdict(depth)).to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    loaded = SpeechLMConfig.from_pretrained(tmp_path)
    assert (loaded.backbone, loaded.depth) == (backbone, depth)


def test_every_preset_can_be_asked_for_in_training_and_the_default_is_that_of_the_classes():
    assert set(get_args(Preset)) == set(PRESETS)
    assert ModelConfig().parts == PRESETS["default"] == (BACKBONE, DEPTH) == (TransformerConfig(), DepthConfig())
    own = ModelConfig(backbone=TransformerConfig(dim=64), depth=DepthConfig(dim=32))
    assert own.parts == (own.backbone, own.depth)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(dim=18), "dim 18 must be num_heads 4 times an even number"),
        (dict(dim=12), "dim 12 must be num_heads 4"),
        (dict(head_dim=5), "even number"),
        (dict(num_kv_heads=3), "num_heads 4 must be a multiple of num_kv_heads 3"),
        (dict(num_layers=0), "must be at least 1"),
        (dict(sliding_window=-1), "sliding_window -1 must not be negative"),
        (dict(head_dim=-2), "head_dim at least 0"),
        (dict(dim=10**12), "dim 1000000000000, .* must be at most 1048576"),
        (dict(head_dim=10**12), "of 1000000000000 must be at most"),
        (dict(num_layers=10**6), "num_layers 1000000 at most 1000"),
        (dict(rope_theta=0.0), "rope_theta 0.0 must be more than 0"),
        (dict(norm_eps=-1e-6), "norm_eps -1e-06 at least 0"),
        (dict(rope_scaling={"factor": 0.0}), "factor 0.0 and original_positions 8192 must be more than 0"),
        (dict(rope_scaling={"low_freq_factor": 4.0}), "high_freq_factor 4.0 more than low_freq_factor 4.0"),
        (dict(rope_scaling={"facter": 2.0}), "'rope_scaling.facter'; did you mean 'rope_scaling.factor'"),
    ],
)
def test_a_transformer_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**dict(dim=16, num_heads=4, num_kv_heads=2) | change)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(conditioning="cross"), "depth.conditioning 'cross' is unknown; choose one of add, prefix"),
        (dict(first_codebook="both"), "depth.first_codebook 'both' is unknown; choose one of backbone, depth"),
        (dict(embeddings="tied"), "depth.embeddings 'tied' is unknown; choose one of own, wide, shared"),
        (dict(weight_sets=(0, 2)), "must number its sets 0, 1, 2, ... without a gap"),
        (dict(weight_sets=(0, -1)), "without a gap"),
        (dict(weight_sets=(0, 10**12)), "without a gap"),
        (dict(weight_sets=(0, 1), qkv_bias=True), "exclude each other"),
    ],
)
def test_a_depth_decoder_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DepthConfig(**change)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"delays": [0, 1]}, "delays"),
        ({"delays": [0, 1, 10**9]}, "delays .* must be 3 numbers from 0 to 4096"),
        ({"delays": [0, 1.5, 2]}, r"delays\[1\] is 1.5; it must be a whole number"),
        ({"delays": "012"}, "delays is '012'; it must be a list"),
        ({"num_codebooks": "3"}, "num_codebooks is '3'; it must be a whole number"),
        ({"num_codebooks": 10**9, "pattern": "delay"}, "num_codebooks 1000000000 must be 1 to 4096"),
        ({"codebook_size": 10**12}, "codebook_size 1000000000000 2 to"),
        ({"backbone": {"norm_eps": "1e-06"}}, "backbone.norm_eps is '1e-06'; it must be a number"),
        ({"backbone": {"rope_theta": "10000.0"}}, "backbone.rope_theta is '10000.0'; it must be a number"),
        ({"backbone": {"dim": 1e9}}, "backbone.dim is 1000000000.0; it must be a whole number"),
        ({"backbone": {"sliding_window": 1.5}}, "backbone.sliding_window is 1.5; it must be a whole number"),
        ({"backbone": {"rope_scaling": {"factor": "2"}}}, "backbone.rope_scaling.factor is '2'"),
        ({"codec": {"fingerprint": True}}, "codec.fingerprint is True; it must be a text"),
        ({"codec": []}, r"codec is \[\]; it must be an object of settings"),
        ({"bos": 1}, "bos is 1; it must be true or false"),
        ({"delays": [0, 1, -1]}, "delays"),
        ({"delays": [1, 0, 1]}, "no codebook may lag less than codebook 0"),
        ({"num_codebooks": 0, "delays": []}, "num_codebooks 0"),
        ({"codebook_size": 1}, "codebook_size 1"),
        ({"codec": {"fingerprnt": ""}}, "codec.fingerprint"),
        ({"backbone": {"num_layer": 2}}, "'backbone.num_layer'; did you mean 'backbone.num_layers'"),
        ({"text": {"vocab": 2}}, "did you mean 'text.vocab_size'"),
        ({"text": {"vocab_size": -1}}, "text.vocab_size -1 must be 0"),
        ({"pattern": "spiral"}, "pattern 'spiral' is unknown; choose one of depth, delay, parallel, flatten"),
        ({"pattern": "parallel", "delays": [0, 1, 1]}, "the pattern 'parallel' has none"),
        ({"pattern": "flatten", "delays": [0, 1, 1]}, "the pattern 'flatten' has none"),
        ({"pattern": "flatten", "user_codebooks": 1}, "the pattern 'flatten' has no user_codebooks"),
        ({"pattern": "flatten", "bos": False}, "the pattern 'flatten' has no user_codebooks"),
        ({"pattern": "flatten", "gaps": "bos"}, "the pattern 'flatten' has no user_codebooks"),
        ({"gaps": "zeros"}, "gaps 'zeros' is unknown; choose one of absent, bos"),
        ({"end": "stop"}, "end 'stop' is unknown; choose one of eos, zeros, never"),
        ({"user_codebooks": 4}, "user_codebooks 4 must be 0 to num_codebooks"),
        ({"context_frames": 1}, "context_frames 1 must be at least 2"),
        ({"depth": {"weight_sets": (0, 1, 2)}}, "depth.weight_sets has 3 entries for 2 positions"),
    ],
)
def test_a_speech_lm_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SpeechLMConfig(**({"num_codebooks": 3} | settings))


def test_the_delay_pattern_lags_each_codebook_by_one_more_unless_told_otherwise():
    assert SpeechLMConfig(3, pattern="delay").delays == [0, 1, 2]
    assert SpeechLMConfig(3, pattern="delay", delays=[0, 1, 1]).delays == [0, 1, 1]
    assert SpeechLMConfig(3).delays == [0, 0, 0]


@pytest.mark.parametrize("settings", [{"lead_s": -0.1}, {"lag_s": 99.0}, {"lookahead": -1}, {"vocab_size": -1}])
def test_a_text_stream_that_no_model_has_is_refused_before_anything_is_read(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"text.{name} "):
        TextOptions("timed", **settings)
