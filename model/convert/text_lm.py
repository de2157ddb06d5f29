"""Warm start: a SpeechLM whose backbone and text stream are a text language model's, everything else fresh.

With text alone, and the text model's own BOS token before it, its logits are the text model's.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from ..lm import SpeechLM
from ..shapes import TextConfig, TransformerConfig
from ..speech_lm_config import SpeechLMConfig
from .checkpoint import Tensors, read_json, refuse_quantised
from .settings import llama_triples, transformer_settings

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def from_text_lm(source: Path, bos_token_id: int | None = None, **settings: Any) -> SpeechLM:
    """A SpeechLM grown from a Llama, Mistral, Qwen2 or Qwen3 checkpoint: a folder of transformers' or a .gguf file.

    bos_token_id: the token whose embedding begins a text (default: the checkpoint's own).
    settings: fields of SpeechLMConfig other than backbone and text, such as num_codebooks, depth, pattern, codec.
    What is fresh is drawn from torch's generator: seed it. BOS of the codes starts as zeros, so that text alone begins
    as the text model does.
    Raises FileNotFoundError, or ValueError naming what cannot be expressed.
    """
    return grow(read_text_lm(source), str(source), bos_token_id, **settings)


def read_text_lm(source: Path) -> PreTrainedModel:
    """The text model of a checkpoint, in float32, as transformers reads it. Nothing in the checkpoint is run.

    Raises FileNotFoundError, or ValueError for a model of another family, quantised, or with tensors missing.
    """
    folder, options = source, {}
    if source.suffix == ".gguf":
        folder, options = source.parent, {"gguf_file": source.name}
        if not source.is_file():
            raise FileNotFoundError(f"{source}: no such file")
        if find_spec("gguf") is None:
            raise ImportError("reading a .gguf file needs: pip install 'codeclm[gguf]'")
    elif not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder (give a folder of transformers', or a .gguf file)")
    else:
        values = read_json(source / "config.json")
        check_family(values.get("model_type"), str(source))
        refuse_quantised(values, str(source))
    model, loaded = _load(folder, str(source), options)
    check_family(model.config.model_type, str(source))
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if loaded[problem]:
            raise ValueError(
                f"{source}: {problem.replace('_keys', ' tensor')} '{sorted(map(str, loaded[problem]))[0]}'"
            )
    return model


def _load(folder: Path, name: str, options: dict[str, str]) -> tuple[Any, dict[str, Any]]:
    """-> (model, what was missing or unexpected), without transformers' own report of it."""
    loader: Any = AutoModelForCausalLM
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return loader.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True, **options,
        )  # fmt: skip
    except Exception as error:  # a broken file ends in any of a dozen classes
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: transformers cannot read this checkpoint ({reason})") from None
    finally:
        logging.set_verbosity(verbosity)


def check_family(model_type: Any, name: str) -> None:
    if model_type not in FAMILIES:
        raise ValueError(f"{name}: model_type '{model_type}' cannot be expressed; choose one of {', '.join(FAMILIES)}")


def grow(text_model: PreTrainedModel, name: str, bos_token_id: int | None = None, **settings: Any) -> SpeechLM:
    """The SpeechLM of `from_text_lm`, from a model of transformers; `name` is what messages call it."""
    theirs: Any = text_model.config
    backbone = backbone_config(theirs, name)
    vocab, width, tied = theirs.vocab_size, backbone.dim, bool(theirs.tie_word_embeddings)
    bos = bos_token_id if bos_token_id is not None else theirs.bos_token_id
    if not isinstance(bos, int) or not 0 <= bos < vocab:
        raise ValueError(f"{name}: bos_token_id is {bos}; give one that is, 0 to {vocab - 1}")
    model = SpeechLM(SpeechLMConfig(backbone=backbone, text=TextConfig(vocab, tied=tied), **settings))
    source = Tensors(text_model.state_dict(), name)
    embedding = source.take("model.embed_tokens.weight", vocab, width)
    ours = source.rename(llama_triples(backbone, "backbone", "model"))
    ours["text_embedding.weight"] = torch.cat([embedding, embedding[bos : bos + 1]])
    if not tied:
        ours["text_head.weight"] = source.take("lm_head.weight", vocab, width)
    source.left.pop("lm_head.weight", None)  # of a tied model: the embedding again
    source.finish()
    unknown = model.load_state_dict(ours, strict=False).unexpected_keys
    assert not unknown, unknown
    with torch.no_grad():
        rows = model.frame_embedding.weight[:-1].unflatten(0, (-1, model.codebook_size + 1))
        rows[:, model.bos] = 0
    return model.eval()


def backbone_config(theirs: Any, name: str) -> TransformerConfig:
    """Raises ValueError for what a backbone cannot express."""
    layers = set(getattr(theirs, "layer_types", None) or ())
    if len(layers) > 1:
        raise ValueError(f"{name}: layer_types that differ ({', '.join(sorted(layers))}) cannot be expressed")
    window = 0
    if "sliding_attention" in layers or theirs.model_type == "mistral":
        window = theirs.sliding_window or 0
    return TransformerConfig(
        **transformer_settings(theirs, name, theirs.intermediate_size),
        qk_norm=theirs.model_type == "qwen3",
        qkv_bias=theirs.model_type == "qwen2",
        sliding_window=window,
    )
