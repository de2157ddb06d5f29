"""`codeclm doctor DATA` finds faults that were planted in speech, and accuses none of the healthy twin."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from codeclm.data.preparation import prepare
from codeclm.data.store_writer import Utterance, commit_store, write_shard
from codeclm.data.token_store import TokenStore
from codeclm.inference.doctor.checkup import checkup
from codeclm.inference.doctor.duplicates import KEPT, sketch
from codeclm.inference.doctor.findings import Report
from codeclm.inference.doctor.sound import bandwidth, flat_share, longest_run
from codeclm.inference.doctor.speech import Speech, in_turn
from codeclm.inference.doctor.texts import is_mixed, script_of
from codeclm.model.codec_reference import CodecReference
from codeclm.model.pretrained import PROMPT
from codeclm.train.cli import main

RATE = 16_000
SPEAKERS = ("ada", "bo")
REFERENCE = CodecReference("some", "0" * 64, RATE, 640, 2, 1024)


def voice(speed: float, seconds: float = 2.5) -> np.ndarray:
    """The bundled human voice, faster or slower: another recording, and another speaker."""
    audio, rate = soundfile.read(PROMPT, dtype="float32")
    return soxr.resample(audio[: round(speed * seconds * rate)], rate * speed, RATE)


def write(path: Path, audio: np.ndarray, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    """Two splits of three recordings each of two speakers."""
    folder = tmp_path_factory.mktemp("healthy")
    speeds = iter(np.linspace(0.8, 1.25, 12))
    for speaker in SPEAKERS:
        for split in ("train", "test"):
            for number in range(3):
                write(folder / split / speaker / f"{split}{number}.flac", voice(next(speeds)))
    return folder


@pytest.fixture(scope="module")
def healthy_report(healthy) -> Report:
    return checkup([healthy / "train", healthy / "test"])


def told(report: Report, check: str) -> list[str]:
    """What is told of a check: "severity found"."""
    return [f"{finding.severity} {finding.text}" for finding in report.findings if finding.check == check]


# --- the sound, and splits ---


def leak(train: Path, test: Path) -> None:
    """Without its first two frames, at another rate and under another name."""
    audio, _ = soundfile.read(train / "bo/train1.flac")
    write(test / "bo/other.wav", soxr.resample(audio[2 * 640 :], RATE, 24_000), 24_000)


def telephone(train: Path, test: Path) -> None:
    audio, _ = soundfile.read(train / "bo/train1.flac")
    write(train / "bo/train1.flac", soxr.resample(soxr.resample(audio, RATE, 8000), 8000, 24_000), 24_000)


def silent_half(train: Path, test: Path) -> None:
    audio, _ = soundfile.read(train / "ada/train2.flac")
    audio[len(audio) // 2 :] = 0
    write(train / "ada/train2.flac", audio)


def clipped_speaker(train: Path, test: Path) -> None:
    for path in (train / "bo").iterdir():
        audio, _ = soundfile.read(path)
        write(path, np.clip(8 * audio / np.abs(audio).max(), -1, 1) / 2)  # turned down after it was cut off


def quiet_speaker(train: Path, test: Path) -> None:
    for path in (train / "ada").iterdir():
        audio, _ = soundfile.read(path)
        write(path, 0.1 * audio)


def noise(train: Path, test: Path) -> None:
    write(train / "ada/train0.flac", 0.1 * np.random.default_rng(0).standard_normal(2 * RATE))


def offset(train: Path, test: Path) -> None:
    audio, _ = soundfile.read(train / "ada/train0.flac")
    write(train / "ada/train0.flac", 0.5 * audio + 0.1)


def near_duplicate(train: Path, test: Path) -> None:
    audio, _ = soundfile.read(train / "bo/train1.flac")
    write(train / "ada/again.flac", audio[3 * 640 : -5000])


def cut_file(train: Path, test: Path) -> None:
    path = train / "ada/train0.wav"
    write(path, voice(1.0))
    path.write_bytes(path.read_bytes()[:20_000])


@pytest.mark.parametrize(
    "plant, check, severity, words",
    [
        (leak, "leakage", "error", "bo/train1 = bo/other"),
        (telephone, "narrow band", "warning", "1 of 6 clips hold nothing above 4.00 kHz, where the codec takes 8"),
        (silent_half, "long silence", "warning", "ada/train2"),
        (clipped_speaker, "clipping", "warning", "cut off, 3 of 3 of speaker bo (bo/train"),
        (quiet_speaker, "level", "warning", "ada -2"),
        (noise, "no voice", "warning", "ada/train0"),
        (offset, "offset", "warning", "ada/train0"),
        (near_duplicate, "duplicates", "warning", "ada/again"),
        (cut_file, "rejected", "warning", "1 file: cut off"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_fault_in_the_sound_is_found_and_the_healthy_twin_is_not_accused(
    plant: Callable[[Path, Path], None],
    check: str,
    severity: str,
    words: str,
    healthy: Path,
    healthy_report: Report,
    tmp_path,
):
    assert told(healthy_report, check) == []
    folder = Path(shutil.copytree(healthy, tmp_path / "sick"))
    plant(folder / "train", folder / "test")
    targets = [folder / "train", folder / "test"] if check == "leakage" else [folder / "train"]
    found = told(checkup(targets), check)
    assert len(found) == 1 and found[0].startswith(severity) and words in found[0], found


def test_healthy_speech_has_no_errors_and_no_warnings(healthy_report):
    assert [finding for finding in healthy_report.findings if finding.severity != "note"] == []
    assert [finding.check for finding in healthy_report.between] == ["speakers"]
    facts = healthy_report.examined[0].facts
    assert facts["num_utterances"] == 6 and facts["hours"] == pytest.approx(6 * 2.5 / 3600, rel=0.01)
    assert set(facts["hours_by_speaker"]) == set(SPEAKERS) and facts["rejected"] == {}


def test_a_store_is_measured_through_its_codec(healthy, tmp_path):
    folder = Path(shutil.copytree(healthy / "train", tmp_path / "sick"))
    telephone(folder, folder)
    prepare(folder, tmp_path / "store", progress=False)
    prepare(healthy / "train", tmp_path / "twin", progress=False)
    sick, twin = checkup([tmp_path / "store"]), checkup([tmp_path / "twin"])
    assert "bo/train1" in told(sick, "narrow band")[0]
    assert told(twin, "narrow band") == [] and twin.examined[0].facts["sound"]["num_clips"] == 6


# --- codes and texts ---


def utterances(seed: int, count: int = 20) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 1024, (rng.integers(20, 200), 2)) for _ in range(count)]


def test_a_dead_codebook_is_an_error(make_store, tmp_path):
    codes = utterances(0)
    assert told(checkup([make_store(tmp_path / "healthy", codes, REFERENCE).folder]), "dead codebook") == []
    for values in codes:
        values[:, 1] = 7
    found = told(checkup([make_store(tmp_path / "dead", codes, REFERENCE).folder]), "dead codebook")
    assert found == ["error codebook 1 carries 0.00 of 10 bits a code (1 code used)"]


def test_transcripts_that_belong_to_the_next_file_are_an_error(make_store, tmp_path):
    codes = utterances(0)
    texts = ["a word or two "[: 3 + len(values) % 9] * max(1, len(values) // 9) for values in codes]
    names = [f"u{i:02d}" for i in range(len(codes))]
    healthy = make_store(tmp_path / "healthy", codes, REFERENCE, names, texts)
    assert told(checkup([healthy.folder]), "texts") == []
    for by, words in ((1, "each fits the audio of 1 file after its own"), (-2, "of 2 files before its own")):
        shifted = make_store(tmp_path / f"shifted{by}", codes, REFERENCE, names, list(np.roll(texts, -by)))
        found = told(checkup([shifted.folder]), "texts")
        assert len(found) == 1 and found[0].startswith("error") and words in found[0], found
    mixed = make_store(tmp_path / "mixed", codes, REFERENCE, names, list(np.random.default_rng(0).permutation(texts)))
    assert "their lengths do not go with the durations" in told(checkup([mixed.folder]), "texts")[0]


def test_texts_that_are_far_too_long_or_in_another_script_are_named(make_store, tmp_path):
    codes = utterances(0)
    texts = ["abc " * (len(values) // 8) for values in codes]
    texts[3], texts[5], texts[6] = texts[3] * 9, "не то " * (len(codes[5]) // 12), "one pаге " * (len(codes[6]) // 20)
    found = told(checkup([make_store(tmp_path / "store", codes, REFERENCE, None, texts).folder]), "texts")
    assert [words.split(" (")[1].split(" ")[0].rstrip("),") for words in found] == ["voice/u3", "voice/u5", "voice/u6"]
    assert script_of("naïve, 1!") == "LATIN" and script_of("123") == "" and not is_mixed("naïve")


def test_a_damaged_store_is_an_error_and_the_others_are_examined(make_store, tmp_path):
    stores = [make_store(tmp_path / name, utterances(i), REFERENCE) for i, name in enumerate(("cut", "flip", "good"))]
    content = (stores[0].folder / "shard-00000.bin").read_bytes()
    (stores[0].folder / "shard-00000.bin").write_bytes(content[:-10])
    content = (stores[1].folder / "shard-00000.bin").read_bytes()
    (stores[1].folder / "shard-00000.bin").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    report = checkup([store.folder for store in stores])
    found = told(report, "checksums")
    assert len(found) == 2 and "is cut off or changed" in found[0] and "content it was written with" in found[1]
    assert report.examined[2].findings == [] and report.examined[2].facts["num_utterances"] == 20


def test_duplicates_are_found_by_codes_whatever_they_are_called(make_store, tmp_path):
    codes = utterances(0)
    names = [f"u{i}" for i in range(len(codes))]
    long = max(codes, key=len)
    whole, part = codes[4], long[7:60]
    sick = make_store(tmp_path / "sick", [*codes, whole, part], REFERENCE, [*names, "whole", "part"])
    found = told(checkup([sick.folder]), "duplicates")
    longest = names[[len(values) for values in codes].index(len(long))]
    assert len(found) == 1 and "2 pairs, 1 with equal codes and 1 in part" in found[0]
    told_pairs = {frozenset(pair.split(" = ")) for pair in found[0].split("in part (")[1].rstrip(")").split(", ")}
    assert told_pairs == {frozenset(("u4", "whole")), frozenset((longest, "part"))}


def test_copies_and_pieces_of_a_recording_are_no_duplicates(make_store, tmp_path):
    codes = utterances(0, 4)
    names = ["a~0", "a~1", "b#0", "b#1", "c", "d"]
    store = make_store(tmp_path / "store", [codes[0], codes[0][1:], codes[1], codes[1], *codes[2:]], REFERENCE, names)
    assert told(checkup([store.folder]), "duplicates") == []


def test_speakers_are_those_of_the_store_else_the_first_folder_of_the_name(tmp_path):
    codes, names = utterances(0, 4), ["a/x", "a/b/y", "z", "a/w"]
    speakers = [None, None, None, "mia"]
    made = [
        Utterance(name, len(values) * 640, values, speaker=speaker)
        for name, values, speaker in zip(names, codes, speakers, strict=True)
    ]
    commit_store(tmp_path, REFERENCE, [write_shard(tmp_path, 0, made, REFERENCE)])
    speech = Speech(tmp_path, TokenStore(tmp_path))
    assert [speech.speaker(i) for i in range(4)] == ["a", "a", "", "mia"]
    hours = checkup([tmp_path]).examined[0].facts["hours_by_speaker"]
    assert hours["mia"] == pytest.approx(len(codes[3]) * 640 / RATE / 3600) and len(hours) == 3


def test_sound_is_measured_of_all_speakers_in_turn():
    hashes, groups = np.array([5, 4, 3, 2, 1, 9, 8], np.uint64), np.array([0, 0, 0, 0, 0, 1, 1])
    assert in_turn(hashes, groups) == [4, 6, 3, 5, 2, 1, 0]


def test_speech_that_repeats_a_pause_or_a_greeting_is_not_accused(make_store, tmp_path):
    codes, greeting = utterances(0, 60), utterances(1, 1)[0][:15]
    codes = [np.concatenate([greeting, np.full((40, 2), 3), values]) for values in codes]
    assert told(checkup([make_store(tmp_path / "store", codes, REFERENCE).folder]), "duplicates") == []


def test_a_sketch_keeps_a_share_of_the_grams_that_does_not_depend_on_the_store(make_store, tmp_path, monkeypatch):
    codes = utterances(0)
    store = make_store(tmp_path / "store", codes, REFERENCE)
    total = int(store.num_frames.sum())
    assert sketch(store).every == 1 and total < KEPT
    monkeypatch.setattr("codeclm.inference.doctor.duplicates.KEPT", total // 4)
    few = sketch(store)
    assert few.every == 4 and 0 < len(few.grams) < total / 3 and (few.grams % np.uint64(4) == 0).all()


# --- measures ---


def test_the_bandwidth_of_a_voice_is_that_of_the_rate_it_once_had():
    for once in (6000, 8000, 12_000):
        narrow = soxr.resample(soxr.resample(voice(1.0), RATE, once), once, 24_000)
        assert bandwidth(narrow, 24_000) == pytest.approx(once / 2, abs=300)


def test_only_flat_tops_are_cut_off():
    audio = voice(1.0)
    assert flat_share(audio) < 1e-4 < 1e-2 < flat_share(0.3 * np.clip(audio / np.abs(audio).max(), -0.2, 0.2))


def test_the_longest_run_is_the_longest():
    assert [longest_run(np.array(list(word)) == "x") for word in ("", "xx..xxx.x", "...", "xxxx")] == [0, 3, 0, 4]


# --- the command ---


def test_the_command_prints_findings_and_its_status_says_whether_there_are_errors(
    healthy, healthy_report, tmp_path, capsys
):
    main(["doctor", str(healthy / "test"), "--limit", "0.2", "--json", str(tmp_path / "healthy.json")])
    assert "nothing is wrong" in capsys.readouterr().out
    values = json.loads((tmp_path / "healthy.json").read_text())
    assert values["examined"][0]["sound"]["seconds"] == pytest.approx(12.0, abs=0.6)
    with pytest.raises(SystemExit) as caught:
        main(["doctor", str(healthy / "test"), str(healthy / "test"), "--json", str(tmp_path / "leak.json")])
    assert caught.value.code == 1
    out = capsys.readouterr().out
    assert "ERROR" in out and "leakage" in out and "6 pairs, 6 with equal codes" in " ".join(out.split())
    values = json.loads((tmp_path / "leak.json").read_text())
    assert [finding["severity"] for finding in values["compared"]] == ["error", "note"]
