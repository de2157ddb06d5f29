"""inference/loading.py: a whole model loads and gives the same numbers; whatever is broken is named in one line."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from codeclm.inference.loading import load, load_speech_lm, save_model
from codeclm.model import SpeechLM

from .options import DEPTHS

CODES = torch.randint(0, 8, (2, 3, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def codec(make_codec):
    return make_codec()


@pytest.fixture(scope="module")
def model(make_model, codec):
    return make_model((0, 1, 1), codec=codec, dtype=torch.float32)


@pytest.fixture
def folder(model, codec, tmp_path) -> Path:
    save_model(model, codec, tmp_path / "m")
    return tmp_path / "m"


@torch.no_grad()
def test_a_saved_model_and_its_codec_load_and_give_the_same_nll(model, codec, folder):
    generator = load(folder)
    assert generator.codec.fingerprint == codec.fingerprint
    torch.testing.assert_close(generator.model(CODES).nll, model(CODES).nll)
    assert not generator.model.training
    assert load(str(folder)).generate(None, 0.05).audio.shape == (400,)


@torch.no_grad()
def test_a_training_run_loads_from_its_model_folder(model, folder, tmp_path):
    (tmp_path / "run").mkdir()
    folder.rename(tmp_path / "run" / "model")
    torch.testing.assert_close(load(tmp_path / "run").model(CODES).nll, model(CODES).nll)


@torch.no_grad()
def test_half_precision_files_compute_in_float32(model, codec, tmp_path):
    save_model(model, codec, tmp_path, torch.float16)
    stored = load_file(tmp_path / "model.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in stored.values())
    loaded = load(tmp_path).model
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    torch.testing.assert_close(loaded(CODES).nll, model(CODES).nll, rtol=0, atol=0.02)
    assert next(model.parameters()).dtype == torch.float32  # what was saved is as it was


def edit_config(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return edit


def truncate(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])


def empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


BROKEN = {
    "no folder": (shutil.rmtree, "no such model folder"),
    "empty folder": (empty, "holds no model"),
    "config missing": (lambda f: (f / "config.json").unlink(), "config.json"),
    "config not JSON": (lambda f: (f / "config.json").write_text('{"a'), "config.json: is not valid JSON"),
    "config not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json: is not valid JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "holds a list, not an object of settings"),
    "config nested too deep": (lambda f: (f / "config.json").write_text("[" * 10**5), "is not valid JSON"),
    "foreign model": (edit_config(lambda c: c.update(model_type="mimi")), "not a codeclm model's config"),
    "unknown setting": (
        edit_config(lambda c: c.update(num_codebook=3)),
        "unknown setting 'num_codebook'; did you mean 'num_codebooks'",
    ),
    "nested typo": (edit_config(lambda c: c["depth"].update(widht=3)), "'depth.widht'; did you mean 'depth."),
    "nested of another kind": (
        edit_config(lambda c: c.update(depth=3)),
        "depth is 3; it must be an object of settings",
    ),
    "setting of another kind": (edit_config(lambda c: c.update(num_codebooks="three")), "num_codebooks is 'three'; it"),
    "number as text": (
        edit_config(lambda c: c["backbone"].update(norm_eps="1e-06")),
        "backbone.norm_eps is '1e-06'; it",
    ),
    "truth as text": (
        edit_config(lambda c: c["codec"].update(fingerprint=True)),
        "codec.fingerprint is True; it must be",
    ),
    "half a position": (
        edit_config(lambda c: c["backbone"].update(sliding_window=1.5)),
        "backbone.sliding_window is 1.5",
    ),
    "wider than memory": (edit_config(lambda c: c["depth"].update(dim=10**12)), "dim 1000000000000"),
    "wider than the file": (
        edit_config(lambda c: c["backbone"].update(dim=1 << 20, head_dim=1 << 10)),
        r"should be \[.*1048576",
    ),
    "deeper than the file": (edit_config(lambda c: c["backbone"].update(num_layers=1000)), "is missing"),
    "a vocabulary": (edit_config(lambda c: c["text"].update(vocab_size=1 << 24)), "'text_embedding.weight' is missing"),
    "heads that do not divide": (edit_config(lambda c: c["depth"].update(num_heads=3)), "num_heads 3"),
    "weights missing": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "weights cut off": (truncate, "model.safetensors: is not a whole safetensors file"),
    "weights empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "is not a whole safetensors file"),
    "tensor missing": (edit_weights(lambda w: w.pop("head_0.weight")), "tensor 'head_0.weight' is missing"),
    "tensor unknown": (edit_weights(lambda w: w.update(other=torch.ones(2))), "tensor 'other' does not belong"),
    "tensor NaN": (
        edit_weights(lambda w: w["depth_decoder.heads"][0, 0].fill_(float("nan"))),
        "'depth_decoder.heads' holds NaN",
    ),
    "scales of another size": (
        edit_weights(lambda w: w.update({"head_0.weight.scale": torch.ones(5)})),
        r"tensor 'head_0.weight.scale' is \[5\], which does not fit 'head_0.weight'",
    ),
    "tensor shape": (
        edit_weights(lambda w: w.update({"depth_decoder.project.weight": torch.ones(2, 2)})),
        r"'depth_decoder.project.weight' is \[2, 2\], should be \[8, 16\]",
    ),
    "fewer codebooks": (edit_config(lambda c: c.update(num_codebooks=2, delays=[0, 0])), "should be"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named_in_one_line(folder, name):
    damage, message = BROKEN[name]
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors"])
def test_a_pickle_is_never_opened(folder, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises((ValueError, FileNotFoundError), match=str(folder)):
        load(folder)
    assert not (tmp_path / "exploded").exists()
    pickle.loads((folder / name).read_bytes())  # this one would have done it
    assert (tmp_path / "exploded").exists()


def test_a_codec_folder_replaced_by_another_codec_is_refused(make_codec, folder, codec):
    shutil.rmtree(folder / "codec")
    other = make_codec(seed=1)
    other.save(folder / "codec")
    with pytest.raises(ValueError, match=f"{codec.fingerprint[:12]}.*{other.fingerprint[:12]}"):
        load(folder)


def test_a_broken_codec_is_named(folder):
    (folder / "codec" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="codec/model.safetensors: is not a whole safetensors file"):
        load(folder)


@pytest.mark.slow
def test_load_is_the_function_whatever_was_imported_before():
    code = "import codeclm.train.loop; from codeclm.inference import load; assert callable(load), load"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).returncode == 0


def test_a_checkpoint_of_a_run_names_the_run_to_give(tmp_path):
    step = tmp_path / "run" / "step-00000010"
    step.mkdir(parents=True)
    (step / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=f"{step}: is what a training run goes on from, .* give {step.parent}$"):
        load(step)


# --- weights from before the depth decoder was a module ---


def old_name(name: str) -> str:
    for part, old in (("project.", "project."), ("embedding.", "depth_embedding."), ("heads", "depth_heads"),
                      ("text_embedding.", "depth_text_embedding."), ("head_0.", "head_0."),
                      ("transformer.", "depth_decoder.")):  # fmt: skip
        if name.startswith(f"depth_decoder.{part}"):
            return old + name.removeprefix(f"depth_decoder.{part}")
    return name


@pytest.mark.parametrize("option", ["default", "moshi", "csm"])
def test_weights_under_the_names_of_the_first_version_load_as_today(make_model, make_codec, tmp_path, option):
    codec = make_codec()
    model = make_model(codec=codec, dtype=torch.float32, depth=DEPTHS[option])
    save_model(model, codec, tmp_path / "new")
    names = {name: old_name(name) for name in model.state_dict()}
    assert sum(old != new for new, old in names.items()) > 10 and "depth_heads" in names.values()
    old = {names[name]: tensor.clone() for name, tensor in model.state_dict().items()}
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    save_file(old, tmp_path / "old" / "model.safetensors")
    (tmp_path / "old" / "checksums.json").unlink()
    loaded = load_speech_lm(tmp_path / "old").state_dict()
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_from_pretrained_refuses_a_missing_tensor_instead_of_making_one_up(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("depth_decoder.heads")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"tensor 'depth_decoder.heads' is missing \(1 in all\)"):
        SpeechLM.from_pretrained(folder)
