"""data/sources: every reader of the same clips gives the same codes; what cannot be used is named and skipped."""

import csv
import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from codeclm.data.audio import AudioError
from codeclm.data.preparation import PrepareConfig, prepare
from codeclm.data.sources import Found, find_sources
from codeclm.data.sources.tables import hub_files, read_tables
from codeclm.data.token_store import TokenStore
from codeclm.model.codecs import EMBEDDED_CODEC, load_codec

NUM_CLIPS = 20
NAMES = [f"{('anna', 'ben')[i % 2]}/clip{i:02d}" for i in range(NUM_CLIPS)]


@pytest.fixture(scope="module")
def codec():
    return load_codec("spectral")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Twenty parts of a human voice, with transcripts, by two 'speakers', and the whole recording beside them."""
    root = tmp_path_factory.mktemp("clips")
    speech, rate = soundfile.read(EMBEDDED_CODEC / "prompt.flac", dtype="int16")
    for i, name in enumerate(NAMES):
        path = root / f"audio/{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speech[i * rate // 8 : i * rate // 8 + rate // 2 + 371 * i], rate)
        path.with_suffix(".txt").write_text(f"words {i}")
    soundfile.write(root / "whole.wav", speech, rate)
    return root


def rows(clips: Path, audio: str = "audio") -> list[dict]:
    return [
        {"name": name, audio: f"audio/{name}.wav", "text": f"words {i}", "speaker": name.split("/")[0]}
        for i, name in enumerate(NAMES)
    ]


def parts(clips: Path) -> list[tuple[float, float]]:
    rate = soundfile.info(clips / "whole.wav").samplerate
    return [(i / 8, i / 8 + 0.5 + 371 * i / rate) for i in range(NUM_CLIPS)]


def undecoded(clips: Path) -> datasets.Dataset:
    table = {
        "id": NAMES,
        "audio": [str(clips / f"audio/{name}.wav") for name in NAMES],
        "sentence": [f"words {i}" for i in range(NUM_CLIPS)],
        "speaker_id": [name.split("/")[0] for name in NAMES],
        "gender": ["unknown"] * NUM_CLIPS,
    }
    made = datasets.Dataset.from_dict(table).cast_column("audio", datasets.Audio(decode=False))
    return made.map(lambda row: {"audio": {"bytes": Path(row["audio"]["path"]).read_bytes(), "path": None}})


def as_jsonl(clips: Path, out: Path) -> Path:
    (clips / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(clips)))
    return clips / "list.jsonl"


def as_table(clips: Path, delimiter: str, suffix: str) -> Path:
    with (clips / f"list{suffix}").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["name", "path", "text", "speaker"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows(clips, "path"))
    return clips / f"list{suffix}"


def as_csv(clips: Path, out: Path) -> Path:
    return as_table(clips, ",", ".csv")


def as_tsv(clips: Path, out: Path) -> Path:
    return as_table(clips, "\t", ".tsv")


def as_parts(clips: Path, out: Path) -> Path:
    """Cuts of one recording."""
    times = parts(clips)
    listed = [
        row | {"audio": "whole.wav", "start": start, "end": end}
        for row, (start, end) in zip(rows(clips), times, strict=True)
    ]
    (clips / "parts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    return clips / "parts.jsonl"


def as_cuts(clips: Path, out: Path) -> Path:
    """As lhotse writes them."""
    info = soundfile.info(clips / "whole.wav")
    source = {"type": "file", "channels": [0], "source": str(clips / "whole.wav")}
    recording = {"id": "whole", "sources": [source], "sampling_rate": info.samplerate, "duration": info.duration}
    cuts = [
        {
            "id": name,
            "type": "MonoCut",
            "channel": 0,
            "start": start,
            "duration": end - start,
            "supervisions": [{"id": name, "start": 0, "text": f"words {i}", "speaker": name.split("/")[0]}],
            "recording": recording,
        }
        for i, (name, (start, end)) in enumerate(zip(NAMES, parts(clips), strict=True))
    ]
    with gzip.open(out / "cuts.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(cut) + "\n" for cut in cuts)
    return out / "cuts.jsonl.gz"


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def as_tars(clips: Path, out: Path) -> Path:
    """As WebDataset writes them: two of them, one with .txt, one with .json only."""
    (out / "tars").mkdir()
    for number in range(2):
        with tarfile.open(out / f"tars/train-{number}.tar", "w") as tar:
            for i, name in list(enumerate(NAMES))[10 * number : 10 * number + 10]:
                speaker = name.split("/")[0]
                about = {"speaker": speaker} if number == 0 else {"speaker": speaker, "text": f"words {i}"}
                add(tar, f"{name}.json", json.dumps(about).encode())
                add(tar, f"{name}.wav", (clips / f"audio/{name}.wav").read_bytes())
                if number == 0:
                    add(tar, f"{name}.txt", f"words {i}\n".encode())
    return out / "tars"


def as_saved(clips: Path, out: Path) -> Path:
    undecoded(clips).save_to_disk(out / "saved", num_shards=2)
    return out / "saved"


def as_parquet(clips: Path, out: Path) -> Path:
    """With several row groups."""
    (out / "parquet").mkdir()
    for number in range(2):
        part = undecoded(clips).shard(2, number, contiguous=True).data.table
        pq.write_table(part, out / f"parquet/train-{number}.parquet", row_group_size=3)
    return out / "parquet"


def as_folder(clips: Path, out: Path) -> Path:
    return clips / "audio"


KINDS = [as_jsonl, as_csv, as_tsv, as_parts, as_cuts, as_tars, as_saved, as_parquet]


@pytest.fixture(scope="module")
def truth(clips, codec, tmp_path_factory) -> dict[str, np.ndarray]:
    out = tmp_path_factory.mktemp("truth") / "tokens"
    prepare(clips / "audio", out, codec)
    store = TokenStore(out)
    assert sorted(store.names) == sorted(NAMES)
    return {store.text(i) or "": np.array(store.codes(i)) for i in range(len(store))}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_reader_of_the_same_clips_gives_the_same_codes(kind, clips, codec, truth, tmp_path):
    place = kind(clips, tmp_path)
    summary = prepare(place, tmp_path / "tokens", codec)
    store = TokenStore(tmp_path / "tokens")
    assert (summary.num_utterances, summary.num_rejected, summary.num_texts) == (NUM_CLIPS, 0, NUM_CLIPS)
    entries = [json.loads(path.read_text())["utterances"] for path in (tmp_path / "tokens").glob("shard-*.json")]
    speakers = {entry["text"]: entry["speaker"] for shard in entries for entry in shard}
    assert speakers == {f"words {i}": name.split("/")[0] for i, name in enumerate(NAMES)}
    assert all(entry["source"] for shard in entries for entry in shard)
    assert [name.removeprefix("train-0/").removeprefix("train-1/") for name in store.names][0].endswith("clip00")
    for i in range(len(store)):
        np.testing.assert_array_equal(store.codes(i), truth[store.text(i) or ""])
    again = prepare(place, tmp_path / "tokens", codec)
    assert again.num_encoded == 0


def codes_of(found: Found, truth: dict[str, np.ndarray], codec) -> None:
    from codeclm.data.encode_files import encode_sources

    assert len(found.sources) == NUM_CLIPS
    for (entry,) in encode_sources(found.sources, codec, PrepareConfig()):
        np.testing.assert_array_equal(entry.codes, truth[entry.text])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_by_name_is_read_downloaded_or_where_it_is(streaming, clips, codec, truth, tmp_path, monkeypatch):
    """A folder stands for the hub: `datasets` finds the same files in it, and makes the same tables of them."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    name = str(as_parquet(clips, tmp_path))
    files = hub_files(name, None, "train", streaming)
    assert all(file.endswith(".parquet") == streaming for file in files)
    codes_of(read_tables(name, files), truth, codec)
    with pytest.raises(AudioError, match="parquet.*validation"):
        hub_files(name, None, "validation", streaming)


