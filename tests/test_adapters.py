"""LoRA: adapters learn in place of the weights, load with their base, switch, merge, and resume to the bit."""

import json
import re
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import codeclm
from codeclm.data import TokenStore
from codeclm.data.split import split_heldout
from codeclm.inference import argument_checks
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.loading import checkpoint_hash, model_folder, save_model
from codeclm.train import runs as runs_module
from codeclm.train.alarms import CheckFailed
from codeclm.train.cli import main
from codeclm.train.comparison import bits
from codeclm.train.finetune_config import LoraOptions

from .test_train_ranks import BIN, torchrun
from .training import metrics

PeftModel = pytest.importorskip("peft").PeftModel
LORA = {"lora": {"rank": 2}, "steps": 3, "evaluate_every": 3, "bf16": False, "optimizer": {"learning_rate": 3e-2}}


@pytest.fixture(scope="module")
def base(tmp_path_factory, make_model, make_codec) -> Path:
    folder, codec = tmp_path_factory.mktemp("base") / "model", make_codec()
    save_model(make_model((0, 0, 0), codec=codec), codec, folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base, audio) -> list[Path]:
    """Two runs with other adapters of one base."""
    folder = tmp_path_factory.mktemp("runs")
    lm = codeclm.load(base, device="cpu")
    for seed in (0, 1):
        codeclm.train.finetune(lm, audio, folder / str(seed), seed=seed, **LORA)
    return [folder / "0", folder / "1"]


def load(*args, **options) -> SpeechGenerator:
    return codeclm.load(*args, device="cpu", **options)


def codes_of(lm: SpeechGenerator) -> np.ndarray:
    return lm.generate(duration_s=0.3, seed=0).codes


def weights(lm: SpeechGenerator) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not one[name].equal(other[name])]


def test_a_run_with_adapters_holds_them_alone_and_loads_with_its_base(runs, base):
    files = {path.name for path in (runs[0] / "model").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "config.json", "checksums.json"}
    changed = differing(weights(load(base)), weights(load(runs[0])))
    assert "backbone.blocks.0.attention.query.weight" in changed and "head_0.weight" in changed
    assert not [name for name in changed if "embedding" in name or "norm" in name]


def test_the_adapters_are_those_that_learned(runs, base, audio):
    """The model that is loaded scores as the run did while it held its adapters beside the weights."""
    best = metrics(runs[0], "heldout_bits_per_second")[3]
    (row, *_) = json.loads((runs[0] / "comparison.json").read_text())["rows"]
    assert row["name"] == "new voice, held out" and row["before"] != row["after"]
    store, config = TokenStore(runs[0] / "tokens"), json.loads((runs[0] / "config.json").read_text())
    held = split_heldout(store, config["batch"]["heldout_share"], 0)[1].tolist()
    assert bits(load(runs[0]), store, held) == pytest.approx(best, rel=1e-6)  # another order of the same sums


def test_peft_itself_reads_the_adapters(runs, base):
    theirs = PeftModel.from_pretrained(load(base).model, str(runs[0] / "model")).merge_and_unload()
    ours = load(runs[0]).model
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(tensor, ours.state_dict()[name], atol=1e-7)


def test_adapters_that_are_switched_give_the_numbers_of_adapters_that_are_loaded(runs, base):
    """Also through the fused frame step, whose weights are made anew."""
    one, other, plain = load(runs[0]), load(runs[1]), load(base)
    lm = load(base, adapter=runs[0])
    assert lm.fingerprint == one.fingerprint != plain.fingerprint and lm.name == str(runs[0])
    drawn = codes_of(lm)
    assert np.array_equal(drawn, codes_of(one))
    lm.use_adapter(runs[1])
    assert not differing(weights(lm), weights(other)) and lm.fingerprint == other.fingerprint
    assert np.array_equal(codes_of(lm), codes_of(other)) and not np.array_equal(codes_of(lm), drawn)
    lm.use_adapter(None)
    assert not differing(weights(lm), weights(plain)) and lm.name == str(base)
    assert np.array_equal(codes_of(lm), codes_of(plain))


def test_adapters_of_another_base_are_refused_in_one_line(runs, base, tmp_path, make_model, make_codec):
    codec = make_codec()
    save_model(make_model((0, 0, 0), codec=codec, seed=1), codec, tmp_path / "other")
    lm = load(tmp_path / "other")
    before = weights(lm)
    with pytest.raises(ValueError, match=r"these adapters belong to the weights .* not to these of .*other"):
        lm.use_adapter(runs[0])
    assert not differing(weights(lm), before)


def test_a_missing_base_is_told_with_the_adapters_that_need_it(runs, tmp_path):
    shutil.copytree(runs[0] / "model", tmp_path / "copy")
    path = tmp_path / "copy/adapter_config.json"
    path.write_text(path.read_text().replace(json.loads(path.read_text())["base_model_name_or_path"], "/nowhere/base"))
    with pytest.raises(FileNotFoundError, match="the base of these adapters is not there"):
        load(tmp_path / "copy")


