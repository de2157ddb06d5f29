"""inference/foreign.py: a CSM or Moshi folder of transformers' is scored as it is, like its conversion."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import codeclm
from codeclm.data.audio_out import save_audio
from codeclm.inference.convert import import_folder
from codeclm.inference.evaluate.items import read_items
from codeclm.inference.loading import load
from codeclm.train.cli import main

from .checkpoints import MIMI, csm, edit, moshi
from .test_load_converted import fill_codebooks

MAKE = {"csm": csm, "moshi": moshi}
PREFIX = {"csm": "codec_model.", "moshi": "audio_encoder."}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """csm and moshi as transformers wrote them, as codeclm convert wrote them, without their Mimi, and speech."""
    root = tmp_path_factory.mktemp("foreign")
    for kind, make in MAKE.items():
        make(root / kind)
        edit(root / kind, fill_codebooks)
        import_folder(kind, root / kind, root / f"{kind}-ours")
        shutil.copytree(root / kind, root / f"{kind}-bare")
        edit(root / f"{kind}-bare", lambda _, tensors, kind=kind: drop(tensors, PREFIX[kind]))
    rng = np.random.default_rng(0)
    for number in range(4):
        save_audio(root / "speech" / f"{number}.wav", 0.3 * rng.standard_normal(2400 + 100 * number), 8000)
    pairs = [{"better": f"speech/{a}.wav", "worse": f"speech/{b}.wav"} for a, b in ((0, 1), (2, 3))]
    (root / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return root


def drop(tensors: dict[str, torch.Tensor], prefix: str) -> None:
    for key in [key for key in tensors if key.startswith(prefix)]:
        del tensors[key]


def score(data: Path, model: Path, out: Path, *more: str) -> dict:
    main(["evaluate", str(data), "--model", str(model), "--json", str(out), *more])
    return json.loads(out.read_text())


@pytest.mark.parametrize("kind", MAKE)
def test_a_folder_of_transformers_has_the_numbers_of_its_conversion(kind, folders, tmp_path):
    direct = score(folders / "speech", folders / kind, tmp_path / "direct.json")
    converted = score(folders / "speech", folders / f"{kind}-ours", tmp_path / "converted.json")
    bare = score(folders / "speech", folders / f"{kind}-bare", tmp_path / "bare.json", "--codec",
                 str(folders / f"{kind}-ours" / "codec"))  # fmt: skip
    assert 100 < direct["model"]["bits_per_second"] != direct["raw_bits_per_second"]
    for report in (direct, converted, bare):
        del report["checkpoint_hash"]  # over other files
    assert direct == converted == bare


def test_pairs_are_scored_with_it_too_and_its_hash_is_that_of_its_files(folders, tmp_path):
    hashes = []
    for name in ("csm", "csm-ours"):
        score(folders / "pairs.jsonl", folders / name, tmp_path / "pairs.json", "--out", str(tmp_path / name))
        hashes.append(json.loads((tmp_path / name / "suite.json").read_text())["checkpoint_hash"])
    assert read_items(tmp_path / "csm") == read_items(tmp_path / "csm-ours") and hashes[0] != hashes[1]
    shutil.copytree(folders / "csm", tmp_path / "changed")
    edit(tmp_path / "changed", lambda _, tensors: tensors["lm_head.weight"].add_(0.1))
    values = json.loads((folders / "csm" / "config.json").read_text())
    (tmp_path / "same").mkdir()
    shutil.copy(folders / "csm" / "model.safetensors", tmp_path / "same")
    (tmp_path / "same" / "config.json").write_text(json.dumps(dict(reversed(values.items()))))
    found = [codeclm.inference.loading.checkpoint_hash(tmp_path / name) for name in ("same", "changed")]
    assert found[0] == hashes[0] != found[1]


def test_it_speaks_and_is_saved_as_a_model_folder_of_ours(folders, tmp_path):
    lm = load(folders / "moshi")
    lm.save_pretrained(tmp_path / "saved")
    audio = 0.3 * torch.randn(800, generator=torch.Generator().manual_seed(1)).numpy()
    codes = [model.generate((audio, 800), 0.2, seed=3).codes for model in (lm, load(tmp_path / "saved"))]
    np.testing.assert_array_equal(*codes)


@pytest.mark.parametrize("kind", MAKE)
def test_a_mimi_that_is_missing_or_another_is_told_in_a_line(kind, folders, tmp_path, capsys):
    with pytest.raises(SystemExit):
        score(folders / "speech", folders / f"{kind}-bare", tmp_path / "no.json")
    said = capsys.readouterr().err
    assert f"holds no Mimi (no tensor '{PREFIX[kind]}...')" in said and "--codec MIMI" in said
    shutil.copytree(folders / f"{kind}-ours" / "codec", tmp_path / "other")
    edit(tmp_path / "other", lambda _, tensors: tensors["encoder.layers.0.conv.bias"].add_(0.1))
    with pytest.raises(ValueError, match="was trained on codec 'mimi'"):
        load(folders / kind, codec=tmp_path / "other")
    with pytest.raises(ValueError, match=f"is 'spectral' with .* needs a Mimi of {19 if kind == 'csm' else 16}"):
        load(folders / f"{kind}-bare", codec="spectral:3" if kind == "moshi" else "spectral:4")
    with pytest.raises(ValueError, match="has its own; only a CSM or Moshi may lack it"):
        load(folders / f"{kind}-ours", codec=tmp_path / "other")
    assert MIMI["codebook_size"] == 16


def test_another_model_type_is_named_with_what_can_be_done(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    shutil.copy(Path(codeclm.inference.loading.__file__).parent.parent / "model/pretrained/model.safetensors", tmp_path)
    with pytest.raises(ValueError, match="nor CSM's or Moshi's .model_type is 'llama'.*through an adapter"):
        load(tmp_path)
