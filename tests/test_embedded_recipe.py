"""The recipe of the embedded models: what is said, by whom, and the shards it becomes."""

import json
import math
import re
import shutil
import tarfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codeclm.data import prepare
from codeclm.data.audio import load_audio
from codeclm.data.audio_out import save_audio
from codeclm.data.sources import find_sources
from codeclm.data.spelling import Spelling
from codeclm.data.text_times import TextTimes
from codeclm.data.token_store import TokenStore
from codeclm.data.word_times import character_frames
from codeclm.inference.config import EvaluateConfig
from codeclm.inference.evaluate.score import score_store
from codeclm.inference.loading import load
from codeclm.inference.sound.measures import measure_speech, semitones
from codeclm.model.codec_shapes import SpectralConfig
from codeclm.model.codecs import SpectralCodec, load_codec
from codeclm.model.lm import SpeechLM
from codeclm.model.pretrained import PROMPT
from codeclm.model.shapes import TextConfig
from codeclm.model.speech_lm_config import SpeechLMConfig
from codeclm.train.config import LossConfig
from codeclm.train.recipes.embed import count_texts, training_texts
from codeclm.train.recipes.embedded import shards
from codeclm.train.recipes.embedded.heart import shaped
from codeclm.train.recipes.embedded.language_model import ON_CPU
from codeclm.train.recipes.embedded.limits import Parts, distance
from codeclm.train.recipes.embedded.recordings import Recording, recordings
from codeclm.train.recipes.embedded.shards import as_written
from codeclm.train.recipes.embedded.texts import deal, quotations, sided, wordnet
from codeclm.train.recipes.embedded.variants import Change, placed
from codeclm.train.recipes.embedded.voices import synthetic_voices
from codeclm.train.recipes.embedded.written import sentences_of

from .training import SHAPE

RATE = shards.RATE
WORDNET = """  1 a line of the licence
02933112 06 n 02 canal 0 waterway_(old) 0 001 @ 09225146 n 0000 | (geography) strip of water for boats; "it froze in \
January"; "a word"
"""
GCIDE = """   1. To cast or drive out; to banish.

            Being all this time abandoned . . . from
            your bed. --Shak.
      [1913 Webster]

            A quotation of nobody.
"""


def vowel(seconds: float, pitch_hz: float = 120.0) -> np.ndarray:
    """Harmonics under two formants, in syllables."""
    time = np.arange(round(seconds * RATE)) / RATE
    hz = pitch_hz * np.arange(1, int(7000 / pitch_hz))
    gains = np.exp(-(((hz - 700) / 300) ** 2)) + 0.5 * np.exp(-(((hz - 1800) / 300) ** 2)) + 0.003
    tone = (gains[:, None] * np.cos(2 * np.pi * hz[:, None] * time)).sum(axis=0)
    return (0.1 * tone * np.clip(1.5 * np.sin(2 * np.pi * 2 * time), 0.02, 1)).astype(np.float32)


def people(folder: Path) -> list[Recording]:
    for speaker, pitch in (("anna", 210.0), ("boris", 110.0)):
        for number in range(3):
            save_audio(folder / speaker / f"{speaker}-{number}.flac", vowel(1.5 + number, pitch), RATE)
            (folder / speaker / f"{speaker}-{number}.txt").write_text(f"{speaker} says {number}\n")
    return recordings(folder)


def material(folder: Path, side: str = "train") -> shards.Material:
    return shards.Material(side, {}, people(folder), ("human",), folder)


def test_definitions_examples_and_quotations_are_sentences():
    assert wordnet([WORDNET]) == (["Canal: strip of water for boats."], ["It froze in January."])
    assert quotations(GCIDE) == ["Being all this time abandoned from your bed."]


def test_only_whole_sentences_of_a_language_model_are_kept():
    answer = "Sure! The train was late again today. It said (nothing) to us all. Then we walked to the"
    assert sentences_of(answer) == ["The train was late again today."]


