"""Times of words that come with speech: read as others write them, kept character by character, also in pieces."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeclm.data import prepare
from codeclm.data.audio_out import save_audio
from codeclm.data.text_times import UNHEARD, TextTimes, times_file
from codeclm.data.token_store import TokenStore
from codeclm.data.word_times import character_frames, has_words, read_words, text_of
from codeclm.train.aligner_config import AlignerConfig
from codeclm.train.text_alignment import align

WORDS = [("It's", 0.25, 0.5), ("a", 0.5, 0.625), ("trap!", 1.0, 2.0)]
TEXT = "It's a trap!"
ALIGNMENTS = {"alignments": [[word, [start, end], "SPEAKER_MAIN"] for word, start, end in WORDS]}
ENTRIES = [{"word": f" {word}", "start": start, "end": end} for word, start, end in WORDS]


def spoken(seconds: float, seed: int = 0) -> np.ndarray:
    time = np.arange(round(seconds * 16_000)) / 16_000
    tones = np.sin(2 * np.pi * (150 + 40 * seed) * time) + 0.3 * np.random.default_rng(seed).standard_normal(len(time))
    return (0.1 * tones * np.clip(np.sin(2 * np.pi * 1.5 * time), 0.02, 1)).astype(np.float32)


@pytest.mark.parametrize(
    "values",
    [
        ALIGNMENTS,
        {"text": TEXT, "words": ENTRIES},
        {"segments": [{"words": ENTRIES[:2]}, {"text": ""}, {"words": ENTRIES[2:]}]},
        {"segments": [{"words": [{"text": entry["word"], **entry} for entry in ENTRIES]}]},
    ],
)
def test_the_words_of_aligners_and_recognisers_are_read(values):
    assert has_words(values)
    words = read_words(json.dumps(values).encode())
    assert [(word.strip(), start, end) for word, start, end in words] == WORDS and text_of(words) == TEXT


def test_a_word_without_times_stands_where_the_one_before_it_ends():
    words = read_words(json.dumps({"words": [ENTRIES[0], {"word": "7"}, *ENTRIES[1:]]}).encode())
    assert words[1] == ("7", 0.5, 0.5) and text_of(words) == "It's 7 a trap!"


@pytest.mark.parametrize(
    "values", [{"words": ["a", "b"]}, {"segments": [{"start": 0}]}, {"words": 3}, [], {"text": "a"}]
)
def test_what_has_no_times_is_nothing_of_ours(values):
    assert not has_words(values)


def test_the_characters_of_a_word_follow_each_other_evenly():
    frames = character_frames(TEXT, WORDS, 8.0, 20)
    assert frames is not None
    t_r_a_p = [8, 10, 12, 14]
    assert frames.tolist() == [2, 2, UNHEARD, 3, UNHEARD, 4, UNHEARD, *t_r_a_p, UNHEARD]
    later = character_frames("trap", WORDS[2:], 8.0, 5, start_s=0.5)
    assert later is not None and later.tolist() == [4, 4, 4, 4]  # no later than there are frames
    assert character_frames("It's a tree!", WORDS, 8.0, 20) is None and character_frames("?", [], 8.0, 20) is None


@given(st.text(max_size=12), st.lists(st.floats(0, 9), max_size=12))
def test_times_rise_and_are_those_of_letters(text, seconds):
    words = [(character, time, time) for character, time in zip(text, sorted(seconds), strict=False)]
    frames = character_frames(text, words, 10.0, 50)
    if frames is not None:
        heard = [place for place, character in enumerate(text) if character.isalnum()]
        assert (frames[heard] >= 0).all() and (np.diff(frames[heard]) >= 0).all() and (frames < 50).all()
        assert {*np.flatnonzero(frames != UNHEARD).tolist()} == {*heard}


def test_a_folder_a_list_and_a_tar_keep_times_and_pieces_keep_their_words(make_codec, tmp_path: Path, caplog):
    codec, folder = make_codec(), tmp_path / "speech"
    for number, name in enumerate(("with", "without", "other", "broken", "wrong")):
        save_audio(folder / f"{name}.wav", spoken(2.5, number), 16_000)
    (folder / "with.json").write_text(json.dumps(ALIGNMENTS))
    (folder / "other.json").write_text('{"words": "none"}')
    (folder / "broken.json").write_text(json.dumps({"alignments": [["word", [2, 1]]]}))
    (folder / "wrong.json").write_text(json.dumps(ALIGNMENTS))
    (folder / "wrong.txt").write_text("It is not a trap.")
    long = [(f"w{number}", number + 0.25, number + 0.75) for number in range(12)]
    save_audio(folder / "long.wav", spoken(12.0, 9), 16_000)
    (folder / "long.json").write_text(json.dumps({"alignments": [[word, [start, end]] for word, start, end in long]}))
    with caplog.at_level("INFO"):
        summary = prepare(folder, tmp_path / "store", codec, max_utterance_s=5.0)
    assert summary.num_rejected == 1 and "broken.json has no words" in caplog.text
    store = TokenStore(tmp_path / "store")
    times, place = TextTimes(store), {name: i for i, name in enumerate(store.names)}
    assert store.text(place["with"]) == TEXT and store.text(place["wrong"]) == "It is not a trap."
    assert {name for name, i in place.items() if times.is_known[i]} == {"with", "long#0", "long#1", "long#2"}
    rate = codec.frame_rate
    wanted = character_frames(TEXT, WORDS, rate, int(store.num_frames[place["with"]]))
    assert np.array_equal(times.of(place["with"]), wanted)
    pieces = [place[f"long#{number}"] for number in range(3)]
    assert " ".join(store.text(i) or "" for i in pieces) == " ".join(word for word, _, _ in long)
    first = np.cumsum([0, *store.num_frames[pieces[:-1]]])  # where each piece begins, in frames of the recording
    begins = np.concatenate([times.of(i)[:1] + start for i, start in zip(pieces, first, strict=True)])
    starts = {word: start for word, start, _ in long}
    said = [starts[(store.text(i) or "").split()[0]] for i in pieces]
    assert np.abs(begins / rate - np.maximum(said, first / rate)).max() <= 1 / rate  # one is cut in its middle

    (tmp_path / "list.jsonl").write_text('{"path": "speech/with.wav"}\n{"path": "speech/with.wav", "start": 0.5}\n')
    prepare(tmp_path / "list.jsonl", tmp_path / "listed", codec)
    listed = TokenStore(tmp_path / "listed")
    assert [listed.text(i) for i in range(2)] == [TEXT, "a trap!"]
    late, known = TextTimes(listed).of(1), TextTimes(listed).of(0)
    assert np.array_equal(known, wanted) and late[0] == 0 and abs(late[2] - 0.5 * rate) <= 1

    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        for name, beside in (("a.wav", "with.wav"), ("a.json", "with.json")):
            content = (folder / beside).read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    prepare(tmp_path / "one.tar", tmp_path / "packed", codec)
    assert np.array_equal(TextTimes(TokenStore(tmp_path / "packed")).of(0), wanted)


def test_alignment_finds_out_what_is_missing(make_codec, tmp_path: Path, caplog):
    codec, folder = make_codec(), tmp_path / "speech"
    for number in range(12):
        save_audio(folder / f"{number}.wav", spoken(2.5, number), 16_000)
        (folder / f"{number}.txt").write_text(TEXT)
    (folder / "3.json").write_text(json.dumps(ALIGNMENTS))
    prepare(folder, tmp_path / "store", codec)
    store = TokenStore(tmp_path / "store")
    known = store.names.index("3")
    before = TextTimes(store).of(known)
    quick = {"epochs": 1.0, "dim": 8, "num_layers": 1}
    assert align(store.folder, codec, AlignerConfig(**quick)) == times_file(store)
    times = TextTimes(store)
    assert times.is_known.all() and np.array_equal(times.of(known), before)
    with caplog.at_level("INFO"):
        align(store.folder, codec, AlignerConfig(**quick))
    assert "it is known when its texts are said" in caplog.text
    align(store.folder, codec, AlignerConfig(**quick, again=True))
    assert not np.array_equal(TextTimes(store).of(known), before)
    found = TextTimes(store).of(known - 1).copy()
    mended = {"alignments": [[word, [start + 0.1, end + 0.1]] for word, start, end in WORDS]}
    (folder / "3.json").write_text(json.dumps(mended))
    prepare(folder, tmp_path / "store", codec)
    times = TextTimes(TokenStore(tmp_path / "store"))
    assert times.of(known)[0] == before[0] + round(0.1 * codec.frame_rate) and np.array_equal(
        times.of(known - 1), found
    )
