"""A recording through a codec in pieces: what comes out is what the whole would give. S samples."""

import numpy as np
import pytest
import soundfile
import torch

from codeclm.data.audio import AudioError
from codeclm.data.audio_out import save_audio
from codeclm.inference.codec import roundtrip as module
from codeclm.inference.codec.roundtrip import decoded, encoded, roundtrip
from codeclm.inference.sound.measures import log_mel_distance
from codeclm.model.codecs import Codec, load_codec

RATE = 8_000
NAMES = ["tiny", "mulaw", "mdct"]


@pytest.fixture(scope="module")
def codecs(make_codec) -> dict[str, Codec]:
    return {"tiny": make_codec(), "mulaw": load_codec("mulaw"), "mdct": load_codec("mdct")}


def sound(seconds: float, rate: int = RATE) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * 200 * time) * (1 + np.sin(5 * time)) / 2).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_holds_what_encoding_and_decoding_the_whole_gives(name, codecs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE_S", 0.7)
    monkeypatch.setattr("codeclm.data.audio.BLOCK_S", 0.33)
    codec, rate = codecs[name], codecs[name].sample_rate
    audio = sound(2.3456, rate)
    save_audio(tmp_path / "in.wav", audio, rate)
    found = roundtrip(tmp_path / "in.wav", tmp_path / "out.wav", codec)
    heard, out = (soundfile.read(tmp_path / file, dtype="float32")[0] for file in ("in.wav", "out.wav"))
    codes = codec.encode(torch.from_numpy(heard)[None, None])
    whole = codec.decode(codes)[0, 0, : len(audio)].numpy()
    assert (found.num_samples, found.num_frames) == (len(audio), codes.shape[-1]) and len(out) == len(audio)
    np.testing.assert_allclose(out, whole.clip(-1, 1), atol=2e-4)
    assert found.distance == pytest.approx(log_mel_distance(heard, whole, rate), rel=0.15, abs=1e-4)  # seams


@pytest.mark.parametrize("name", NAMES)
def test_decoding_gives_the_same_samples_whatever_the_pieces(name, codecs, monkeypatch):
    monkeypatch.setattr(module, "PIECE_S", 0.4)
    codec = codecs[name]
    codes = next(encoded(codec, [sound(1.5, codec.sample_rate)]))
    whole = np.concatenate(list(decoded(codec, [codes])))
    for length in (1, 17) if name == "tiny" else (17, 1000):
        assert np.array_equal(np.concatenate(list(decoded(codec, codes.split(length, dim=-1)))), whole)


@pytest.mark.parametrize("audio, reason", [(np.zeros(RATE, np.float32), "silent"), (sound(0.05), "too short")])
def test_a_recording_that_turns_out_to_be_of_no_use_leaves_no_file(audio, reason, codecs, tmp_path):
    save_audio(tmp_path / "in.wav", audio, RATE)
    (tmp_path / "out.wav").write_text("what was there")
    with pytest.raises(AudioError, match=reason):
        roundtrip(tmp_path / "in.wav", tmp_path / "out.wav", codecs["tiny"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.wav", "out.wav"]
    assert (tmp_path / "out.wav").read_text() == "what was there"