@pytest.mark.parametrize("broken", ["adapter_model.safetensors", "adapter_config.json"])
def test_changed_adapters_are_refused(runs, base, tmp_path, broken):
    shutil.copytree(runs[0] / "model", tmp_path / "copy")
    path = tmp_path / "copy" / broken
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=broken):
        load(base, adapter=tmp_path / "copy")


def test_merge_writes_a_plain_model_of_the_same_weights(runs, base, audio, tmp_path):
    codeclm.train.finetune(load(base), audio, tmp_path / "run", **LORA | {"lora": {"rank": 2, "merge": True}})
    merged = load(tmp_path / "run/merged")
    assert not differing(weights(merged), weights(load(tmp_path / "run")))
    assert not (tmp_path / "run/merged/adapter_config.json").exists()


def test_the_hash_of_a_checkpoint_covers_base_and_adapters(runs, base):
    hashes = {checkpoint_hash(model_folder(name)) for name in (base, *runs)}
    assert len(hashes) == 3


def test_a_run_with_adapters_resumes_to_the_bit(base, audio, tmp_path):
    long = LORA | {"save_every": 2, "steps": 4, "input_dropout": 0.2}
    codeclm.train.finetune(base, audio, tmp_path / "whole", **long)
    codeclm.train.finetune(base, audio, tmp_path / "cut", **long)
    shutil.rmtree(tmp_path / "cut/step-00000004")
    shutil.rmtree(tmp_path / "cut/model")
    codeclm.train.finetune(base, audio, tmp_path / "cut", **long)
    for file in ("model/adapter_model.safetensors", "step-00000004/model.safetensors"):
        ours, theirs = (load_file(tmp_path / run / file) for run in ("whole", "cut"))
        assert not differing(ours, theirs)


def test_another_rank_in_the_same_folder_is_another_run(base, audio, tmp_path, capsys):
    flags = [str(audio), "--from", str(base), "--out", str(tmp_path / "run"), "--steps", "1", "--no-bf16"]
    main(["finetune", *flags, "--lora.rank", "2"])
    for rank in ([], ["--lora.rank", "3"]):
        with pytest.raises(SystemExit):
            main(["finetune", *flags, *rank])
        assert "was made with another lora" in capsys.readouterr().err


def test_adapters_on_adapters_are_refused(runs, audio, tmp_path):
    with pytest.raises(ValueError, match="holds adapters; new ones go on a whole model"):
        codeclm.train.finetune(runs[0], audio, tmp_path / "run", **LORA)


def test_the_verbs_take_a_run_of_adapters_as_any_model(runs, audio, tmp_path):
    main(["evaluate", str(audio), "--model", str(runs[0]), "--json", str(tmp_path / "report.json")])
    main(["generate", "--model", str(runs[0]), "--duration", "0.2", "--out", str(tmp_path / "out.wav")])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["checkpoint_hash"] == checkpoint_hash(model_folder(runs[0])) and (tmp_path / "out.wav").exists()


def test_without_peft_the_extra_is_named(base, audio, tmp_path, monkeypatch):
    monkeypatch.setattr(argument_checks, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'codeclm\[lora\]'"):
        codeclm.train.finetune(base, audio, tmp_path / "run", **LORA)


@pytest.mark.slow
def test_two_ranks_give_the_adapters_of_one_also_with_replay(base, audio, tmp_path):
    flags = [audio, "--from", base, "--lora.rank", "2", "--replay", "self", "--no-bf16", "--input-dropout", "0"]
    flags = [*map(str, flags), "--steps", "4", "--copies", "2", "--evaluate-every", "4"]
    main(["finetune", *flags, "--out", str(tmp_path / "one")])
    status, output = torchrun("--no-python", BIN / "codeclm", "finetune", *flags, "--out", tmp_path / "two")
    assert status == 0 and output.count("new voice, held out") == 1, output[-3000:]
    one, two = (load_file(tmp_path / name / "model/adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and any(tensor.any() for name, tensor in one.items() if "lora_B" in name)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5)


def test_lora_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="rank is -1"):
        LoraOptions(rank=-1)


def test_a_check_before_a_run_looks_for_the_gradients_of_adapters_alone(base, audio, tmp_path, caplog):
    caplog.set_level("INFO", "codeclm")
    with suppress(CheckFailed):  # a base that knows nothing rings alarms of its own
        codeclm.train.finetune(codeclm.load(base, device="cpu"), audio, tmp_path / "run", check=True, **LORA)
    assert any(re.fullmatch(r"pass  gradients: all \d+ adapters get one", message) for message in caplog.messages)


def test_an_adapter_that_cannot_learn_is_found_before_the_run(base, audio, tmp_path, monkeypatch):
    frozen = runs_module.with_adapters

    def with_one_frozen(*args):
        adapters = frozen(*args)
        next(p for name, p in adapters.named_parameters() if "lora_B" in name).requires_grad_(False)
        return adapters

    monkeypatch.setattr(runs_module, "with_adapters", with_one_frozen)
    with pytest.raises(CheckFailed, match="gradients"):
        codeclm.train.finetune(codeclm.load(base, device="cpu"), audio, tmp_path / "run", check=True, **LORA)
