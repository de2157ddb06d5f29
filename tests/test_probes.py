"""evaluate/probes.py: linear probes of hidden states, codes and latents."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import codeclm
from codeclm.data.audio import load_audio
from codeclm.data.audio_out import save_audio
from codeclm.inference.config import EvaluateConfig
from codeclm.inference.evaluate.hidden_states import hidden_states
from codeclm.inference.evaluate.labels import phones_at, read_labels, word_begins_at
from codeclm.inference.evaluate.linear_probe import probe, ridge, ridge_of_codes
from codeclm.inference.evaluate.probe_speech import TEST, chosen_files, read_recordings
from codeclm.inference.evaluate.probes import evaluate_probes
from codeclm.inference.loading import save_model
from codeclm.train.recipes.labelled import htk_labels, word_starts

PROMPT = Path(__file__).parent.parent / "model/pretrained/prompt.flac"
RATE = 8000
CONFIG = EvaluateConfig(bootstrap_samples=50)
ROWS = ["codes", "latents", "latents of 8 frames", "layer 0", "layer 1", "layer 2"]


@pytest.fixture(scope="module")
def lm(tmp_path_factory, make_model, make_codec) -> codeclm.SpeechGenerator:
    folder, codec = tmp_path_factory.mktemp("lm") / "model", make_codec()
    save_model(make_model((0, 0, 0), codec=codec), codec, folder)
    return codeclm.load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """36 pieces of a human voice under two names; those of one have labels: "quiet" and "loud" for phones."""
    folder, voice = tmp_path_factory.mktemp("speech"), load_audio(PROMPT, RATE)
    for number in range(72):
        piece = voice[number * 450 :][:3200]
        path = folder / f"{'ab'[number % 2]}/{number:02d}.wav"
        save_audio(path, piece, RATE)
        if number % 2:
            level = np.abs(piece).reshape(10, -1).mean(axis=1)
            loud = level > np.median(level)
            lines = [f"{n * 400_000} {(n + 1) * 400_000} {'loud w' if on else 'quiet'}" for n, on in enumerate(loud)]
            path.with_suffix(".lab").write_text("\n".join(lines))
    return folder


PATTERNS = {
    "depth": {},
    "depth with delays": {"delays": (0, 1, 1)},
    "delay": {"delays": (0, 1, 2), "pattern": "delay"},
    "parallel": {"pattern": "parallel"},
    "flatten": {"pattern": "flatten"},
    "without BOS": {"bos": False},
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_state_is_the_first_one_that_has_seen_all_codes_of_its_frame(name, make_model):
    model = make_model(**PATTERNS[name])
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 7, (3, 9)))
    lag, last = max(model.config.delays), len(model.backbone.blocks)
    before = hidden_states(model, codes, range(last + 1))
    assert {len(states) for states in before} <= {8, 9}
    for codebook in range(3):
        other = codes.clone()
        other[codebook, 4] = (other[codebook, 4] + 1) % 7
        for layer, (a, b) in enumerate(zip(before, hidden_states(model, other, range(last + 1)), strict=True)):
            changed = ((a - b).abs().amax(dim=1) > 1e-9).tolist()
            own = model.config.delays[codebook]
            assert not any(changed[: 4 + own - lag])
            assert layer == 0 or changed[4]  # the embeddings of a step are those of the codes just before it


def test_the_last_layer_is_what_the_heads_read(make_model):
    model = make_model()
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 7, (3, 9)))
    (states,) = hidden_states(model, codes, [len(model.backbone.blocks)])
    logits = model(codes[None], return_logits=True).logits[0, 0]  # codebook 0 [T, C], predicted from the frame before
    with torch.inference_mode():
        predicted = model.head_0(states)
    torch.testing.assert_close(predicted[:-1], logits[1:], rtol=0, atol=1e-9)


def made(noise: float, classes: int):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((900, 6)).astype(np.float32)
    target = x @ rng.standard_normal(6) + noise * rng.standard_normal(900)
    if classes:
        target = np.digitize(target, np.quantile(target, [0.9])).astype(float)  # one class is rare
    recording = np.arange(900) // 30
    part = recording % 3
    return torch.from_numpy(x), target, recording, (part == 0, part == 1, part == 2)


def test_a_probe_finds_what_is_linear_and_nothing_in_noise():
    x, target, recording, split = made(0.0, 0)
    exact = probe(x, target, 0, recording, split, 100, 0)
    assert exact.value > 0.999 and exact.interval[0] > 0.999
    assert (exact.num_frames, exact.num_recordings) == (300, 10)
    nothing = probe(
        torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), target, 0, recording, split, 100, 0
    )
    assert -0.1 < nothing.value < 0.1


def test_balanced_accuracy_is_chance_for_noise_although_one_class_is_rare():
    x, target, recording, split = made(0.0, 2)
    assert probe(x, target, 2, recording, split, 100, 0).value > 0.9
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    nothing = probe(noise, target, 2, recording, split, 100, 0)
    assert nothing.chance == 0.5 and abs(nothing.value - 0.5) < 0.15  # always the frequent class: right in 90 %


def test_the_test_recordings_are_not_fitted_on():
    x, target, recording, split = made(0.0, 0)
    target[split[2]] = -target[split[2]]
    assert probe(x, target, 0, recording, split, 100, 0).value < -2


def test_a_map_of_codes_is_that_of_ones_among_zeros():
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(rng.integers(0, 5, (200, 3)) + 5 * np.arange(3))
    ones = torch.zeros(200, 15).scatter_(1, codes, 1.0)
    y = ones @ torch.from_numpy(rng.standard_normal((15, 2)).astype(np.float32))
    weight = torch.full((200,), 1 / 200)
    (dense,), (tables,) = ridge(ones, y, weight, [0.02 * 3 / 15]), ridge_of_codes(codes, 15, y, weight, [0.02])
    torch.testing.assert_close(tables, dense, rtol=0, atol=1e-2)  # where the steps stop


def test_labels_become_frames(tmp_path):
    (tmp_path / "a.lab").write_text("0 1000000 pau\n1000000 2500000 a one\n2500000 3000000 b\n")
    labels = read_labels(tmp_path / "a.lab")
    assert phones_at(labels, 4, 10.0) == ["pau", "a", "b", None]
    begins = word_begins_at(labels, 4, 10.0)
    assert begins is not None and begins.tolist() == [False, True, False, False]
    assert word_begins_at(labels[:1], 4, 10.0) is None
    (tmp_path / "a.lab").write_text("0.5 125 pau\n")
    with pytest.raises(ValueError, match="a.lab, line 1: must be START END PHONE"):
        read_labels(tmp_path / "a.lab")


def test_russian_words_begin_where_their_vowels_say():
    sounds = "pau a n aa z ay vv i l aa pau pp ii tt v oo d u j ee ll"
    phones = sounds.split(" ")
    starts = {1: "она", 4: "завела", 11: "пить", 14: "вводу", 18: "ель"}
    assert word_starts("Он+а завела, пить в воду ель", phones) == starts
    assert word_starts("Она завела, пить в воду", phones) is None  # a vowel letter is missing
    lines = htk_labels("#\n0.1 125 pau\n0.25 125 a\n0.3 125 n\n0.4 125 aa\n", "Она").splitlines()
    assert lines == ["0 1000000 pau", "1000000 2500000 a она", "2500000 3000000 n", "3000000 4000000 aa"]


def test_the_recordings_of_a_voice_are_shared_out_and_a_frames_measures_are_its_own(speech, lm):
    chosen = chosen_files([speech / "a", speech / "b"], 0)
    assert sum(part == TEST for _, part in chosen) == 18 and chosen == chosen_files([speech / "a", speech / "b"], 0)
    recording = read_recordings(chosen[-1:], lm.codec, progress=False)[0]
    assert {len(values) for values in recording.targets.values()} == {40}  # 0.4 s, 100 frames a second
    audio = load_audio(chosen[-1][0], RATE)
    level = 10 * np.log10(np.square(audio[2400:2480].astype(np.float64)).mean())
    assert recording.targets["loudness"][30] == pytest.approx(level, abs=1e-6)
    assert np.isnan(recording.targets["pitch"][recording.targets["voiced"] == np.False_]).all()


def test_a_run_that_was_cut_off_goes_on_to_the_same_results(lm, speech, tmp_path):
    whole = evaluate_probes(lm, speech, tmp_path / "out", CONFIG, progress=False)
    lines = (tmp_path / "out/probes.jsonl").read_text().splitlines(keepends=True)
    # 9 rows: codes, two of latents, 3 layers, 3 of them shuffled; the speaker is not asked for twice
    assert len(lines) == 9 * (2 * 7 - 1)
    (tmp_path / "out/probes.jsonl").write_text("".join(lines[:30]) + lines[30][:20])
    assert evaluate_probes(lm, speech, tmp_path / "out", CONFIG, progress=False) == whole
    assert (tmp_path / "out/probes.jsonl").read_text() == "".join(lines)
    assert list(whole.results["now"]) == [*ROWS, "shuffled 0", "shuffled 1", "shuffled 2"]
    assert whole.results["now"]["latents"]["phone"].chance == 0.5
    assert "speaker" not in whole.results["next"]["codes"] and json.dumps(whole.to_dict())
    with pytest.raises(ValueError, match="holds a run with another seed"):
        evaluate_probes(lm, speech, tmp_path / "out", EvaluateConfig(bootstrap_samples=50, seed=1), progress=False)
    table = whole.table()
    assert "\nchance" in table and "\nnext: the frame after it" in table and "classes: voiced 2, speaker 2" in table


def test_what_cannot_be_asked_is_left_out_by_name(lm, speech, tmp_path):
    for file in (speech / "a").glob("*.wav"):
        for name in ("x", "y"):
            save_audio(tmp_path / name / file.name, load_audio(file, RATE), RATE)
    report = evaluate_probes(lm, tmp_path, None, CONFIG, progress=False)
    assert report.left_out.keys() == {"phone", "word"}
    assert "left out: phone: needs recordings with labels" in report.table()
    assert not list(tmp_path.glob("*/*.jsonl")) and report.out is None