def test_a_sentence_is_for_training_or_held_out_and_nowhere_twice():
    sentences = [f"The number {number} is not a word." for number in range(2000)]
    scripture = {"train": ["In the beginning there was light."], "heldout": [sentences[7]]}
    sources = {"examples": sentences + sentences[:50], "spoken": [text.upper() for text in sentences[:100]]}
    texts = sided(sources, scripture, seed=3)
    said = {side: re.findall(r"number (\d+)", " ".join(texts["examples"][side])) for side in ("train", "heldout")}
    assert len(said["train"]) == len(set(said["train"])) and not set(said["train"]) & set(said["heldout"])
    assert 20 < len(said["heldout"]) < 100
    assert 1980 < len(said["train"]) + len(said["heldout"]) <= 1999  # but for paragraphs that are not full
    assert texts["spoken"] == {"train": [], "heldout": []}
    assert sided(sources, scripture, seed=3) == texts and sided(sources, scripture, seed=4) != texts


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 7), min_size=1))
@settings(max_examples=30)
def test_kinds_are_dealt_in_their_proportions_and_numbered_without_gaps(shares: dict[str, int]):
    total, dealt = sum(shares.values()), deal(shares)
    found = [dealt(number) for number in range(3 * total)]
    for kind, share in shares.items():
        assert [place for other, place in found if other == kind] == list(range(3 * share))


def test_a_held_out_voice_and_all_that_is_made_of_it_do_not_speak_in_training():
    voices = [voice for kind in synthetic_voices().values() for voice in kind]
    assert len({voice.name for voice in voices}) == len(voices)
    heldout = [voice for voice in voices if voice.heldout]
    assert len(heldout) >= 20
    spoken = {name for voice in voices if not voice.heldout for name in voice.settings.split("+") if name}
    assert not spoken & {voice.settings for voice in heldout if voice.kind == "kokoro"}


def test_another_pitch_throat_and_tempo_are_what_was_asked_for():
    audio = vowel(3.0)
    assert Change().of(audio, RATE) is audio
    other = Change(pitch=4.0, throat=1.0, tempo=1.2).of(audio, RATE)
    before, after = measure_speech(audio, RATE), measure_speech(other, RATE)
    assert abs(semitones(after.median_pitch_hz, before.median_pitch_hz) - 4) < 0.3
    assert abs(len(other) / len(audio) - 1.2) < 0.02
    wider = Change(throat=1.15).of(audio, RATE)
    assert abs(semitones(measure_speech(wider, RATE).median_pitch_hz, before.median_pitch_hz)) < 0.3
    assert 1.05 < _centre(wider) / _centre(audio) < 1.25


def _centre(audio: np.ndarray) -> float:
    power = np.square(np.abs(np.fft.rfft(audio)))
    return float((power * np.arange(len(power))).sum() / power.sum() / len(audio))


def test_spectra_of_a_synthesizer_get_the_pitch_of_another_voice():
    rng = np.random.default_rng(0)
    spectra = [rng.standard_normal((601, 40)).astype(np.float32) for _ in range(5)]
    f0 = np.where(np.arange(40) % 4 == 0, 0.0, rng.uniform(150, 250, 40)).astype(np.float32)
    same = shaped([*spectra, f0])
    assert all(np.array_equal(a, b) for a, b in zip(same, [*spectra, f0], strict=True))
    higher = shaped([*spectra, f0], pitch=12.0)[-1]
    np.testing.assert_allclose(higher, 2 * f0, rtol=1e-5)
    flat = shaped([*spectra, f0], melody=0.0)[-1]
    assert np.ptp(flat[f0 > 0]) < 1e-3 and not flat[f0 == 0].any()
    assert not shaped([*spectra, f0], whisper=1.0)[-1].any()


def test_speech_in_a_place_is_as_loud_as_drawn_and_never_clipped():
    loud = [placed(vowel(1.0), RATE, np.random.default_rng(seed))[0] for seed in range(30)]
    levels = [20 * np.log10(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))) for audio in loud]
    assert max(np.abs(audio).max() for audio in loud) <= 0.99 + 1e-6
    assert -34 < min(levels) < max(levels) < -14 and max(levels) - min(levels) > 6


SPELLED = """cat kat, tack tak, back bak, cab kab, act akt, box boks, ox oks, at at, tab tab, tot tot, cot kot, cob kob
bat bat
bass bas, task task, sock sok, sob sob, sack sak, fox foks, tax taks""".replace("\n", ", ")
WORDS = [(written, said) for written, said in (pair.split() for pair in SPELLED.split(", "))]


def test_a_spelling_says_which_letters_are_which_phonemes():
    spelling = Spelling(WORDS)
    assert spelling.reading("backs", "baks") == [1, 1, 0, 1, 1] and spelling.reading("cox", "koks") == [1, 1, 2]
    assert spelling.reading("a", "takt") is None and spelling.reading("", "") == []


