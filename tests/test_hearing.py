"""evaluate/hearing.py: pairs that only hearing tells apart; cues are as often right as wrong."""

import json
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import codeclm
from codeclm.data.audio import load_audio, loudness_dbfs
from codeclm.data.audio_out import save_audio
from codeclm.inference.config import EvaluateConfig, PairsConfig
from codeclm.inference.evaluate import hearing
from codeclm.inference.evaluate.hearing import PROBES, both_orders, make_pairs
from codeclm.inference.evaluate.items import read_items
from codeclm.inference.evaluate.spoken import VOICE, sentence, shuffled, word_pairs
from codeclm.inference.evaluate.suite import evaluate_pairs
from codeclm.inference.evaluate.voices import RATE, Voice, read_voice, rotation, split, voice_folders
from codeclm.inference.loading import save_model
from codeclm.inference.sound.stretch import shift_pitch

NEEDS_VOICE = {"word", "sentence"}
CONSISTENCY = set(PROBES) - NEEDS_VOICE - {"reversed"}


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """Three voices made of one: as recorded, in "two languages", and 9 semitones lower."""
    folder = tmp_path_factory.mktemp("speech")
    voice = load_audio(Path(__file__).parent.parent / "model/pretrained/prompt.flac", RATE)
    low = shift_pitch(voice, -9, RATE)
    third = len(voice) // 3
    for name, source, shift in (("ann_en", voice, 0), ("ann_es", voice, 2000), ("bob", low, 0), ("eve", voice, 900)):
        for number in range(3):
            piece = source[number * third // 2 + shift :][: round(2.6 * RATE)]
            save_audio(folder / name / f"{number}.wav", piece, RATE)
    return folder


@pytest.fixture
def no_package(monkeypatch):
    """As where hibari-tts is not installed."""
    monkeypatch.setattr(hearing, "find_spec", lambda name: None)


@pytest.fixture(scope="module")
def made(speech, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hearing, "find_spec", lambda name: None)
        return folder, *make_pairs(folder, speech, 8, 0, progress=False)


def clips(pair) -> tuple[np.ndarray, np.ndarray]:
    return load_audio(pair.better, RATE), load_audio(pair.worse, RATE)


def test_every_probe_has_its_pairs_and_what_is_left_out_is_named(made):
    _, pairs, left_out = made
    assert {task: sum(pair.task == task for pair in pairs) for task in PROBES if task not in left_out} == dict.fromkeys(
        set(PROBES) - NEEDS_VOICE, 8
    )
    assert left_out.keys() == NEEDS_VOICE and all("codeclm[speedrun]" in reason for reason in left_out.values())


def test_halves_have_one_length_and_one_level_and_no_click_where_they_meet(made):
    for pair in made[1]:
        better, worse = clips(pair)
        assert len(better) == len(worse) >= 1.1 * RATE
        if pair.task == "reversed":
            continue
        cut = pair.span[0]
        for audio in (better, worse):
            first, second = audio[: cut - 160], audio[cut + 320 :]
            if pair.task != "loudness":
                assert abs(loudness_dbfs(first) - loudness_dbfs(second)) < 2.5, pair.name
            assert np.abs(np.diff(audio[cut - 10 : cut + 170])).max() <= np.abs(np.diff(audio)).max()
        np.testing.assert_array_equal(better[:cut], worse[:cut])


def test_each_second_half_is_as_often_better_as_worse(made):
    """So whoever hears the second half alone, however well, is right in half of the pairs."""
    for task in CONSISTENCY:
        pairs = [pair for pair in made[1] if pair.task == task]
        halves = {"better": [], "worse": []}
        for pair in pairs:
            for side, audio in zip(halves, clips(pair), strict=True):
                halves[side].append(audio[pair.span[0] + 200 :].tobytes())
        assert sorted(halves["better"]) == sorted(halves["worse"]), task


def test_loudness_is_a_step_of_ten_decibels_in_the_worse_clip_only():
    rng = np.random.default_rng(0)
    before, after = ((half, half) for half in 0.1 * rng.standard_normal((2, 2 * RATE)).astype(np.float32))
    for clip in both_orders(before, after, (-26.0, -36.0)):
        cut = clip.span[0]
        steps = [loudness_dbfs(audio[cut + 200 :]) - loudness_dbfs(audio[:cut]) for audio in clip[:2]]
        assert abs(steps[0]) < 0.2 and abs(abs(steps[1]) - 10) < 0.2


def test_the_same_speech_and_seed_give_the_same_bytes_and_another_seed_others(made, speech, no_package, tmp_path):
    folder = made[0]
    for name, seed in (("same", 0), ("other", 1)):
        make_pairs(tmp_path / name, speech, 8, seed, progress=False)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.wav"))
    roots = {"first": folder, "same": tmp_path / "same", "other": tmp_path / "other"}
    content = {name: [(root / path).read_bytes() for path in files] for name, root in roots.items()}
    assert content["first"] == content["same"] != content["other"]


def test_pairs_that_are_there_are_not_made_again_and_others_are_refused(made, speech, no_package):
    folder, pairs, left_out = made
    times = [path.stat().st_mtime_ns for path in folder.rglob("*.wav")]
    assert make_pairs(folder, speech, 8, 0, progress=False) == (pairs, left_out)
    assert [path.stat().st_mtime_ns for path in folder.rglob("*.wav")] == times
    with pytest.raises(ValueError, match="holds pairs of another recipe or speech; choose another --out"):
        make_pairs(folder, speech, 8, 1, progress=False)


def test_gender_is_pitch_and_language_is_the_folders_name(speech):
    voices = {folder.name: read_voice(folder) for folder in voice_folders(speech)}
    assert voices["bob"].gender == "male" and voices["ann_en"].gender != "male"
    assert [voices[name].language for name in ("ann_en", "ann_es", "bob")] == ["en", "es", None]
    assert Voice("june_test", ()).language is None and Voice("june_test", ()).speaker == "june"


def test_a_folder_without_voices_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no folder of a voice.*--speech FOLDER.*recipes.corpus"):
        voice_folders(tmp_path)


def test_no_recording_comes_twice_before_all_have_come():
    voices = [Voice(name, tuple(np.zeros(2 * RATE) for _ in range(count))) for name, count in (("a", 5), ("b", 2))]
    found = rotation(voices, np.random.default_rng(0), 1.0)
    first = [next(found) for _ in range(7)]
    assert len({(voice.name, number) for voice, number in first}) == 7
    assert [voice.name for voice, _ in first[:4]] == ["a", "b", "a", "b"]
    assert list(rotation(voices, np.random.default_rng(0), 3.0)) == []


def test_a_recording_is_split_where_it_is_quiet():
    rng = np.random.default_rng(0)
    audio = 0.1 * rng.standard_normal(4 * RATE).astype(np.float32)
    audio[30_000:31_000] = 0
    halves = split(audio)
    assert halves is not None and 30_000 <= len(halves[0]) <= 31_000
    np.testing.assert_array_equal(np.concatenate(halves), audio)
    assert split(audio[: 2 * RATE]) is None


def test_each_half_of_a_word_is_as_often_in_a_word_as_in_a_pseudo_word():
    pairs = list(word_pairs(np.random.default_rng(0)))
    words, pseudo = ({pair[side] for pair in pairs} for side in (0, 1))
    assert len(pairs) > 200 and not words & pseudo and len(pseudo) > 400
    assert sorted("".join(word for word, _ in pairs)) == sorted("".join(other for _, other in pairs))


def test_a_shuffled_sentence_has_the_same_words_in_another_order():
    rng = np.random.default_rng(0)
    for _ in range(50):
        words = sentence(rng)
        order = shuffled(words, rng)
        assert sorted(order) == sorted(words) and order != words


@torch.no_grad()
def test_the_accuracies_of_a_probe_are_those_of_a_few_lines_of_torch(made, make_model, make_codec, tmp_path):
    """From pairs.jsonl and the model's likelihood alone; nothing of evaluate/ is used."""
    codec = make_codec()
    save_model(make_model((0, 0, 0), codec=codec), codec, tmp_path / "model")
    lm = codeclm.load(str(tmp_path / "model"), device="cpu")
    report = evaluate_pairs(lm, made[0] / "pairs.jsonl", None, None, PairsConfig(), EvaluateConfig(), False)
    right = {"sum": [], "local": [], "norm.": []}
    for line in map(json.loads, (made[0] / "pairs.jsonl").read_text().splitlines()):
        if line["task"] != "pitch":
            continue
        nats = {name: [] for name in right}
        for side in ("better", "worse"):
            audio = torch.from_numpy(load_audio(made[0] / line[side], lm.codec.sample_rate))
            codes = lm.codec.encode(audio[None, None])
            start = int(line["span"][0] / RATE * 100 + 1e-6)  # 100 frames a second
            stop = math.ceil((line["span"][0] / RATE + 0.5) * 100 - 1e-6)
            frames = lm.model(codes).nll[0].sum(0)
            nats["sum"].append(frames.sum())
            nats["local"].append(frames[start:stop].sum())
            nats["norm."].append(nats["local"][-1] - lm.model(codes[..., start:stop]).nll.sum())
        for name, (better, worse) in nats.items():
            right[name].append(float(better < worse))
    assert {name: np.mean(hits) for name, hits in right.items()} == {
        name: report.accuracy["pitch"]["model"][name].value for name in right
    }
    assert len(right["sum"]) == 8


@pytest.mark.slow
@pytest.mark.skipif(find_spec("hibari") is None, reason="needs codeclm[speedrun]")
def test_the_synthetic_voice_says_words_and_joins_the_other_voices(speech, tmp_path):
    pairs, left_out = make_pairs(tmp_path, speech, 2, 0, progress=False)
    assert left_out == {} and sum(pair.task == "sentence" for pair in pairs) == 2
    assert VOICE not in {folder.name for folder in voice_folders(speech)}
    assert all(len(audio) > 0.2 * RATE for pair in pairs if pair.task == "word" for audio in clips(pair))


@pytest.mark.slow
def test_a_model_with_shuffled_weights_hears_nothing(speech, no_package, tmp_path):
    lm = codeclm.load()
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in lm.model.parameters():
            weights.copy_(weights.flatten()[torch.randperm(weights.numel())].view_as(weights))
    lm.save_pretrained(tmp_path / "shuffled")
    config, shuffled_lm = PairsConfig(pairs=16, speech=str(speech)), codeclm.load(str(tmp_path / "shuffled"))
    report = evaluate_pairs(shuffled_lm, Path("hearing"), tmp_path / "out", None, config, EvaluateConfig(), False)
    items = [item for item in read_items(tmp_path / "out") if item.window]
    local, alone = (np.mean([np.sum(getattr(item.model, part)) for item in items]) for part in ("local", "alone"))
    assert abs(alone - local) < 0.05 * local  # what came before tells it next to nothing
    hits = [report.accuracy[task]["model"]["norm."].value for task in CONSISTENCY]
    # 16 pairs of each of 10 probes: 3.3 standard deviations of a coin that is tossed 160 times
    assert abs(np.mean(hits) - 0.5) < 0.13
