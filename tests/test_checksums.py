"""model/checksums.py: what was written is what is loaded, whatever happened to the files in between."""

import json
import logging
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from codeclm.inference.loading import EMBEDDED_MODEL, checkpoint_hash, checksum_note, load, load_speech_lm, save_model
from codeclm.model import SpeechLM
from codeclm.model.checksums import CHECKSUMS, content_sha256, write_checksums
from codeclm.model.codecs import EMBEDDED_FILES, load_codec


@pytest.fixture(scope="module")
def codec(make_codec):
    return make_codec()


@pytest.fixture
def folder(make_model, codec, tmp_path) -> Path:
    save_model(make_model((0, 1, 1), codec=codec, dtype=torch.float32), codec, tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def embedded(tmp_path) -> Path:
    """A copy of the embedded model, as somebody may carry it about."""
    shutil.copytree(EMBEDDED_MODEL, tmp_path / "copy", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return tmp_path / "copy"


def set_values(path: Path, part: str, **values) -> None:
    config = json.loads(path.read_text())
    (config[part] if part else config).update(values)
    path.write_text(json.dumps(config))


def data_start(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


@pytest.mark.slow
def test_fifty_flipped_bits_of_the_embedded_weights_are_refused_each(embedded):
    path, draw = embedded / "model.safetensors", random.Random(0)
    content, start = path.read_bytes(), data_start(path)
    for count in range(50):
        position, bit = draw.randrange(start, len(content)), draw.randrange(8)
        with path.open("r+b") as file:
            file.seek(position)
            file.write(bytes([content[position] ^ 1 << bit]))
        # a weight that became NaN is named as such
        with pytest.raises(ValueError, match="model.safetensors: (is not what was written|tensor .* holds NaN)"):
            load(embedded, "cpu") if count < 3 else load_speech_lm(embedded)
        with path.open("r+b") as file:
            file.seek(position)
            file.write(content[position : position + 1])
    load(embedded, "cpu")


@pytest.mark.parametrize("name", ["model.safetensors", "codec/model.safetensors"])
def test_a_bit_flipped_anywhere_in_a_file_is_refused_in_one_line(folder, name):
    content, draw = (folder / name).read_bytes(), random.Random(1)
    places = [draw.randrange(len(content)) for _ in range(20)]
    for position in (0, 9, data_start(folder / name), len(content) - 1, *places):
        changed = bytearray(content)
        changed[position] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(changed)
        with pytest.raises(ValueError, match=name) as caught:
            load(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part, change", [("", dict(context_frames=32)), ("backbone", dict(rope_theta=1000.0))])
def test_an_edited_config_is_refused_until_the_checksums_go(embedded, part, change):
    set_values(embedded / "config.json", part, **change)
    with pytest.raises(ValueError, match=f"config.json: is not what was written .* delete .*{CHECKSUMS}"):
        load(embedded, "cpu")
    (embedded / CHECKSUMS).unlink()
    config = load(embedded, "cpu").model.config
    assert (config.to_dict()[part] if part else config.to_dict()).items() >= change.items()


def test_an_edited_codec_is_refused_by_its_file(folder):
    set_values(folder / "codec" / "config.json", "", lookahead=2)
    with pytest.raises(ValueError, match="codec/config.json: is not what was written"):
        load_codec(folder / "codec")


def test_the_embedded_weights_have_checksums_that_hold():
    known = json.loads((EMBEDDED_MODEL / CHECKSUMS).read_text())
    assert set(known) == {"config.json", "model.safetensors", "tokenizer.model", "ngram.safetensors", *EMBEDDED_FILES}
    assert {name: content_sha256(EMBEDDED_MODEL / name) for name in known} == known


def test_how_a_config_is_written_is_no_change(folder):
    values = json.loads((folder / "config.json").read_text())
    values |= {"transformers_version": "9.9", "architectures": ["SpeechLM"], "dtype": "float32"}
    reverse = dict(reversed(values.items()))
    (folder / "config.json").write_bytes(json.dumps(reverse, indent=1).replace("\n", "\r\n").encode())
    load(folder)


def test_a_folder_without_checksums_loads_and_says_so_in_one_line(folder, caplog):
    assert checksum_note(folder) == "its files are what was written (checksums.json)"
    (folder / CHECKSUMS).unlink()
    assert "is not known" in checksum_note(folder)  # what `codeclm verify` prints
    with caplog.at_level(logging.INFO, "codeclm"):
        load(folder)
    (record,) = [record for record in caplog.records if CHECKSUMS in record.message]
    assert record.message.startswith(f"{folder}: has no {CHECKSUMS}") and record.name.startswith("codeclm.")
    caplog.clear()
    write_checksums(folder)
    with caplog.at_level(logging.INFO, "codeclm"):
        load(folder)
    assert not [record for record in caplog.records if CHECKSUMS in record.message]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"config.json": 3}'])
def test_broken_checksums_are_refused_by_their_file(folder, content):
    (folder / CHECKSUMS).write_text(content)
    with pytest.raises(ValueError, match=CHECKSUMS):
        load(folder)


def test_what_transformers_saves_has_checksums_too(make_model, tmp_path):
    model = make_model(dtype=torch.float32)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    for name in ("whole", "shards"):
        known = json.loads((tmp_path / name / CHECKSUMS).read_text())
        assert "config.json" in known and len(known) == len(list((tmp_path / name).glob("*.json*"))) - 1 + len(
            list((tmp_path / name).glob("*.safetensors"))
        )
    shard = sorted((tmp_path / "shards").glob("model-*.safetensors"))[0]
    with safe_open(shard, "pt") as file:
        assert len(list(file.keys())) < len(model.state_dict())
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    codes = torch.randint(0, 7, (1, 3, 4))
    with torch.no_grad():
        assert torch.allclose(load_speech_lm(tmp_path / "shards")(codes).nll, model(codes).nll, atol=1e-5)
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=f"{shard.name}: is not what was written"):
        load_speech_lm(tmp_path / "shards")
    # saved again by transformers, the checksums are those of what is there now
    SpeechLM.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16).save_pretrained(tmp_path / "whole")
    load_speech_lm(tmp_path / "whole")


def test_the_checkpoint_hash_is_of_the_weights_and_of_every_setting_that_decides_numbers(folder):
    first = checkpoint_hash(folder)
    values = json.loads((folder / "config.json").read_text())
    seen = {first}
    for part, key, value in (
        ("", "context_frames", 32), ("backbone", "rope_theta", 999.0), ("backbone", "norm_eps", 1e-5),
        ("", "end", "never"), ("depth", "sliding_window", 2), ("codec", "fingerprint", "0" * 64),
        ("codec", "hop_length", 81),
    ):  # fmt: skip
        set_values(folder / "config.json", part, **{key: value})
        seen.add(checkpoint_hash(folder))
        (folder / "config.json").write_text(json.dumps(values))
    assert len(seen) == 8
    # not of how they are written, of defaults that are left out, or of names for people
    for key in ("bos", "gaps", "user_codebooks", "context_frames"):
        values.pop(key)
    values["codec"]["name"] = "another"
    values |= {"transformers_version": "9.9"}
    values["backbone"]["rope_theta"] = 10_000
    (folder / "config.json").write_text(json.dumps(dict(reversed(values.items())), indent=7))
    assert checkpoint_hash(folder) == first