@given(st.text("abckotx", max_size=5), st.text("abkost", max_size=6))
def test_a_reading_says_all_phonemes_in_the_likeliest_way(letters, phonemes):
    spelling = Spelling(WORDS)
    found = spelling.reading(letters, phonemes)
    ways = [way for way in product(range(4), repeat=len(letters)) if sum(way) == len(phonemes)]
    if not ways:
        assert found is None
        return

    def cost(way) -> float:
        ends = np.cumsum(way)
        parts = [tuple(phonemes[end - count : end]) for count, end in zip(way, ends, strict=True)]
        seen = zip(letters, parts, strict=True)
        return sum(spelling.cost(letter, part) for letter, part in seen)

    assert found is not None and cost(found) == pytest.approx(min(map(cost, ways)))


def test_heart_says_when_its_letters_are_said():
    pytest.importorskip("hibari")
    from codeclm.train.recipes.embedded import heart

    audio, rate, words = heart.say("Stop. Then go on to Dr. Box, No. 20.", "", np.random.default_rng(0))
    assert "".join(piece for piece, _, _ in words) == "StopThengoontoDrBoxNo20"
    bounds = np.array([times for _, *times in words])
    assert (bounds[:, 0] <= bounds[:, 1]).all() and (bounds[1:, 0] >= bounds[:-1, 1] - 1e-6).all()
    loudness = [np.square(audio[int(first * rate) : int(end * rate)]).mean() for first, end in bounds if end > first]
    edge = rate // 15
    pause = audio[int(words[3][2] * rate) + edge : int(words[4][1] * rate) - edge]  # "Stop" is over, "Then" not begun
    assert len(pause) > rate / 10 and np.square(pause).mean() < 0.01 * np.median(loudness)
    slow = heart.say("Stop. Then go on to Dr. Box, No. 20.", "speed=0.7", np.random.default_rng(0))[2]
    assert slow[-1][1] / words[-1][1] == pytest.approx(1 / 0.7, rel=0.1)


def test_a_number_has_the_time_of_the_words_in_which_it_is_said():
    text, told = "In 1973, 5 of us.", "Innineteenseventythreefiveofus"
    letters = [(letter, float(place), place + 1.0) for place, letter in enumerate(told)]
    others = [
        (letter, float(place), place + 1.0) for place, letter in enumerate(told) if letter in "ofus" and place > 25
    ]
    expected = [*letters[:2], ("1973", 2.0, 22.0), ("5", 22.0, 26.0), *others]
    assert as_written(text, letters) == expected
    assert as_written(text, [("Innineteen", 0.0, 10.0), *letters[10:]]) == expected  # pieces of any size
    assert as_written("No 7.", []) == []
    frames = character_frames(text, expected, 1.0, 40)
    assert frames is not None and frames[[3, 4, 5, 6]].tolist() == [2, 7, 12, 17]


def test_plain_speech_is_that_of_a_studio(tmp_path: Path):
    plain = list(replace(material(tmp_path), plain=True).utterances(0))
    levels = [20 * np.log10(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))) for audio, _ in plain]
    assert len(plain) > 20 and np.allclose(levels, -23, atol=0.1)
    assert {known["conditions"] for _, known in plain} == {""}


def test_a_shard_is_the_same_whenever_it_is_made_and_says_who_speaks(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(shards, "SYNTHESES", 8)
    made = material(tmp_path / "people")
    shards.make_shards(made, tmp_path / "a", 2, num_workers=1)
    first, second = (shards.shard_path(tmp_path / "a", number).read_bytes() for number in range(2))
    shards.shard_path(tmp_path / "a", 0).unlink()
    shards.make_shards(made, tmp_path / "a", 2, num_workers=1)
    assert shards.shard_path(tmp_path / "a", 0).read_bytes() == first != second
    sources = find_sources(tmp_path / "a").sources
    assert len(sources) == 2 * shards.SYNTHESES
    assert all(source.text and source.text.split()[0] == (source.speaker or "").split("~")[0] for source in sources)


def test_new_voices_are_heard_on_their_side_only(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(shards, "SYNTHESES", 14)
    speakers = {}
    for side in ("train", "new_voices"):
        shards.make_shards(material(tmp_path / "people", side), tmp_path / side, 1, num_workers=1)
        speakers[side] = {source.speaker for source in find_sources(tmp_path / side).sources}
    assert {"anna", "boris", "anna~0"} <= speakers["train"]
    assert speakers["new_voices"] == {"anna~4", "boris~4"}
    assert not speakers["train"] & speakers["new_voices"]


@pytest.mark.slow
def test_two_processes_make_the_same_shards_as_one_and_a_stopped_one_leaves_whole_shards(tmp_path: Path):
    made = material(tmp_path / "people")
    for folder, num_workers in (("one", 1), ("two", 2)):
        shards.make_shards(made, tmp_path / folder, 2, num_workers)
    for number in range(2):
        pair = [shards.shard_path(tmp_path / folder, number).read_bytes() for folder in ("one", "two")]
        assert pair[0] == pair[1]

    first = next(made.utterances(0))

    def broken(self: shards.Material, shard: int):
        yield first
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards.Material, "utterances", broken)
        shards.make_shards(made, tmp_path / "stopped", 1, num_workers=1)
    assert not (tmp_path / "stopped").exists()


def test_of_some_voices_only_the_shards_hold_what_these_say_in_all_of_them(tmp_path: Path):
    everything = material(tmp_path)
    chosen = replace(everything, only=("anna", "boris~1"))
    whole, part = (list(made.utterances(1)) for made in (everything, chosen))
    wanted = [(audio, known) for audio, known in whole if known["speaker"] in chosen.only]
    assert 0 < len(wanted) < len(whole) and [known for _, known in part] == [known for _, known in wanted]
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(part, wanted, strict=True))
    assert chosen.speakers == set(chosen.only) and not replace(everything, only=("heart",)).speakers
    assert not replace(chosen, side="new_voices").speakers


