"""A converted CSM or Moshi speaks: its folder loads with the Mimi inside, and only codes of the Mimi are drawn."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from codeclm.data.audio_out import save_audio
from codeclm.inference.compress.container import ClmFile
from codeclm.inference.config import SamplingConfig
from codeclm.inference.convert import import_folder
from codeclm.inference.engine import generate
from codeclm.inference.grid import Request
from codeclm.inference.loading import load, load_speech_lm
from codeclm.model.codecs import load_codec
from codeclm.train.cli import main

from .checkpoints import CSM, MIMI, MOSHI, csm, edit, moshi


def fill_codebooks(_, tensors: dict) -> None:
    """Random ones: those of a new model are all zero, so that every code would be 0."""
    generator = torch.Generator().manual_seed(0)
    for key, tensor in tensors.items():
        if key.endswith("embed_sum"):
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("converted")
    for kind, make in (("csm", csm), ("moshi", moshi)):
        make(root / f"{kind}-hf")
        edit(root / f"{kind}-hf", fill_codebooks)
        import_folder(kind, root / f"{kind}-hf", root / kind)
    return {kind: root / kind for kind in ("csm", "moshi")}


@pytest.mark.parametrize("kind, num_codebooks", [("csm", CSM["num_codebooks"]), ("moshi", MOSHI["num_codebooks"])])
def test_a_converted_model_loads_with_its_codec_and_continues_audio(kind, num_codebooks, folders):
    lm = load(folders[kind])
    assert (lm.codec.name, lm.codec.num_codebooks, lm.codec.codebook_size) == ("mimi", num_codebooks, 16)
    assert lm.codec.fingerprint == lm.model.config.codec.fingerprint
    assert load_codec(folders[kind] / "codec").num_codebooks == MIMI["num_quantizers"]
    audio = 0.3 * torch.randn(800, generator=torch.Generator().manual_seed(1)).numpy()
    made = lm.generate_many((audio, 800), 0.5, seeds=[0, 1])
    for generation in made:
        assert generation.codes.shape == (num_codebooks, 150) and generation.codes.max() < 16
        assert generation.audio.shape == (400,) and abs(generation.audio).max() > 0
    assert (made[0].codes[:, 100:] != made[1].codes[:, 100:]).any()


def test_codes_outside_the_codec_are_never_drawn_with_it(folders):
    model, size = load_speech_lm(folders["csm"]), 16
    assert model.codebook_size == CSM["vocab_size"] == 19
    prompt = torch.randint(0, size, (model.num_codebooks, 3), generator=torch.Generator().manual_seed(0))
    hot = SamplingConfig(temperature=3.0)
    *_, free = generate(model, Request(40, prompt), [0, 1], hot)
    *_, kept = generate(model, Request(40, prompt, num_codes=size), [0, 1], hot)
    assert free.codes.max() >= size > kept.codes.max()
    greedy = SamplingConfig(temperature=0.0)
    *_, kept = generate(model, Request(40, prompt, num_codes=4), [0], greedy)
    assert kept.codes[:, :, 3:].max() < 4


def test_another_codec_in_the_folder_is_refused_by_name(folders, tmp_path):
    import shutil

    shutil.copytree(folders["csm"], tmp_path / "csm")
    edit(tmp_path / "csm" / "codec", lambda _, tensors: tensors["encoder.layers.0.conv.bias"].add_(0.1))
    assert "encoder.layers.0.conv.bias" in load_file(tmp_path / "csm" / "codec" / "model.safetensors")
    with pytest.raises(ValueError, match="was trained on codec 'mimi'"):
        load(tmp_path / "csm")


def test_bits_that_evaluate_counts_of_a_converted_csm_are_the_size_of_its_compressed_file(folders, tmp_path):
    audio = 0.3 * np.random.default_rng(0).standard_normal(3200).astype(np.float32)
    save_audio(tmp_path / "audio" / "noise.wav", audio, 8000)
    save_audio(tmp_path / "audio" / "other.wav", audio[::-1], 8000)
    model = str(folders["csm"])
    bits = 0.0
    for name in ("noise", "other"):
        clm = tmp_path / f"{name}.clm"
        main(["codec", "compress", str(tmp_path / "audio" / f"{name}.wav"), str(clm), "--model", model])
        bits += 8 * len(ClmFile.read(clm).payload)
    main(["evaluate", str(tmp_path / "audio"), "--model", model, "--json", str(tmp_path / "out.json")])
    report = json.loads((tmp_path / "out.json").read_text())
    counted = report["model"]["bits_per_second"] * report["duration_s"]
    assert counted == pytest.approx(bits, rel=0.01)
    first_frames = 2 * CSM["num_codebooks"] * math.log2(CSM["vocab_size"])
    assert first_frames > 0.011 * bits  # else it would be as close without them
