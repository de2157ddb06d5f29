"""Text beside the codes, from the store to the command: a model trained on it speaks, transcribes and writes along.

The "speech" is spelling: each word is one letter, and each letter one frame with its own codes.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from codeclm.data.token_store import TokenStore
from codeclm.inference import SamplingConfig
from codeclm.inference.evaluate.score import evaluate, score_store
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.loading import load
from codeclm.inference.request import laid_out
from codeclm.inference.transcript import written_down
from codeclm.model.shapes import TransformerConfig
from codeclm.train.config import BatchConfig, LossConfig, ModelConfig, OptimizerConfig, TextOptions, TrainConfig
from codeclm.train.loop import train
from codeclm.train.new_model import new_model, new_tokenizer

from .spelling import LETTERS, drawn_texts

pytestmark = pytest.mark.slow

WORDS = 6
SHAPE = TransformerConfig(dim=32, num_layers=2, num_heads=4, num_kv_heads=4, ff_dim=64)
CONFIG = TrainConfig(
    steps=150,
    evaluate_every=150,
    save_every=150,
    bf16=False,
    batch=BatchConfig(frames_per_batch=416, max_frames=13, heldout_share=0.1),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=10, weight_decay=0.0),
    model=ModelConfig(backbone=SHAPE, depth=SHAPE),
)
GREEDY = SamplingConfig(0.0, 0.0)


def spell(text: str) -> np.ndarray:
    """Codes [T, 2]."""
    letters = np.array([LETTERS.index(word) for word in text.split()])
    return np.stack([letters, 3 - letters], axis=1)


@pytest.fixture(scope="module")
def codec(make_codec):
    return make_codec(num_codebooks=2, codebook_size=4)


@pytest.fixture(scope="module")
def store(make_store, codec, tmp_path_factory) -> TokenStore:
    rng = np.random.default_rng(0)
    texts = drawn_texts(600, rng, WORDS)
    return make_store(tmp_path_factory.mktemp("store"), [spell(text) for text in texts], codec, texts=texts)


@pytest.fixture(scope="module")
def trained(store, codec, tmp_path_factory):
    """Layout -> the folder of a model trained on it."""
    folders: dict[str, Path] = {}

    def make(layout: str) -> Path:
        if layout not in folders:
            torch.set_num_threads(1)
            out = tmp_path_factory.mktemp(layout)
            options = TextOptions(layout, vocab_size=269)  # pyright: ignore
            config = replace(CONFIG, model=replace(CONFIG.model, text=options), loss=LossConfig(text=1.0))
            tokenizer = new_tokenizer([store], config.model.text, config.batch)
            folders[layout] = train(new_model(store, config, tokenizer), codec, store, out, config, tokenizer)
        return folders[layout]

    return make


@pytest.mark.slow
def test_a_model_with_its_text_first_speaks_what_it_is_given(trained):
    lm = load(trained("first"))
    for text in ("a b c d a b", "d d a c b a"):
        made = lm.generate(None, WORDS / lm.codec.frame_rate, text=text, sampling=GREEDY)
        np.testing.assert_array_equal(made.codes, spell(text).T)
        assert made.text == text and made.num_prompt_frames == 0 and len(made.audio) == WORDS * lm.codec.hop_length


def test_a_prompt_goes_between_the_text_and_what_is_left_to_say(trained):
    lm = load(trained("first"))
    text = "b a d c c a"
    codes = torch.from_numpy(spell(text).T[:, :2].copy())
    request = laid_out(lm, 4, codes, text)
    (made,) = lm.run(request, [0], GREEDY)
    np.testing.assert_array_equal(made.codes, spell(text).T)
    assert made.num_prompt_frames == 2 and len(made.prompt_audio) == 2 * lm.codec.hop_length


@pytest.mark.slow
def test_a_model_with_its_text_last_transcribes(trained):
    text = "c a b b d a"
    assert written_down(load(trained("last")), torch.from_numpy(spell(text).T.copy())) == text


@pytest.mark.slow
def test_a_model_with_aligned_text_writes_along_and_speaks_what_it_is_given(trained):
    lm = load(trained("aligned"))
    duration_s = WORDS / lm.codec.frame_rate
    made = lm.generate(None, duration_s, seed=1, sampling=SamplingConfig(1.0, 1.0, 0))
    assert " ".join(LETTERS[i] for i in made.codes[0]) == made.text  # what it writes is what it says
    given = lm.generate(None, duration_s, text="d c b a a b", sampling=GREEDY)
    np.testing.assert_array_equal(given.codes, spell("d c b a a b").T)


def test_speech_costs_almost_nothing_once_its_text_is_known(trained, store):
    lm = load(trained("first"))
    scores = score_store(lm.model, store, progress=False, tokenizer=lm.tokenizer)
    without = score_store(lm.model, store, progress=False)
    bits = [found.nll.sum() / found.num_frames.sum() / np.log(2) for found in (scores, without)]
    assert bits[0] < 0.2 and bits[1] > 1.5
    # six letters of two bits each, and the end of the text
    assert scores.num_tokens.tolist() == [WORDS + 1] * len(store) and without.num_tokens.sum() == 0
    assert scores.text_nll.mean() / np.log(2) == pytest.approx(2 * WORDS, rel=0.05)
    report = evaluate(lm.model, store, "0" * 64, tokenizer=lm.tokenizer)
    assert report.num_tokens == 7 * len(store) and "nats per token" in report.table()
    assert json.loads(report.to_json())["text_nats"] == pytest.approx(report.text_nats)


def test_text_that_a_model_cannot_take_is_refused(trained, make_model, codec):
    plain = SpeechGenerator(make_model((0, 0), codec=codec, dtype=torch.float32), codec, "plain")
    for lm in (plain, load(trained("last"))):
        with pytest.raises(ValueError, match="cannot speak a given text"):
            lm.generate(None, 0.1, text="a b")
    with pytest.raises(ValueError, match="cannot transcribe"):
        load(trained("first")).transcribe("x.wav")


def test_another_tokenizer_is_refused(trained, tmp_path):
    import shutil

    from codeclm.data.text_tokenizer import TextTokenizer

    shutil.copytree(trained("first"), tmp_path / "model")
    TextTokenizer.train(["other words here"], 270).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"tokenizer.model: is not what was written"):
        load(tmp_path / "model")
    (tmp_path / "model" / "checksums.json").unlink()
    with pytest.raises(ValueError, match="trained with the tokenizer"):
        load(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.model"):
        load(tmp_path / "model")