def test_lists_tars_and_tables_at_an_address_are_read_by_fsspec(clips, codec, truth, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in sorted((clips / "audio").rglob("*.wav")):
        memory.pipe(f"/bucket/audio/{path.relative_to(clips / 'audio')}", path.read_bytes())
    memory.pipe("/bucket/list.jsonl", as_jsonl(clips, tmp_path).read_bytes())
    for folder in (as_tars(clips, tmp_path), as_parquet(clips, tmp_path)):
        for path in sorted(folder.iterdir()):
            memory.pipe(f"/bucket/{folder.name}/{path.name}", path.read_bytes())
    for place in ("memory://bucket/list.jsonl", "memory://bucket/tars", "memory://bucket/parquet"):
        codes_of(find_sources(place), truth, codec)


def test_a_saved_dataset_of_several_splits_needs_one(clips, tmp_path):
    made = undecoded(clips).train_test_split(5, shuffle=False)
    made.save_to_disk(tmp_path / "saved")
    assert len(find_sources(tmp_path / "saved", split="test")) == 5
    for split, words in ((None, "give --split one of train, test"), ("dev", "split 'dev' is unknown; one of")):
        with pytest.raises(AudioError, match=words):
            find_sources(tmp_path / "saved", split=split)
    with pytest.raises(AudioError, match="a split is chosen of a Hugging Face dataset"):
        find_sources(clips / "audio", split="test")


# --- what cannot be used ---


def test_a_broken_line_is_named_with_its_number_skipped_and_counted(clips, codec, tmp_path, caplog):
    caplog.set_level("INFO")
    good = json.dumps({"audio": "audio/anna/clip00.wav", "text": "hello", "age": 7})
    lines = [
        good,
        '{"audio": "a.wav"',
        '["a.wav"]',
        '{"text": "no audio"}',
        "",
        '{"audio": "whole.wav", "start": 3, "end": 2}',
        '{"audio": "whole.wav", "start": "soon"}',
        '{"audio": "whole.wav", "text": {"en": "x"}}',
        good,
        '{"audio": "whole.wav", "start": 1, "end": 99}',
        '{"audio": "nowhere.wav"}',
    ]
    (clips / "broken.jsonl").write_text("\n".join(lines))
    summary = prepare(clips / "broken.jsonl", tmp_path / "tokens", codec)
    assert (summary.num_files, summary.num_utterances, summary.num_rejected) == (10, 1, 9)
    rejected = [json.loads(line) for line in (tmp_path / "tokens/rejected.jsonl").open()]
    reasons = {entry["name"]: entry["reason"] for entry in rejected}
    expected = {
        "broken.jsonl:2": "is not JSON",
        "broken.jsonl:3": "is not a JSON object",
        "broken.jsonl:4": "has no audio or path, only text",
        "broken.jsonl:6": "a part from 3 to 2 s is none",
        "broken.jsonl:7": 'has start "soon"',
        "broken.jsonl:8": "where a text should be",
        "broken.jsonl:9": "has the name of line 1, 'audio/anna/clip00'",
        "whole@1-99": "is to be used up to 99 s, but ends at 4.74 s",
        "nowhere": "no such file",
    }
    assert set(reasons) == set(expected) and all(words in reasons[name] for name, words in expected.items())
    assert "broken.jsonl: not used: age" in caplog.text and "broken.jsonl line 2: is not JSON" in caplog.text
    assert prepare(clips / "broken.jsonl", tmp_path / "tokens", codec).num_rejected == 9


def test_a_table_is_told_what_its_lines_lack(clips, caplog):
    (clips / "a.csv").write_text('path,text\naudio/anna/clip00.wav,"one, two"\naudio/ben/clip01.wav\n"x"y,z\n')
    found = find_sources(clips / "a.csv")
    assert [source.text for source in found.sources] == ["one, two"]
    assert [entry.name for entry in found.skipped] == ["a.csv:3", "a.csv:4"]
    (clips / "b.csv").write_text("wave,text\na.wav,x\n")
    with pytest.raises(AudioError, match="b.csv: names no audio that can be used; has no audio or path, only wave, te"):
        find_sources(clips / "b.csv")


def test_cuts_that_are_mixed_or_of_several_channels_are_skipped(clips, tmp_path):
    place = as_cuts(clips, tmp_path)
    lines = gzip.decompress(place.read_bytes()).decode().splitlines()[:3]
    stereo, odd = json.loads(lines[1]), json.loads(lines[2])
    stereo["recording"]["sources"][0]["channels"] = [0, 1]
    del odd["recording"]["sources"]
    mixed = {"id": "m", "type": "MixedCut", "tracks": []}
    place.write_bytes(gzip.compress("\n".join([lines[0], *map(json.dumps, (stereo, odd, mixed))]).encode()))
    found = find_sources(place)
    assert len(found.sources) == 1
    words = ["several channels", "not a cut that is understood", "mixed cut"]
    assert all(word in entry.reason for word, entry in zip(words, found.skipped, strict=True))


def test_a_changed_file_text_or_part_changes_the_stamp_of_its_source_only(clips, tmp_path):
    listed = rows(clips)[:3]

    def stamps() -> list:
        (clips / "few.jsonl").write_text("\n".join(map(json.dumps, listed)))
        return [source.stamp for source in find_sources(clips / "few.jsonl").sources]

    before = stamps()
    listed[0]["text"] = "other"
    listed[1]["end"] = 0.3
    after = stamps()
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, False, True]
    os.utime(clips / f"audio/{NAMES[2]}.wav", ns=(1, 1))
    assert stamps()[2] != after[2]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "a.jsonl: names no audio that can be used"),
        ("a.jsonl", b"\xff\xfe{", "a.jsonl: is not UTF-8 text"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz: cannot be read"),
        ("a.tar", b"no tar at all", "a.tar: holds no audio that can be used; a: cannot be read as a .tar"),
        ("a.tar.gz", gzip.compress(b"x", mtime=0), "a.tar.gz: .*unpack"),
        ("a.parquet", b"PAR1 and no more", "a.parquet: holds no audio that can be used; is no whole parquet"),
        ("a.arrow", b"no arrow", "a.arrow: holds no audio that can be used; is no whole parquet or Arrow"),
        ("state.json", b"{", "is no whole dataset of save_to_disk"),
    ],
)
def test_a_source_that_is_broken_is_told_in_a_line(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AudioError, match=words) as caught:
        find_sources(tmp_path if name == "state.json" else tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_cut_tar_and_odd_samples_are_named_and_the_rest_is_used(clips, tmp_path, caplog):
    folder = as_tars(clips, tmp_path)
    cut = folder / "train-0.tar"
    cut.write_bytes(cut.read_bytes()[:20_000])
    with tarfile.open(folder / "odd.tar", "w") as tar:
        add(tar, "two.wav", b"x")
        add(tar, "two.flac", b"x")
        add(tar, "silent.txt", b"no audio")
        add(tar, "bad.wav", b"x")
        add(tar, "bad.json", b"{")
        add(tar, "fine.wav", (clips / f"audio/{NAMES[0]}.wav").read_bytes())
        add(tar, "empty.wav", b"")
    found = find_sources(folder)
    reasons = {entry.name: entry.reason for entry in found.skipped}
    assert reasons.pop("train-0") == "is cut off or broken at ben/clip01; used up to there"
    assert {name: words.split(" ")[0] for name, words in reasons.items()} == {
        "odd/two": "a",
        "odd/silent": "a",
        "odd/bad": "its",
    }
    names = [source.name for source in found.sources]
    assert names[:2] == ["odd/fine", "odd/empty"] and len(names) == 13
    with pytest.raises(AudioError, match="odd.tar: empty.wav: the file is empty"):
        found.sources[1].open()


def test_a_table_without_audio_or_with_rows_that_have_none_says_so(clips, tmp_path):
    pq.write_table(pa.table({"codes": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(AudioError, match="a.parquet: has no column of audio .*its columns are codes"):
        find_sources(tmp_path / "a.parquet")
    values = [{"bytes": None, "path": None}, {"bytes": b"", "path": "x"}, {"bytes": None, "path": "gone.wav"}]
    pq.write_table(pa.table({"audio": values}), tmp_path / "b.parquet")
    found = find_sources(tmp_path / "b.parquet")
    assert [source.name for source in found.sources] == ["b/0", "b/1", "b/2"]
    for source, words in zip(found.sources, ["neither bytes nor a path", "empty"], strict=False):
        with pytest.raises(AudioError, match=f"b.parquet row .*{words}"):
            source.open()
    assert found.sources[2].open() == tmp_path / "gone.wav"
