"""One model with text before the audio, after it or without, and a voice before it: it learns all of them.

The "speech" is spelling, as in test_text_stream.py; the second codebook is the speaker's number. So a text tells the
first codebook, and only a voice tells the second.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from codeclm.data.config import FormShares
from codeclm.data.token_store import TokenStore
from codeclm.inference import SamplingConfig
from codeclm.inference.config import EvaluateConfig
from codeclm.inference.evaluate.score import evaluate, score_store
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.loading import load, save_model
from codeclm.inference.prefix import Prefix, make_prefix
from codeclm.inference.read_back import text_nats
from codeclm.inference.request import saying
from codeclm.inference.scheduler import Scheduler
from codeclm.inference.transcript import written_down
from codeclm.model.shapes import TextConfig
from codeclm.train.config import TextOptions
from codeclm.train.finetune_config import FINETUNE, LoraOptions
from codeclm.train.loop import train
from codeclm.train.new_model import new_model, new_tokenizer
from codeclm.train.runs import finetune

from .spelling import GREEDY, SPEAKERS, TEXTS, WORDS, drawn_texts, names_of, settings, spell

pytestmark = pytest.mark.slow

CONFIG = settings("mixed", 240, 640, 20, FormShares(0.15, 0.3, 0.4))


@pytest.fixture(scope="module")
def store(make_store, make_codec, tmp_path_factory) -> TokenStore:
    rng = np.random.default_rng(0)
    texts = drawn_texts(800, rng)
    codes = [spell(text, i % SPEAKERS) for i, text in enumerate(texts)]
    codec = make_codec(num_codebooks=2, codebook_size=4)
    return make_store(tmp_path_factory.mktemp("store"), codes, codec, names_of(texts), texts)


@pytest.fixture(scope="module")
def lm(store, make_codec, tmp_path_factory) -> SpeechGenerator:
    torch.set_num_threads(1)
    out: Path = tmp_path_factory.mktemp("run")
    tokenizer = new_tokenizer([store], CONFIG.model.text, CONFIG.batch)
    codec = make_codec(num_codebooks=2, codebook_size=4)
    return load(train(new_model(store, CONFIG, tokenizer), codec, store, out, CONFIG, tokenizer))


def voice(lm: SpeechGenerator, speaker: int) -> Prefix:
    return make_prefix(lm, torch.from_numpy(spell("b d a c", speaker).T.copy()))


def test_a_text_is_said_in_the_voice_that_is_given_and_ends(lm):
    for speaker in range(SPEAKERS):
        for text in TEXTS:
            said = lm.say(text, voice(lm, speaker), sampling=GREEDY)
            np.testing.assert_array_equal(said.codes, spell(text, speaker).T)
            assert said.finish_reason == "eos" and said.num_prompt_frames == 0 and not len(said.prompt_audio)
            assert said.text == text and len(said.audio) == WORDS * lm.codec.hop_length


def test_a_longer_text_may_take_longer(lm):
    texts = "a b", "a b " * 100  # 100 frames a second
    assert [saying(lm, text, None, None, GREEDY).num_frames for text in texts] == [2000, 8000]
    assert saying(lm, texts[1], None, 1.5, GREEDY).num_frames == 150


def test_without_a_voice_it_is_said_in_any_one(lm):
    found = set()
    for seed in range(12):
        said = lm.say(TEXTS[0], seed=seed, sampling=SamplingConfig(1.0))
        speakers = [speaker for speaker in range(SPEAKERS) if (said.codes == spell(TEXTS[0], speaker).T).all()]
        found.update(speakers)
        assert len(speakers) == 1
    assert len(found) > 1


def test_the_reading_is_taken_in_which_the_text_is_found(lm):
    wild, text = SamplingConfig(3.0, 1.0), TEXTS[0]
    readings = [lm.say(text, voice(lm, 1), seed, wild) for seed in range(12)]
    best = lm.say(text, voice(lm, 1), 0, wild, best_of=12)
    nats = [text_nats(lm, reading, text) for reading in readings]
    np.testing.assert_array_equal(best.codes, readings[int(np.argmin(nats))].codes)
    is_right = [np.array_equal(reading.codes[0], spell(text, 1)[:, 0]) for reading in readings]
    assert not all(is_right)
    right = lm.say(text, voice(lm, 1), sampling=GREEDY)
    assert text_nats(lm, right, text) <= min(nats) + 0.1 and text_nats(lm, right, TEXTS[1]) > text_nats(lm, right, text)
    with pytest.raises(ValueError, match="best_of is 0"):
        lm.say(text, best_of=0)


def test_it_transcribes(lm):
    for speaker, text in enumerate(TEXTS):
        assert written_down(lm, torch.from_numpy(spell(text, speaker).T.copy())) == text


def test_audio_alone_costs_its_entropy(lm, store):
    """A letter has two bits, and an utterance two more: its speaker."""
    alone = score_store(lm.model, store, progress=False)
    bits = alone.nll.sum() / alone.num_frames.sum() / np.log(2)
    assert bits == pytest.approx(2 + 2 / WORDS, rel=0.03) and alone.num_tokens.sum() == 0
    # its text afterwards changes nothing, and costs nothing
    then = score_store(lm.model, store, progress=False, tokenizer=lm.tokenizer)
    np.testing.assert_allclose(then.nll, alone.nll, rtol=0, atol=1e-3)
    assert then.num_tokens.tolist() == [WORDS + 1] * len(store) and then.text_nll.mean() < 0.5
    # given its text, the speaker alone is left
    config = EvaluateConfig(given_text=True)
    given = score_store(lm.model, store, config, progress=False, tokenizer=lm.tokenizer)
    assert given.nll.sum() / len(store) / np.log(2) == pytest.approx(2, abs=0.2)
    assert given.text_nll.mean() / np.log(2) == pytest.approx(2 * WORDS, rel=0.05)
    report = evaluate(lm.model, store, "0" * 64, config=config, tokenizer=lm.tokenizer)
    assert report.context.startswith("its transcript, then each utterance")
    assert report.num_tokens == (WORDS + 1) * len(store) and "nats per token" in report.table()


def test_a_recording_is_continued_in_its_voice_to_its_end(lm):
    start = make_prefix(lm, torch.from_numpy(spell("b d", 2).T.copy()))
    for seed in range(3):
        made = lm.generate(start, 1.0, seed, SamplingConfig(stop_at_end=True))
        assert made.num_prompt_frames == 2 and made.codes.shape[1] == WORDS and (made.codes[1] == 2).all()


def test_a_stream_and_a_row_of_a_batch_say_the_same(lm):
    free = SamplingConfig(1.0)
    expected = [lm.say(text, voice(lm, speaker), 5, free) for speaker, text in enumerate(TEXTS)]
    scheduler = Scheduler(lm, max_rows=3)
    tickets = [scheduler.submit(voice(lm, speaker), None, 5, free, text) for speaker, text in enumerate(TEXTS)]
    heard = [scheduler.submit(voice(lm, speaker), None, 5, free, text) for speaker, text in enumerate(TEXTS)]
    for speaker, (text, want) in enumerate(zip(TEXTS, expected, strict=True)):
        found = tickets[speaker].generation()
        np.testing.assert_array_equal(found.codes, want.codes)
        np.testing.assert_allclose(found.audio, want.audio, rtol=0, atol=1e-4)
        assert found.num_prompt_frames == 0 and found.finish_reason == "eos"
        streamed = np.concatenate(list(lm.stream(voice(lm, speaker), seed=5, sampling=free, text=text)))
        np.testing.assert_allclose(streamed, want.audio, rtol=0, atol=1e-4)
        np.testing.assert_allclose(np.concatenate(list(heard[speaker].audio())), want.audio, rtol=0, atol=1e-4)


def test_what_cannot_be_said_is_told_in_a_line(lm, store, make_model, make_codec):
    with pytest.raises(ValueError, match="the text is empty"):
        lm.say("  ")
    with pytest.raises(ValueError, match="fills no gap with a text"):
        lm.fill(voice(lm, 0), voice(lm, 1), 0.1, text="a")  # type: ignore[arg-type]
    codec = make_codec(num_codebooks=2, codebook_size=4)
    plain = SpeechGenerator(make_model((0, 0), codec=codec, dtype=torch.float32), codec, "plain")
    with pytest.raises(ValueError, match="plain: cannot say a text; train a model with --model.text.layout mixed"):
        plain.say("a b")
    first = make_model((0, 0), codec=codec, dtype=torch.float32, text=TextConfig(269, layout="first"))
    with pytest.raises(ValueError, match="first: takes no voice before a text"):
        SpeechGenerator(first, codec, "first", lm.tokenizer).say("a b", voice(lm, 0))
    with pytest.raises(ValueError, match="first: writes nothing down to choose by"):
        SpeechGenerator(first, codec, "first", lm.tokenizer).say("a b", best_of=2)
    with pytest.raises(
        ValueError, match="given_text: is for models with the text layout 'mixed' or 'timed'; this one has 'first'"
    ):
        score_store(first, store, EvaluateConfig(given_text=True), progress=False, tokenizer=lm.tokenizer)


def test_a_model_of_audio_alone_learns_to_say_a_text(store, make_codec, tmp_path):
    codec = make_codec(num_codebooks=2, codebook_size=4)
    torch.set_num_threads(1)
    plain = replace(CONFIG, model=replace(CONFIG.model, text=TextOptions()))
    save_model(new_model(store, plain), codec, tmp_path / "base")
    given = {"batch": CONFIG.batch, "optimizer": CONFIG.optimizer, "evaluate_every": CONFIG.steps, "bf16": False}
    config = replace(FINETUNE, steps=CONFIG.steps, canary=0, input_dropout=0.0, text=CONFIG.model.text, **given)
    lm = load(finetune(tmp_path / "base", store, tmp_path / "run", config))
    assert load(tmp_path / "base").tokenizer is None
    for text in TEXTS:
        np.testing.assert_array_equal(lm.say(text, voice(lm, 2), sampling=GREEDY).codes, spell(text, 2).T)
    with pytest.raises(ValueError, match="has a text stream"):
        finetune(tmp_path / "run", store, tmp_path / "again", config)
    with pytest.raises(ValueError, match="adapters leave no weights"):
        replace(config, lora=LoraOptions(4))
