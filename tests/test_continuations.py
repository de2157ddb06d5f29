"""The continuation report, with a stand-in for the model that answers with known audio."""

import json
from pathlib import Path

import numpy as np
import pytest

from codeclm.data.audio_out import save_audio
from codeclm.inference.evaluate.continuations import check_continuation
from codeclm.inference.evaluate.prompts import in_turn
from codeclm.inference.evaluate.quality.judges import Judges
from codeclm.inference.evaluate.quality.material import material, shuffled
from codeclm.inference.evaluate.quality.run import Continuing, continuation_report
from codeclm.inference.sound.measures import measure_speech

from .known_answer import RATE, KnownAnswer, by_pitch, speech


@pytest.fixture
def prompts(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "low.wav", tmp_path / "high.wav"]
    for path, pitch in zip(paths, (120, 240), strict=True):
        save_audio(path, speech(pitch, 3.0), RATE)
    return paths


def test_a_continuation_by_the_same_voice_passes_and_by_another_fails_on_pitch(prompts: list[Path], tmp_path: Path):
    lm = KnownAnswer(speech(130))
    report = continuation_report(lm, prompts, Continuing(1.5, 2.0, seed=7), out=tmp_path / "out")
    assert lm.asked == [(24_000, RATE, 2.0, 7)] * 2
    assert [item.checks.failed for item in report.continuations] == [[], ["pitch"]]
    assert report.totals[0] == "1 of 2 pass all checks"
    assert {"2 of 2 loudness", "1 of 2 pitch"} <= set(report.totals)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.wav")) == ["01-low.wav", "02-high.wav"]
    assert "FAILS pitch" in report.table() and "words" not in report.table()


@pytest.mark.parametrize(
    ("answer", "failed"),
    [
        (np.zeros(RATE, np.float32), {"not_silent", "loudness", "voicing", "pitch"}),
        (np.zeros(0, np.float32), {"not_silent", "loudness", "voicing", "pitch"}),
        (speech(120, level=0.1), {"loudness"}),
        (np.clip(speech(120, level=3.0), -1, 1), {"not_clipped", "loudness"}),
        (0.1 * np.random.default_rng(0).normal(size=RATE), {"voicing", "pitch"}),
        (0.2 * np.sin(2 * np.pi * 120 * np.arange(RATE) / RATE), {"voicing"}),
    ],
)
def test_what_is_wrong_with_a_continuation_is_named(answer: np.ndarray, failed: set[str]):
    prompt = measure_speech(speech(120), RATE)
    assert set(check_continuation(prompt, measure_speech(answer, RATE)).failed) == failed


def test_a_report_with_an_empty_continuation_is_valid_json(prompts: list[Path]):
    report = continuation_report(KnownAnswer(np.zeros(0)), prompts, Continuing(1.0, 2.0))
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["continuations"][0]["continuation"]["loudness_dbfs"] is None
    assert plain["totals"][0] == "0 of 2 pass all checks"
    assert "FAILS" in report.table()


class Typist:
    """Stands in for the recogniser: one word for the first continuation, four for the second, "real" for the rest."""

    def __init__(self) -> None:
        self.left = ["Hello.", "And he said, hello!"]

    def detect_language(self, audio: np.ndarray, sample_rate: int) -> str:
        return "en"

    def transcribe(self, audio: np.ndarray, sample_rate: int, language: str) -> str:
        return self.left.pop(0) if len(audio) == 3 * RATE else "What is real is real."


def test_transcripts_are_listed_and_their_words_counted(prompts: list[Path]):
    judges = Judges(transcriber=Typist())  # type: ignore[arg-type]
    report = continuation_report(KnownAnswer(speech(120, 3.0)), prompts, Continuing(1.0, 3.0), judges)
    assert [item.num_words for item in report.continuations] == [1, 4]
    assert report.totals[-1] == "1 of 2 with at least three words"
    assert "4 words: And he said, hello!" in report.table()


def test_a_prompt_that_is_too_short_is_skipped_by_name_and_none_left_is_an_error(prompts: list[Path], tmp_path: Path):
    save_audio(tmp_path / "short.wav", speech(120, 0.5), RATE)
    report = continuation_report(KnownAnswer(speech(120)), [*prompts, tmp_path / "short.wav"], Continuing(1.0, 2.0))
    assert len(report.continuations) == 2
    assert "short.wav: 0.50 s long; the prompt needs 1 s" in report.skipped[0]
    with pytest.raises(ValueError, match="no prompt can be continued"):
        continuation_report(KnownAnswer(speech(120)), [tmp_path / "short.wav"], Continuing(1.0, 2.0))


def test_a_voice_that_follows_its_prompt_is_told_from_one_that_does_not(prompts: list[Path]):
    """The same answer after both prompts: nearer to the low voice's, so half of the pairs are right."""
    judges = Judges(embed=by_pitch)
    report = continuation_report(KnownAnswer(speech(120)), prompts, Continuing(1.0, 2.0), judges)
    voices = report.quality.voices
    assert voices["real speech"].nearer.value == 1.0 and voices["real speech"].own.value > 0.999
    assert voices["real speech"].other.value == pytest.approx(np.cos(np.pi / 6), abs=1e-2)
    kept = voices["continuation"]
    assert kept.nearer.value == kept.pitch.value == 0.5 and kept.level.value == 1.0
    assert kept.own.value == pytest.approx((1 + np.cos(np.pi / 6)) / 2, abs=1e-2)
    assert voices["another's continuation"].own.value == pytest.approx(kept.own.value, abs=1e-9)
    assert voices["noise"].pitch.value == 0.0 and voices["noise"].level.value == 1.0
    assert [row[0] for row in report.quality.tables()["Whose voice it is"]][3:5] == [
        "continuation",
        "another's continuation",
    ]