@pytest.mark.slow
def test_the_recipe_makes_speech_of_what_is_installed_and_refuses_other_settings(
    tmp_path: Path, monkeypatch, make_codec
):
    pytest.importorskip("hibari")
    from codeclm.train.recipes.embedded.__main__ import RecipeConfig, run

    monkeypatch.setattr(shards, "SYNTHESES", 6)
    people(tmp_path / "people/train")
    people(tmp_path / "people/heldout")
    (tmp_path / "people/.done").touch()
    texts = {"spoken": {"train": ["Four of them came."], "heldout": ["Three did not."]}}
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/utterances.json").write_text(json.dumps(texts))
    left_out = ("kokoro", "joe", "flite", "espeak")
    config = RecipeConfig(hours=0.02, num_workers=1, without=left_out)
    run(tmp_path, config, until="speech")
    said = {side: _described(tmp_path / f"speech/{side}/00000.tar") for side in ("train", "heldout", "new_voices")}
    assert {about["text"] for about in said["train"]} >= {"Four of them came."}
    assert {about["text"] for about in said["heldout"] if about["source"] == "hibari/spoken"} == {"Three did not."}
    assert not {about["speaker"] for about in said["train"]} & {about["speaker"] for about in said["new_voices"]}
    with pytest.raises(ValueError, match="was begun with"):
        run(tmp_path, RecipeConfig(hours=0.02, without=left_out, seed=1), until="speech")
    alone = tmp_path / "heart"
    shutil.copytree(tmp_path / "texts", alone / "texts")
    with pytest.raises(ValueError, match="only names hart: no voice"):
        run(alone, RecipeConfig(hours=0.02, num_workers=1, without=("human",), only=("hart",)), until="speech")
    (alone / "recipe.json").unlink()
    alone_in_studio = RecipeConfig(hours=0.1, num_workers=1, only=("heart",), plain=True)
    run(alone, alone_in_studio, until="speech")  # nothing else is installed
    assert {about["speaker"] for about in _described(alone / "speech/train/00000.tar")} == {"heart"}
    prepare(alone / "speech", alone / "tokens", make_codec())
    assert TextTimes(TokenStore(alone / "tokens")).is_known.all()
    assert sorted(path.name for path in (alone / "speech").iterdir()) == ["heldout", "train"]


