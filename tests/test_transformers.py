"""model/lm.py as a model of transformers': embeddings, tuples, gradient checkpointing, devices, files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from codeclm.inference.loading import load
from codeclm.model import SpeechLM

from .options import OPTIONS, example


def gradients(model: SpeechLM, inputs: dict) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    model(**inputs, ends=torch.ones(len(inputs["codes"]), dtype=torch.bool)).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")  # newer releases have another name for it
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("option", ["default", "moshi", "flatten", "llama", "text tied"])
def test_gradient_checkpointing_changes_no_gradient(make_model, option, reentrant):
    model = make_model(**OPTIONS.get(option, {})).train()
    for block in model.backbone.blocks:
        block.dropout = 0.1  # drawn again in the backward pass, and the same
    inputs = example(model, batch=3, num_frames=6)
    plain = gradients(model, inputs)
    calls = []
    model.backbone.blocks[0].up.register_forward_hook(lambda *_: calls.append(1))
    gradients(model, inputs)
    once = len(calls)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    saved = gradients(model, inputs)
    assert len(calls) - once == 2 * once  # each block was computed twice
    for name, gradient in plain.items():
        torch.testing.assert_close(saved[name], gradient, rtol=0, atol=1e-9)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


@torch.no_grad()
def test_a_tuple_is_given_where_it_is_asked_for(make_model):
    model = make_model()
    inputs = example(model)
    whole, parts = model(**inputs), model(**inputs, return_dict=False)
    assert isinstance(parts, tuple) and len(parts) == len(whole.to_tuple())
    assert torch.equal(parts[0], whole.loss) and torch.equal(parts[1], whole.nll)


@torch.no_grad()
def test_the_input_embeddings_can_be_asked_for_and_replaced(make_model):
    model = make_model()
    inputs = example(model)
    before, table = model(**inputs).nll, model.get_input_embeddings()
    assert table.weight.shape == (3 * 8 + 1, 16)
    other = torch.nn.Embedding.from_pretrained(table.weight + torch.randn_like(table.weight))
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other and not torch.allclose(model(**inputs).nll, before)
    model.set_input_embeddings(table)
    assert torch.equal(model(**inputs).nll, before)


@pytest.mark.parametrize(
    "device_map",
    [{"": "disk"}, {"backbone": "disk", "": "cpu"}, {"frame_embedding": "disk", "backbone": "cpu", "": "cpu"}],
)
def test_offloaded_weights_are_refused_in_one_line(make_model, tmp_path, device_map):
    make_model(dtype=torch.float32).save_pretrained(tmp_path / "m")
    for loader in (SpeechLM, AutoModel):
        with pytest.raises(ValueError, match="device_map: a SpeechLM must be on one device") as caught:
            loader.from_pretrained(tmp_path / "m", device_map=device_map, offload_folder=tmp_path / "off")
        assert "\n" not in str(caught.value)


def test_a_device_map_that_would_have_to_offload_is_refused(make_model, tmp_path):
    make_model(dtype=torch.float32).save_pretrained(tmp_path / "m")
    options = dict(device_map="auto", max_memory={"cpu": 4000}, offload_folder=tmp_path / "off")
    with pytest.raises(ValueError, match="device_map: a SpeechLM must be on one device, not on cpu, disk"):
        SpeechLM.from_pretrained(tmp_path / "m", **options)


@torch.no_grad()
@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"])
def test_a_device_map_to_one_device_loads(make_model, tmp_path, device_map):
    model = make_model(dtype=torch.float32)
    model.save_pretrained(tmp_path / "m")
    inputs = example(model)
    loaded = SpeechLM.from_pretrained(tmp_path / "m", device_map=device_map)
    torch.testing.assert_close(loaded(**inputs).nll.cpu(), model(**inputs).nll, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_auto_model_knows_the_model_once_the_class_was_imported(make_model, tmp_path):
    make_model(dtype=torch.float32).save_pretrained(tmp_path / "m")
    code = (
        "import sys; from codeclm.model import SpeechLM; from transformers import AutoConfig, AutoModel;"
        "assert AutoConfig.from_pretrained(sys.argv[1]).num_codebooks == 3;"
        "assert isinstance(AutoModel.from_pretrained(sys.argv[1]), SpeechLM)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_shared_model_is_whole_in_any_place(make_model, make_codec, tmp_path):
    codec = make_codec()
    from codeclm.inference.loading import save_model

    save_model(make_model((0, 1, 1), codec=codec, dtype=torch.float32), codec, tmp_path / "own")
    for name, lm in (("own", load(tmp_path / "own")), ("embedded", load())):
        assert (lm.tokenizer is not None) == (name == "embedded")
        lm.save_pretrained(tmp_path / "shared" / name)
        folder = (tmp_path / "shared" / name).rename(tmp_path / f"moved {name}")
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        both = {"config.json", "model.safetensors", "checksums.json"}
        written = {"tokenizer.model", "ngram.safetensors"} if lm.tokenizer else set()
        assert files == both | {f"codec/{file}" for file in both} | written | {"README.md"}
        again = load(folder)
        assert again.codec.fingerprint == lm.codec.fingerprint
        assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), lm.model.parameters(), strict=True))
        card = (folder / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: codeclm") and lm.model.config.pattern in card
        with pytest.raises(FileExistsError, match="exists already"):
            lm.save_pretrained(folder)


def test_what_is_written_can_be_read_by_whom_the_umask_allows(make_model, make_codec, tmp_path):
    from codeclm.inference.loading import save_model

    codec = make_codec()
    save_model(make_model(codec=codec, dtype=torch.float32), codec, tmp_path / "m")
    (tmp_path / "plain").touch()
    expected = (tmp_path / "plain").stat().st_mode
    modes = {
        path.relative_to(tmp_path): path.stat().st_mode for path in Path(tmp_path / "m").rglob("*.*") if path.is_file()
    }
    assert len(modes) == 6 and set(modes.values()) == {expected}, modes
    codec.save(tmp_path / "codec")
    assert {path.stat().st_mode for path in (tmp_path / "codec").iterdir()} == {expected}


def test_a_model_on_a_device_has_its_codec_there(make_model, make_codec, tmp_path):
    from codeclm.inference.loading import save_model

    codec = make_codec()
    save_model(make_model(codec=codec, dtype=torch.float32), codec, tmp_path / "m")
    lm = load(tmp_path / "m", device="cpu")
    assert lm.device == lm.codec.device == torch.device("cpu") and lm.to("auto") is lm
    with pytest.raises(ValueError, match="device 'tpu' is unknown; choose one of auto, cpu, cuda, mps"):
        load(tmp_path / "m", device="tpu")
    with pytest.raises(ValueError, match="device 'cuda:99' is not there"):
        lm.to("cuda:99")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["num_codebooks"] == 3
