"""A model that has learned nothing yet, for the codes of a token store."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..data.split import split_heldout
from ..data.text_times import TextTimes
from ..data.text_tokenizer import TextTokenizer
from ..data.token_store import TokenStore
from ..model.convert.text_lm import from_text_lm
from ..model.lm import SpeechLM
from ..model.shapes import DepthConfig
from ..model.speech_lm_config import SpeechLMConfig
from ..model.strict import strict
from .config import BatchConfig, TextOptions, TrainConfig


def new_tokenizer(stores: Sequence[TokenStore], text: TextOptions, batch: BatchConfig) -> TextTokenizer | None:
    """A tokenizer for the transcripts of the utterances that are trained on, if the model is to have a text stream.

    Raises FileNotFoundError if a text is to stand beside its sound and a store does not say when it is said.
    """
    if text.layout == "none":
        return None
    if text.layout == "timed":
        for store in stores:
            TextTimes(store)
    texts = (store.text(i) or "" for store in stores for i in split_heldout(store, *batch.split)[0])
    return TextTokenizer.train(texts, text.vocab_size, text.numbers, text.phonemes)


def new_model(
    store: TokenStore, config: TrainConfig, tokenizer: TextTokenizer | None = None, init_from: Path | None = None
) -> SpeechLM:
    """A SpeechLM with random weights (config.seed) for the codes of a store, and for text with a tokenizer.

    init_from: a Llama- or Qwen-family text model (a transformers folder, or a .gguf file) that becomes the backbone.
    """
    torch.manual_seed(config.seed)
    codec, (backbone, depth) = store.codec, config.model.parts
    layout = config.model.text.layout
    if layout == "aligned":  # else a frame's codes would not see the text of that very frame
        depth = replace(strict(DepthConfig, depth, name="depth"), first_codebook="depth", sees_text=True)
    settings: dict[str, Any] = {
        "num_codebooks": codec.num_codebooks,
        "codebook_size": codec.codebook_size,
        "depth": depth,
        "delays": list(config.model.delays) or None,
        "pattern": config.model.pattern,
        "context_frames": config.batch.max_frames,
        "codec": codec,
    }
    if init_from is not None:
        if tokenizer is not None:
            raise ValueError("a text model brings text tokens of its own: leave --model.text.layout out")
        return from_text_lm(init_from, **settings)
    text = None
    if tokenizer is not None and layout != "none":
        text = config.model.text.of_model(tokenizer.vocab_size, tokenizer.fingerprint)
    model = SpeechLM(SpeechLMConfig(backbone=backbone, text=text, **settings))
    return with_unit_start(model) if config.model.unit_start else model


@torch.no_grad()
def with_text(model: SpeechLM, tokenizer: TextTokenizer, text: TextOptions, seed: int = 0) -> SpeechLM:
    """The model with a text stream that it has yet to learn, beside all that it knows of codes.

    A token is embedded as large as the codes of a step are together, so that blocks hear both. Raises ValueError if it
    has a text stream, or the layout is "aligned", for which a depth decoder must have been trained to see text.
    """
    if model.text_size:
        raise ValueError(f"the model has a text stream (layout '{model.config.text.layout}'); leave --text.layout out")
    if text.layout == "aligned":
        raise ValueError("text.layout 'aligned' needs a model that was trained with it; 'timed' can be learned later")
    torch.manual_seed(seed)
    found = SpeechLM(model.config.changed(text=text.of_model(tokenizer.vocab_size, tokenizer.fingerprint)))
    missing, unexpected = found.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("text_") for name in missing), (missing, unexpected)
    of_codes = model.frame_embedding.weight.square().mean() * model.num_codebooks
    torch.nn.init.normal_(found.text_embedding.weight, std=float(of_codes.sqrt()))
    torch.nn.init.zeros_(found.text_embedding.weight[-1])  # BOS, which stands before audio alone, too
    embed_recent(found, float(of_codes.sqrt()))
    return found


@torch.no_grad()
def with_unit_start(model: SpeechLM) -> SpeechLM:
    """Let a new model begin with embeddings of a step that sum to variance 1, and a backbone that passes them on.

    Small embeddings make the first block amplify them, a hundredfold over a long run; what is told by a text is then
    lost among what the blocks have added.
    """
    torch.nn.init.normal_(model.frame_embedding.weight, std=model.num_codebooks**-0.5)
    if model.text_size:
        torch.nn.init.normal_(model.text_embedding.weight)
        embed_recent(model, 1.0)
    for block in model.backbone.blocks:
        torch.nn.init.zeros_(block.attention.output.weight)  # pyright: ignore
        torch.nn.init.zeros_(block.down.weight)  # pyright: ignore
    return model


def embed_recent(model: SpeechLM, std: float) -> None:
    """The token that is being said as large as one of the text's is, those that are told ahead of it together."""
    if count := model.config.num_recent_tokens:
        weight = model.text_recent_embedding.weight
        torch.nn.init.normal_(weight, std=std * count**-0.5)
        torch.nn.init.normal_(weight[: model.text_size], std=std)
