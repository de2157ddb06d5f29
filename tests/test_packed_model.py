"""Language models whose files hold 8 bits a number."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from codeclm.inference import loading
from codeclm.inference.loading import load, save_model
from codeclm.model import SpeechLM
from codeclm.model.codecs import SpectralCodec, load_codec
from codeclm.model.shapes import DepthConfig, TransformerConfig
from codeclm.model.weights import SCALE, pack_int8, unpack_int8

WIDE = dict(num_layers=2, num_heads=4, num_kv_heads=2)
CODES = torch.randint(0, 64, (2, 3, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def codec(make_codec) -> SpectralCodec:
    return make_codec(num_codebooks=3, codebook_size=64)


@pytest.fixture
def model(make_model, codec) -> SpeechLM:
    shapes = TransformerConfig(dim=64, ff_dim=128, **WIDE), DepthConfig(dim=64, ff_dim=128, **WIDE)
    return make_model(
        (0, 0, 0), codebook_size=64, backbone=shapes[0], depth=shapes[1], codec=codec, dtype=torch.float32
    )


@pytest.fixture
def folder(model, codec, tmp_path: Path) -> Path:
    save_model(model, codec, tmp_path / "packed", packed=True)
    return tmp_path / "packed"


def test_every_row_of_a_matrix_is_within_half_a_step_of_what_it_was(model):
    packed = pack_int8(model.state_dict(), axis=-1)
    assert packed["depth_decoder.heads"].dtype == torch.int8
    assert packed[f"depth_decoder.heads{SCALE}"].shape == (2, 64)  # a scale for each row of each codebook's matrix
    assert not any(name.endswith(f"norm.weight{SCALE}") for name in packed)
    for name, tensor in unpack_int8(packed).items():
        step = model.state_dict()[name].abs().amax(dim=-1, keepdim=True) / 127
        assert ((tensor - model.state_dict()[name]).abs() <= 0.501 * step).all()


@torch.no_grad()
def test_a_packed_model_is_a_third_as_large_and_computes_in_float32_what_its_file_holds(model, codec, folder, tmp_path):
    save_model(model, codec, tmp_path / "whole")
    sizes = [(path / "model.safetensors").stat().st_size for path in (folder, tmp_path / "whole")]
    assert sizes[0] < 0.35 * sizes[1]
    loaded = load(folder).model
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    whole, nll = model(CODES).nll.mean(), loaded(CODES).nll.mean()
    assert nll != whole and abs(nll / whole - 1) < 0.02
    rounded = unpack_int8(load_file(folder / "model.safetensors"))
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in rounded.items())


def test_scales_that_are_missing_changed_or_of_another_shape_are_told_in_one_line(folder):
    path = folder / "model.safetensors"
    name, whole = f"head_0.weight{SCALE}", load_file(path)
    for tensor, told in (
        (None, "checksums.json has another sha256"),
        (2 * whole[name], "checksums.json has another sha256"),
        (whole[name][:3], r"tensor 'head_0.weight.scale' is \[3\], which does not fit"),
    ):
        changed = {key: value for key, value in whole.items() if key != name}
        save_file(changed if tensor is None else changed | {name: tensor}, path)
        with pytest.raises(ValueError, match=told):
            load(folder)


def test_transformers_does_not_take_the_8_bits_for_the_weights(folder):
    with pytest.raises(ValueError, match="in 8 bits.*codeclm.load"):
        AutoModel.from_pretrained(folder)


@torch.no_grad()
def test_a_packed_model_can_be_shared(folder, tmp_path):
    lm = load(folder)
    lm.save_pretrained(tmp_path / "shared", packed=True)
    again = load(tmp_path / "shared")
    torch.testing.assert_close(again.model(CODES).nll, lm.model(CODES).nll, rtol=0, atol=1e-4)


def test_the_recipe_embeds_codec_and_model_in_8_bits_and_only_of_one_kind(model, codec, tmp_path, monkeypatch):
    from codeclm.model import codecs
    from codeclm.train.recipes import embed

    place = tmp_path / "pretrained"
    place.mkdir()
    for module in (loading, embed):
        monkeypatch.setattr(module, "EMBEDDED_MODEL", place)
    monkeypatch.setattr(codecs, "EMBEDDED_CODEC", place)
    codec.save(tmp_path / "codec")
    packed = embed.pack_codec(tmp_path / "codec", tmp_path / "int8")
    embed.codec(packed)
    int8 = load_codec(packed)
    assert load_codec().fingerprint == int8.fingerprint != codec.fingerprint
    save_model(model, codec, tmp_path / "other")
    with pytest.raises(ValueError, match="was trained on another codec than the embedded one"):
        embed.model(tmp_path / "other", int8=True)
    model.config.codec = type(model.config.codec).of(int8)
    save_model(model, int8, tmp_path / "own")
    embed.model(tmp_path / "own", int8=True)
    assert load_file(place / "model.safetensors")["head_0.weight"].dtype == torch.int8
    assert {path.name for path in place.iterdir()} >= {"checksums.json", "codec.safetensors", "config.json"}
    assert load(device="cpu").codec.fingerprint == int8.fingerprint
