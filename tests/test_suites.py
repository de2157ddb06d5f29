"""evaluate/suites.py and pairs.py: pairs of recordings in the published layouts, made of a human voice."""

import json
from pathlib import Path

import numpy as np
import pytest

from codeclm.data.audio import load_audio
from codeclm.data.audio_out import save_audio
from codeclm.inference.evaluate.pairs import Pair, read_pairs, to_json_lines
from codeclm.inference.evaluate.suites import read_suite

PROMPT = Path(__file__).parent.parent / "model/pretrained/prompt.flac"
RATE = 16_000


@pytest.fixture(scope="module")
def voice() -> np.ndarray:
    return load_audio(PROMPT, RATE)


def write(folder: Path, voice: np.ndarray, *names: str) -> None:
    """A piece of the recording for each name."""
    for number, name in enumerate(names):
        save_audio(folder / name, voice[number * 800 : number * 800 + RATE // 2], RATE)


LEXICAL = """id,filename,voice,frequency,word,phones,length_phone,correct
1,aAAfmk,A,3,cold,K OW L D,4,1
1,bQWpz,A,3,kole,K OW L,3,0
1,xxYz,B,3,cold,K OW L D,4,1
1,aBcd,B,3,kole,K OW L,3,0
"""
SYNTACTIC = """id,filename,voice,type,subtype,transcription,correct
7,one,A,agreement,noun,the dogs bark,0
7,two,A,agreement,noun,the dog bark,1
"""
LAYOUTS = {
    # suite, files, gold file -> (name, task, better, worse) of each pair
    "salmon": (
        "salmon",
        ["room/sample_10_a.wav", "room/sample_10_b.wav", "room/sample_2_1.wav", "room/sample_2_0.wav"],
        None,
        [("room/2", "room", "sample_2_0", "sample_2_1"), ("room/10", "room", "sample_10_a", "sample_10_b")],
    ),
    "swuggy": (
        "swuggy",
        ["0_cold.wav", "1_kole.wav", "10_shore.wav", "11_shole.wav"],
        None,
        [("swuggy/0_cold", "swuggy", "0_cold", "1_kole"), ("swuggy/10_shore", "swuggy", "10_shore", "11_shole")],
    ),
    "sblimp": (
        "sblimp",
        ["a/12+x.wav", "a/3+y.wav"],
        None,
        [("sblimp/a/3+y", "sblimp/a", "3+y", "12+x")],
    ),
    "storycloze": (
        "storycloze",
        ["4_correct.wav", "4_incorrect.wav", "5_correct.wav", "5_incorrect.wav"],
        None,
        [
            ("storycloze/4_correct", "storycloze", "4_correct", "4_incorrect"),
            ("storycloze/5_correct", "storycloze", "5_correct", "5_incorrect"),
        ],
    ),
    "ZeroSpeech lexical": (
        "swuggy",
        [f"lexical/dev/{name}.wav" for name in ("aAAfmk", "bQWpz", "xxYz", "aBcd")],
        ("lexical/dev/gold.csv", LEXICAL),
        [
            ("swuggy/lexical/dev/1/A", "swuggy/lexical/dev", "aAAfmk", "bQWpz"),
            ("swuggy/lexical/dev/1/B", "swuggy/lexical/dev", "xxYz", "aBcd"),
        ],
    ),
    "ZeroSpeech syntactic": (
        "sblimp",
        [f"syntactic/dev/{name}.wav" for name in ("one", "two")],
        ("syntactic/dev/gold.csv", SYNTACTIC),
        [("sblimp/syntactic/dev/7/A", "sblimp/syntactic/dev", "two", "one")],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_published_layout_gives_its_pairs_better_recording_first(layout, voice, tmp_path):
    suite, files, gold, expected = LAYOUTS[layout]
    write(tmp_path, voice, *files)
    if gold is not None:
        (tmp_path / gold[0]).write_text(gold[1])
    pairs = read_suite(tmp_path, suite)
    assert [(pair.name, pair.task, pair.better.stem, pair.worse.stem) for pair in pairs] == expected
    assert all(path.is_file() for pair in pairs for path in (pair.better, pair.worse))


@pytest.mark.parametrize(
    "suite, files, words",
    [
        ("salmon", ["room/sample_1_a.wav"], "sample 1 has 1 recordings, not two"),
        ("salmon", ["room/sample.wav"], "no number after the first '_'"),
        ("swuggy", ["1_a.wav", "2_b.wav", "3_c.wav"], "holds 3 recordings that are not two for each pair"),
        ("swuggy", ["1_a.wav", "1_b.wav", "2_c.wav", "3_d.wav"], "not two for each pair"),
        ("sblimp", ["1_a.wav", "2_b.wav"], "does not begin with a number and '\\+'"),
        ("storycloze", [], "holds no pair"),
    ],
)
def test_a_folder_in_another_layout_is_refused(suite, files, words, voice, tmp_path):
    write(tmp_path, voice, *files)
    with pytest.raises(ValueError, match=words):
        read_suite(tmp_path, suite)


@pytest.mark.parametrize(
    "table, words",
    [
        (LEXICAL.replace(",0\n", ",1\n"), "id 1, voice A is not one correct and one other row"),
        (LEXICAL.replace("correct", "right"), "a row has no 'correct'"),
    ],
)
def test_a_gold_file_without_pairs_is_refused(table, words, tmp_path):
    (tmp_path / "gold.csv").write_text(table)
    with pytest.raises(ValueError, match=words):
        read_suite(tmp_path, "swuggy")


def test_pairs_that_are_written_are_read_again(tmp_path):
    pairs = [
        Pair("a/0", "a", tmp_path / "x/1.wav", tmp_path / "x/2.wav", (10, 20)),
        Pair("b/0", "b", tmp_path / "3.wav", tmp_path / "4.wav"),
    ]
    (tmp_path / "pairs.jsonl").write_text(to_json_lines(pairs, tmp_path))
    assert read_pairs(tmp_path / "pairs.jsonl") == pairs


def test_a_line_needs_only_two_paths(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"better": "a.wav", "worse": "b.wav"}\n\n')
    assert read_pairs(tmp_path / "mine.jsonl") == [Pair("1", "mine", tmp_path / "a.wav", tmp_path / "b.wav")]


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "line 2: is not JSON"),
        ("[]", "line 2: must be an object"),
        ({"better": "a.wav"}, "line 2: 'worse' must be the path"),
        ({"better": "a.wav", "worse": "b.wav", "spam": 1}, "line 2: 'spam' is unknown; allowed are better, worse"),
        ({"better": "a.wav", "worse": "b.wav", "span": [1.5, 2]}, "line 2: 'span' must be two whole numbers"),
        ({"better": "a.wav", "worse": "b.wav", "name": "1"}, "2 pairs are called '1'"),
    ],
)
def test_a_wrong_line_is_told_with_its_number(line, words, tmp_path):
    good = json.dumps({"better": "a.wav", "worse": "b.wav"})
    (tmp_path / "pairs.jsonl").write_text(f"{good}\n{line if isinstance(line, str) else json.dumps(line)}\n")
    with pytest.raises(ValueError, match=words):
        read_pairs(tmp_path / "pairs.jsonl")