def test_prompts_of_another_voice_are_those_of_another_folder(tmp_path: Path):
    pitches = {"ann_en/a": 120, "ann_en/b": 121, "ann_es/c": 122, "bob/d": 240}
    for name, pitch in pitches.items():
        save_audio(tmp_path / f"{name}.wav", speech(pitch, 3.0), RATE)
    files = sorted(tmp_path.rglob("*.wav"))
    report = continuation_report(KnownAnswer(speech(240)), files, Continuing(1.0, 2.0), Judges(embed=by_pitch))
    assert [item.voice for item in report.items] == ["ann", "ann", "ann", "bob"]
    voices = report.quality.voices
    assert voices["real speech"].other.value == pytest.approx(np.cos(np.pi / 6), abs=1e-2)  # bob's and ann's alone
    assert voices["continuation"].nearer.value == 0.25  # bob's
    each = report.quality.each_voice
    assert {voice: kept.nearer.value for voice, kept in each.items()} == {"ann": 0.0, "bob": 1.0}
    assert "Continuations of each voice" in report.table()


def test_prompts_are_taken_from_the_folders_in_turn():
    files = [Path(f"{folder}/{n}.wav") for folder, count in (("a", 100), ("b", 1), ("c", 4)) for n in range(count)]
    chosen = in_turn(files, 9)
    assert [sum(str(file).startswith(folder) for file in chosen) for folder in "abc"] == [4, 1, 4]
    assert [file.stem for file in chosen[:4]] == ["0", "25", "50", "75"]
    assert in_turn(files[:100], 4) == files[:100:25] and in_turn(files, 1000) == files


def test_what_stands_beside_a_continuation_is_as_long_as_it_and_noise_is_as_loud():
    recording, made = speech(120, 5.0), speech(200, 3.0)
    sounds = material(recording, 0.9 * recording, made, RATE, RATE, "a.wav")
    assert {len(audio) for kind, audio in sounds.items() if kind != "shuffled speech"} == {3 * RATE}
    assert np.array_equal(sounds["real speech"], recording[RATE : 4 * RATE])
    assert np.allclose(sounds["codec round trip"], 0.9 * sounds["real speech"])
    power = [np.square(sounds[kind]).mean() for kind in ("noise", "real speech")]
    assert power[0] == pytest.approx(power[1], rel=1e-3)
    assert list(material(recording[: 2 * RATE], recording[: 2 * RATE], made, RATE, RATE, "a.wav")) == ["continuation"]


def test_shuffled_speech_has_the_same_pieces_in_another_order():
    time = np.arange(4 * RATE)
    rising = (time / len(time)).astype(np.float32)  # each sample tells where it was
    found = shuffled(rising, RATE, np.random.default_rng(0))
    steps = np.flatnonzero(np.abs(np.diff(found)) > 0.01)
    assert len(rising) - 0.08 * RATE < len(found) < len(rising) and not np.allclose(found, rising[: len(found)])
    assert len(steps) < 300 and np.histogram(found, bins=8, range=(0, 1))[0].min() > 0.9 * RATE / 2


def test_a_run_that_was_killed_goes_on_with_the_same_result(prompts: list[Path], tmp_path: Path):
    judges, continuing, out = (
        Judges(embed=by_pitch, mos=lambda audio, rate: 3.0),
        Continuing(1.0, 2.0),
        tmp_path / "out",
    )
    whole = continuation_report(KnownAnswer(speech(120)), prompts, continuing, judges, out)
    lines = (out / "items.jsonl").read_bytes()
    (out / "items.jsonl").write_bytes(lines[: lines.index(b"\n") + 40])  # killed within the second line
    lm = KnownAnswer(speech(120))
    assert continuation_report(lm, prompts, continuing, judges, out) == whole
    assert len(lm.asked) == 1 and (out / "items.jsonl").read_bytes() == lines
    (out / "02-high.wav").unlink()
    assert continuation_report(lm, prompts, continuing, judges, out) == whole and len(lm.asked) == 2
    with pytest.raises(ValueError, match="holds a run with another seed .0, not 1.; choose another --out"):
        continuation_report(lm, prompts, Continuing(1.0, 2.0, seed=1), judges, out)
    (out / "items.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="items.jsonl, line 1: is not an item"):
        continuation_report(lm, prompts, continuing, judges, out)


def test_the_quarters_of_a_continuation_are_compared_with_the_prompt(prompts: list[Path]):
    answer = np.concatenate([speech(120, 2.0), speech(240, 2.0, level=0.03)])
    judges = Judges(embed=by_pitch)
    quarters = continuation_report(KnownAnswer(answer), prompts[:1], Continuing(1.0, 4.0), judges).quality.drifting
    found = quarters["continuation"]
    assert [round(quarter.semitones.value) for quarter in found] == [0, 0, 12, 12]
    assert [round(quarter.level_db.value) for quarter in found] == [0, 0, -20, -20]
    assert [quarter.bits_per_second.value for quarter in found] == pytest.approx([16_000] * 4)
    assert found[0].similarity is None  # a second is too short to know a voice by


def test_judges_that_are_not_there_are_named_with_what_to_do():
    from codeclm.inference.evaluate.quality.packaged import packaged_file

    with pytest.raises(ImportError, match=r"^no_such_judge is not installed; .*pip install --no-deps distillmos"):
        packaged_file("no_such_judge", "*.pt")
