"""A new model, and a new text stream of one, before it has learned anything."""

from dataclasses import replace

import pytest
import torch

from codeclm.data.text_tokenizer import TextTokenizer
from codeclm.model.shapes import TransformerConfig
from codeclm.train.config import ModelConfig, TextOptions, TrainConfig
from codeclm.train.new_model import new_model, with_text


def test_a_unit_start_passes_on_embeddings_of_variance_one(make_store, make_codec, tmp_path):
    codec = make_codec(num_codebooks=3, codebook_size=64)
    codes = torch.randint(64, (200, 3), generator=torch.Generator().manual_seed(0)).numpy()
    store = make_store(tmp_path, [codes], codec, ["x"], ["words of a text"])
    tokenizer = TextTokenizer.train(["some words of a longer text, and more of them"] * 3, 280)
    shape = ModelConfig(backbone=TransformerConfig(dim=128, num_layers=2), text=TextOptions("first", vocab_size=280))
    small = new_model(store, TrainConfig(model=shape), tokenizer)
    model = new_model(store, TrainConfig(model=replace(shape, unit_start=True)), tokenizer)
    steps = torch.from_numpy(codes.T.copy())[None]
    with torch.no_grad():
        frames, spoken = model.embed_frames(steps), model.embed_text(torch.arange(280))
        torch.testing.assert_close(model.backbone(frames), model.backbone.norm(frames))
        assert abs(frames.std() - 1) < 0.1 and abs(spoken.std() - 1) < 0.1
        assert small.embed_frames(steps).std() < 0.1


def test_a_new_text_stream_changes_nothing_of_audio_alone(make_store, make_codec, tmp_path):
    codec = make_codec(num_codebooks=3, codebook_size=64)
    codes = torch.randint(64, (40, 3), generator=torch.Generator().manual_seed(0))
    model = new_model(make_store(tmp_path, [codes.numpy()], codec, ["x"]), TrainConfig()).eval()
    tokenizer = TextTokenizer.train(["words of a text"], 0)
    tagged = with_text(model, tokenizer, TextOptions("timed", lead_s=0.5)).eval()
    with torch.no_grad():
        torch.testing.assert_close(tagged(codes.T[None]).nll, model(codes.T[None]).nll, rtol=0, atol=0)
        frames, spoken = tagged.embed_frames(codes.T[None]), tagged.text_embedding.weight[:-1]
        assert 0.8 < spoken.std() / frames.std() < 1.25
    assert (tagged.config.text.lead_s, tagged.config.text.lag_s) == (0.5, TextOptions().lag_s)
    assert tagged.config.text.tokenizer == tokenizer.fingerprint and tagged.config.backbone == model.config.backbone
    with pytest.raises(ValueError, match="has a text stream"):
        with_text(tagged, tokenizer, TextOptions("first"))
    with pytest.raises(ValueError, match="'timed' can be learned later"):
        with_text(model, tokenizer, TextOptions("aligned"))
