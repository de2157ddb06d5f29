"""A model whose text stands beside its sound: it says every token in order, and writes down what it hears.

The "speech" is spelling, as in test_mixed_text.py, but a letter lasts two to four frames, so that only the times tell
which frame is which letter's. The second codebook is the speaker's number.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from codeclm.data.config import FormShares
from codeclm.data.grids import StoreGrids
from codeclm.data.split import split_heldout
from codeclm.data.text_times import TextTimes, write_times
from codeclm.data.text_tokenizer import TextTokenizer
from codeclm.data.token_store import TokenStore
from codeclm.inference import SamplingConfig
from codeclm.inference.config import BeamConfig, EvaluateConfig
from codeclm.inference.evaluate.score import score_store
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.loading import load
from codeclm.inference.prefix import Prefix, make_prefix
from codeclm.inference.read_back import best_reading, text_nats
from codeclm.inference.scheduler import Scheduler
from codeclm.inference.transcript import written_down
from codeclm.model.delay_pattern import ABSENT
from codeclm.model.shapes import TextConfig
from codeclm.model.text_tokens import EOS, PAD, SAY
from codeclm.train.checkpoint import latest_checkpoint, load_state
from codeclm.train.loop import train
from codeclm.train.new_model import new_model, new_tokenizer

from .spelling import LETTERS, SPEAKERS, TEXTS, WORDS, drawn_texts, names_of, settings, spell
from .training import metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # with the training, on a slow machine

CONFIG = replace(settings("timed", 600, 1600, 60, FormShares(0.2, 0.3, 0.4)), evaluate_every=300)


@pytest.fixture(scope="module")
def codec(make_codec):
    return make_codec(num_codebooks=2, codebook_size=4)


@pytest.fixture(scope="module")
def store(make_store, codec, tmp_path_factory) -> TokenStore:
    rng = np.random.default_rng(0)
    texts = drawn_texts(800, rng)
    lengths = [rng.integers(2, 5, WORDS).tolist() for _ in texts]
    codes = [spell(text, i % SPEAKERS, lengths[i]) for i, text in enumerate(texts)]
    store = make_store(tmp_path_factory.mktemp("store"), codes, codec, names_of(texts), texts)
    times = []
    for i in range(len(store)):
        own = lengths[int(store.names[i].split("/")[1])]
        frames = np.full(2 * WORDS - 1, -1)
        frames[::2] = np.cumsum([0, *own[:-1]])
        times.append(frames)
    write_times(store, times)
    return store


@pytest.mark.parametrize("lead, lag", [(0, 0), (3, 1), (1, 4)])
def test_a_token_leads_and_lags_its_sound_by_what_the_model_says(store, lead, lag):
    tokenizer = TextTokenizer.train(drawn_texts(50, np.random.default_rng(1)), 0)
    ahead = lead + 2
    text = TextConfig(tokenizer.vocab_size, layout="timed", lead_s=lead / 100, lag_s=lag / 100, lookahead=ahead)
    grids = StoreGrids(store, tokenizer, text)
    said, heard = (grids.of_epoch(shares, 0, 0) for shares in (FormShares(1, 0, 0), FormShares(0, 0, 1)))
    for i in range(20):
        length = int(store.num_frames[i])
        tokens, frames = TextTimes(store).of_tokens(i, tokenizer, store.text(i) or "")
        over = [*frames[1:], length]  # a letter's space has its own token, and the time of the letter after it
        told = [*tokens, *[EOS] * ahead]
        text_said = said.columns(i, 0, 1000)[0]
        assert text_said[: 1 + ahead].tolist() == [SAY, *told[:ahead]] and len(text_said) == 1 + ahead + length
        for columns, wanted, begun, num_ends in (
            (text_said[1 + ahead :], frames - lead, told[ahead:], 0),
            (heard.columns(i, 0, 1000)[0][1:], np.minimum(over, length - lag) + lag, tokens, 1),
        ):
            column = -1
            for token, place in zip(begun, wanted, strict=True):
                column = max(place, column + 1)
                assert columns[column] == token
            assert np.isin(columns, (PAD, ABSENT), invert=True).sum() == len(tokens) + num_ends


@pytest.fixture(scope="module")
def run(store, codec, tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    tokenizer = new_tokenizer([store], CONFIG.model.text, CONFIG.batch)
    out = tmp_path_factory.mktemp("run")
    train(new_model(store, CONFIG, tokenizer), codec, store, out, CONFIG, tokenizer)
    return out


@pytest.fixture(scope="module")
def lm(run) -> SpeechGenerator:
    return load(run)


def voice(lm: SpeechGenerator, speaker: int) -> Prefix:
    return make_prefix(lm, torch.from_numpy(spell("b d a c", speaker, [3, 2, 4, 3]).T.copy()))


def letters_of(codes: np.ndarray) -> str:
    """What was spelled, however long each letter lasted; equal neighbours are one."""
    first = codes[0]
    return "".join(LETTERS[code] for i, code in enumerate(first) if not i or code != first[i - 1])


def merged(text: str) -> str:
    letters = text.split()
    return "".join(letter for i, letter in enumerate(letters) if not i or letter != letters[i - 1])


def test_a_text_is_said_in_the_voice_that_is_given_and_ends(lm):
    for speaker in range(SPEAKERS):
        for text in TEXTS:
            for seed in range(3):
                said = lm.say(text, voice(lm, speaker), seed, SamplingConfig(0.0))
                assert letters_of(said.codes) == merged(text) and (said.codes[1] == speaker).all()
                assert said.finish_reason == "eos" and said.text == text


def test_what_is_said_is_written_down(lm):
    for speaker, text in enumerate(("a b c d", "d b a c", "c a b c")):  # how often a long letter is said, none can hear
        codes = torch.from_numpy(spell(text, speaker, [2, 4, 3, 2]).T.copy())
        assert written_down(lm, codes) == text


def test_texts_that_are_counted_tell_what_is_written(lm, monkeypatch):
    """A letter that no text has is not written, however it was heard, if texts count for much."""
    codes = torch.from_numpy(spell("a b c d", 0, [2, 4, 3, 2]).T.copy())
    monkeypatch.setattr(lm.tokenizer, "ngram", lm.tokenizer.counted(["a b c a"] * 5))
    assert written_down(lm, codes, BeamConfig(ngram_weight=0.0)) == "a b c d"
    assert written_down(lm, codes, BeamConfig(ngram_weight=50.0, token_bonus=50.0)).startswith("a b c a")
    assert written_down(lm, codes, sampling=SamplingConfig(text_temperature=0.0)) == "a b c d"


def test_the_reading_is_taken_in_which_the_text_is_found(lm):
    wild, text = SamplingConfig(3.0, 1.0), "a b c d"
    readings = [lm.say(text, voice(lm, 1), seed, wild) for seed in range(12)]
    nats = [text_nats(lm, reading, text) for reading in readings]
    is_right = [letters_of(reading.codes) == merged(text) for reading in readings]
    best = lm.say(text, voice(lm, 1), 0, wild, best_of=12)
    np.testing.assert_array_equal(best.codes, readings[int(np.argmin(nats))].codes)
    assert best.seed == np.argmin(nats) and not all(is_right)
    # two that differ in one letter only: the right one costs less
    right = lm.say(text, voice(lm, 1), 0, SamplingConfig(0.0))
    codes = right.codes.copy()
    codes[0, codes[0] == codes[0, -1]] = codes[0, 0]  # "a" for "d"
    assert letters_of(codes) == "abca" and text_nats(lm, replace(right, codes=codes), text) > text_nats(lm, right, text)
    assert text_nats(lm, right, text) < text_nats(lm, right, "a b d c")
    cut = lm.say(text, voice(lm, 1), 0, SamplingConfig(0.0), duration_s=0.03)
    assert cut.finish_reason == "length" and text_nats(lm, cut, text) == np.inf
    assert best_reading(lm, [cut, right, cut], text) is right


def test_what_is_told_stands_beside_its_frames(lm):
    said = lm.say("a b c d", voice(lm, 1), 0, SamplingConfig(0.0))
    assert said.told is not None and len(said.told) == said.codes.shape[1]
    tokens = lm.tokenizer.encode("a b c d")
    ahead = lm.model.config.text.lookahead
    assert said.told[(said.told != PAD)].tolist() == [*tokens, *[EOS] * ahead][ahead:]


def test_a_text_is_said_alike_alone_and_beside_others(lm):
    scheduler = Scheduler(lm, max_rows=3)
    sampling = SamplingConfig(1.0, 1.0, stop_at_end=True)
    wanted = [lm.say(text, voice(lm, 1), seed, SamplingConfig(1.0, 1.0)) for seed, text in enumerate(TEXTS)]
    tickets = [scheduler.submit(voice(lm, 1), 20.0, seed, sampling, text) for seed, text in enumerate(TEXTS)]
    tickets.append(scheduler.submit(None, 0.4, 9, SamplingConfig()))
    for ticket, alone in zip(tickets[:3], wanted, strict=True):
        found = ticket.generation()
        np.testing.assert_array_equal(found.codes[:, -alone.codes.shape[1] :], alone.codes)
    np.testing.assert_array_equal(tickets[3].generation().codes, lm.generate(None, 0.4, 9).codes)


def test_a_text_is_said_alike_while_it_is_being_written(lm):
    text, taken = " ".join(TEXTS), []
    parts = (taken.append(part) or part for part in text)
    chunks = lm.stream(voice(lm, 1), 1.0, seed=4, text=parts)
    first = next(chunks)
    assert len(taken) < len(text)  # it begins before it knows how the text ends
    whole = list(lm.stream(voice(lm, 1), 1.0, seed=4, text=text))
    np.testing.assert_array_equal(np.concatenate([first, *chunks]), np.concatenate(whole))
    short, in_parts = (list(lm.stream(voice(lm, 1), seed=4, text=text)) for text in (TEXTS[0], iter(TEXTS[0])))
    np.testing.assert_array_equal(np.concatenate(in_parts), np.concatenate(short))  # and ends where it ends
    with pytest.raises(ValueError, match="the text is empty"):
        next(lm.stream(voice(lm, 1), text=iter([" ", ""])))


def test_a_step_of_the_frame_step_is_one_of_the_walk(lm, monkeypatch):
    fast = lm.say(TEXTS[0], voice(lm, 2), 5, SamplingConfig(1.0, 1.0))
    monkeypatch.setattr("codeclm.inference.engine.is_supported", lambda model: False)
    walked = lm.say(TEXTS[0], voice(lm, 2), 5, SamplingConfig(1.0, 1.0))
    np.testing.assert_array_equal(fast.codes, walked.codes)
    np.testing.assert_allclose(fast.nll, walked.nll, atol=1e-4)


def test_audio_is_scored_as_audio_alone_or_with_its_text(lm, store):
    alone = score_store(lm.model, store, EvaluateConfig(limit=50))
    with_text = score_store(lm.model, store, EvaluateConfig(limit=50, given_text=True), tokenizer=lm.tokenizer)
    assert alone.nll.shape == with_text.nll.shape and not alone.num_tokens.sum()
    assert with_text.nll[0].sum() < 0.7 * alone.nll[0].sum()  # a text tells most of the letters


def test_a_run_keeps_what_is_best_at_speech_alone_and_with_its_text_together(run, lm, store):
    alone, given = (metrics(run, f"heldout_bits_per_second{way}") for way in ("", "_given_text"))
    said = CONFIG.batch.text.say + CONFIG.batch.text.say_voice
    judged = {step: (1 - said) * alone[step] + said * given[step] for step in alone if step}
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None and len(judged) > 1
    state = load_state(checkpoint)
    best = state["best_step"]
    assert best == min(judged, key=lambda step: judged[step]) and state["best"] == pytest.approx(judged[best])
    _, heldout = split_heldout(store, *CONFIG.batch.split)
    scores = score_store(lm.model, store, EvaluateConfig(given_text=True), heldout, False, lm.tokenizer)
    bits = store.codec.frame_rate * scores.nll.sum() / scores.num_frames.sum() / math.log(2)
    assert given[best] == pytest.approx(bits, rel=1e-5) and given[best] < 0.8 * alone[best]


def test_a_store_without_times_is_not_scored_with_its_texts(lm, make_store, codec, tmp_path):
    other = make_store(tmp_path, [spell(TEXTS[0], 0, 3)], codec, ["x"], [TEXTS[0]])
    with pytest.raises(FileNotFoundError, match="run codeclm align"):
        score_store(lm.model, other, EvaluateConfig(given_text=True), tokenizer=lm.tokenizer)
    assert score_store(lm.model, other, EvaluateConfig(), tokenizer=lm.tokenizer).num_frames.sum() == 12
