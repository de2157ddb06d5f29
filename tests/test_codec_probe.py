"""data/codec_probe.py: a codec of equal weights that behaves otherwise is refused; another rounding is not."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from codeclm.data.codec_probe import PROBE, Probe, check_behaviour, probe_signal
from codeclm.data.preparation import open_or_prepare, prepare
from codeclm.model.codecs import Codec

from .test_prepare import RATE, voice


@pytest.fixture
def audio(tmp_path) -> Path:
    (tmp_path / "audio").mkdir()
    for i in range(3):
        soundfile.write(tmp_path / f"audio/{i}.wav", voice(i), RATE)
    return tmp_path / "audio"


def from_another_machine(out: Path) -> None:
    stored = json.loads((out / PROBE).read_text())
    stored["made_by"]["transformers"] = "5.2.0"
    (out / PROBE).write_text(json.dumps(stored))


def changing(codec: Codec, share: float, monkeypatch) -> None:
    """Codes of this share of the frames are others, and the weights are the same."""
    encode = codec.encode

    def other(batch, *lengths):
        codes = encode(batch, *lengths)
        frames = torch.from_numpy(np.random.default_rng(0).random(codes.shape[-1]) < share)
        codes[..., frames] = (codes[..., frames] + 1) % codec.codebook_size
        return codes

    monkeypatch.setattr(codec, "encode", other)


def test_the_signal_is_the_same_everywhere_and_full():
    signal = probe_signal(8000)
    assert hashlib.sha256(signal.tobytes()).hexdigest()[:16] == "6dd748d12d77662c"
    assert signal.dtype == np.float32 and 0.3 < np.abs(signal).max() <= 1 and 0.02 < signal.std() < 0.3


@pytest.mark.parametrize("way", ["more files", "open"])
def test_a_codec_that_behaves_otherwise_is_refused_by_name(way, audio, make_codec, tmp_path, monkeypatch):
    codec, out = make_codec(), tmp_path / "tokens"
    prepare(audio, out, codec)
    from_another_machine(out)
    changing(codec, 0.5, monkeypatch)
    soundfile.write(audio / "new.wav", voice(9), RATE)
    with pytest.raises(
        ValueError, match=r"'tiny' has the same weights but makes other codes here .*transformers 5.2.0"
    ):
        prepare(audio, out, codec) if way == "more files" else open_or_prepare(out, tmp_path / "x", codec)


def test_a_few_codes_that_round_otherwise_are_let_pass(audio, make_codec, tmp_path, monkeypatch):
    codec, out = make_codec(), tmp_path / "tokens"
    prepare(audio, out, codec)
    from_another_machine(out)
    changing(codec, 0.02, monkeypatch)
    check_behaviour(codec, out)
    soundfile.write(audio / "new.wav", voice(9), RATE)
    assert prepare(audio, out, codec).num_encoded == 1


def test_it_is_not_computed_again_where_nothing_differs_and_not_kept_where_there_is_no_store(
    audio, make_codec, tmp_path, monkeypatch
):
    codec, out = make_codec(), tmp_path / "tokens"
    prepare(audio, out, codec)
    monkeypatch.setattr(Probe, "of", lambda codec: pytest.fail("it was computed"))
    soundfile.write(audio / "new.wav", voice(9), RATE)
    prepare(audio, out, codec)
    open_or_prepare(out, tmp_path / "x", codec)
    (out / PROBE).unlink()  # a store of before
    check_behaviour(codec, out)
    soundfile.write(audio / "newer.wav", voice(10), RATE)
    prepare(audio, out, codec)
    assert not (out / PROBE).exists()


def test_the_probe_of_a_codec_that_changes_only_after_seconds_differs(make_codec, monkeypatch):
    """As transformers' Mimi did, beyond the 10 s that its attention should have seen."""
    codec = make_codec()
    before = Probe.of(codec)
    encode = codec.encode

    def later(batch):
        codes = encode(batch)
        codes[..., round(10 * codec.frame_rate) :] ^= 1
        return codes

    monkeypatch.setattr(codec, "encode", later)
    assert before.share_changed(before) == 0 and 0.6 < before.share_changed(Probe.of(codec)) < 0.7