@pytest.mark.slow
def test_the_recipe_trains_a_model_on_train_and_scores_it_on_heldout(
    tmp_path: Path, monkeypatch, make_codec, one_thread
):
    from codeclm.train.recipes.embedded.__main__ import RecipeConfig, run

    monkeypatch.setattr(shards, "SYNTHESES", 8)
    people(tmp_path / "people/train")
    people(tmp_path / "people/heldout")
    (tmp_path / "people/.done").touch()
    (tmp_path / "texts").mkdir()
    texts = tmp_path / "texts/utterances.json"
    texts.write_text(json.dumps({"spoken": {"train": ["Four of them came."], "heldout": ["Three did not."]}}))
    make_codec().save(tmp_path / "codec/int8")
    left_out = ("hibari", "kokoro", "joe", "flite", "espeak")
    small = replace(ON_CPU.batch, frames_per_batch=256, max_frames=64)
    model = replace(ON_CPU, steps=4, evaluate_every=2, canary=0, model=SHAPE, batch=small, loss=LossConfig())
    config = RecipeConfig(hours=0.02, num_workers=1, without=left_out, model=model)
    run(tmp_path, config, until="model")
    store = TokenStore(tmp_path / "tokens")
    assert {name.split("/")[0] for name in store.names} == {"train", "heldout", "new_voices"}
    lines = [json.loads(line) for line in (tmp_path / "model/metrics.jsonl").read_text().splitlines()]
    looks = {line["step"]: line["heldout_bits_per_second"] for line in lines if "heldout_bits_per_second" in line}
    assert set(looks) == {0, 2, 4}
    lm = load(tmp_path / "model")
    assert lm.tokenizer is None or lm.tokenizer.ngram is not None
    count_texts(tmp_path / "model/model", training_texts(texts))  # a model without text stays as it is
    assert training_texts(texts) == ["Four of them came."] and training_texts(tmp_path / "missing.json") == []
    run(tmp_path, config, until="model")  # is finished
    assert load(tmp_path / "model").fingerprint == lm.fingerprint
    heldout = [i for i, name in enumerate(store.names) if name.startswith("heldout/")]
    scores = score_store(lm.model, store, EvaluateConfig(), heldout, False, lm.tokenizer)
    bits = store.codec.frame_rate * scores.nll.sum() / scores.num_frames.sum() / math.log(2)
    assert abs(bits / min(list(looks.values())[1:]) - 1) < 1e-3


def test_the_embedded_model_has_as_many_parameters_as_the_recipe_says():
    backbone, depth = ON_CPU.model.parts
    with torch.device("meta"):
        model = SpeechLM(SpeechLMConfig(8, 1024, backbone, depth, text=TextConfig(400)))
    assert 30.3e6 < sum(parameter.numel() for parameter in model.parameters()) < 31.3e6


def test_what_is_not_installed_is_named_with_the_way_to_get_it(tmp_path: Path, monkeypatch):
    from codeclm.train.recipes.embedded.__main__ import RecipeConfig, run

    monkeypatch.setenv("PATH", "")
    without = ("hibari", "kokoro", "joe", "espeak", "human")
    with pytest.raises(ValueError, match="'flite' need: apt-get install flite; or leave them out: --without flite"):
        run(tmp_path, RecipeConfig(without=without))
    with pytest.raises(ValueError, match="the kinds of voices are hibari"):
        RecipeConfig(without=("harp",))


def _described(tar_file: Path) -> list[dict]:
    with tarfile.open(tar_file) as tar:
        members = [tar.extractfile(member) for member in tar if member.name.endswith(".json")]
        return [json.load(file) for file in members if file is not None]


@pytest.mark.slow
def test_filters_fitted_to_a_clip_come_nearer_to_it_than_a_codec_that_never_learned():
    time = np.arange(RATE) / RATE
    harmonics = sum(np.sin(2 * np.pi * 150 * n * time) / n for n in range(1, 20))
    clip = (0.1 * (0.3 + np.sin(2 * np.pi * 3 * time) ** 2) * harmonics).astype(np.float32)
    torch.manual_seed(0)
    layers = {"encoder_layers": 1, "latent_layers": 1, "bottleneck_layers": 1, "decoder_layers": 1}
    codec = SpectralCodec(SpectralConfig(**layers, encoder_dim=8, dim=8, num_codebooks=2, codebook_size=8)).eval()
    parts, audio = Parts(codec.requires_grad_(False)), torch.from_numpy(clip)[None]
    read = codec.read_pitch(codec.encoder(audio))
    assert abs(float(parts.sung(audio, read)[0, 10:-10].median().exp2()) - 150) < 3
    far, near = (
        float(distance(output, audio, RATE)) for output in (parts.back(audio, True, False), parts.fitted(audio))
    )
    assert near < 0.4 * far


def test_the_embedded_codec_stays_below_full_scale():
    codec = load_codec("spectral")
    assert (codec.frame_rate, codec.num_codebooks, codec.bitrate) == (25, 8, 2000)
    audio = torch.from_numpy(load_audio(PROMPT, codec.sample_rate))[None, None]
    loud = 0.99 * audio / audio.abs().max()
    output = codec.decode(codec.encode(loud))
    assert output.abs().max() <= 1
    assert 0.7 < float(output.std() / loud.std()) < 1.2
