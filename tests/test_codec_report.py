"""The codec report on a tiny codec with random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from codeclm.data.audio import save_wav
from codeclm.inference.evaluate import codec_report as module
from codeclm.inference.evaluate.codec_report import codebook_use, codec_report
from codeclm.model.codecs import SpectralCodec, SpectralConfig

RATE = 16_000


@pytest.fixture
def codec() -> SpectralCodec:
    torch.manual_seed(0)
    config = SpectralConfig(
        encoder_dim=16,
        dim=16,
        encoder_layers=1,
        latent_layers=1,
        bottleneck_layers=1,
        decoder_layers=1,
        num_codebooks=3,
        codebook_size=32,
    )
    return SpectralCodec(config).eval()


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    time = np.arange(2 * RATE) / RATE
    paths = []
    for index, pitch in enumerate((110, 190)):
        signal = 0.3 * np.sign(np.sin(2 * np.pi * pitch * time + 3 * np.sin(6 * time))) * (np.sin(18 * time) > -0.3)
        paths.append(tmp_path / f"clip{index}.wav")
        save_wav(paths[-1], signal, RATE)
    return paths


def test_every_clip_is_measured_and_a_broken_one_is_named(clips: list[Path], codec: SpectralCodec, tmp_path: Path):
    (tmp_path / "broken.wav").write_bytes(b"not audio")
    report = codec_report([*clips, tmp_path / "broken.wav"], codec)
    assert [clip.name for clip in report.clips] == ["clip0.wav", "clip1.wav"]
    assert len(report.skipped) == 1 and "broken.wav" in report.skipped[0]
    assert report.num_frames == 2 * codec.num_frames(2 * RATE)
    values = [clip.measures.log_mel_distance for clip in report.clips]
    assert report.mean.log_mel_distance == pytest.approx(np.mean(values)) and min(values) > 0
    assert np.isnan(report.mean.word_error_rate)
    table = report.table()
    assert "375 bits/s, 25 frames/s, 3 codebooks of 32" in table
    assert "clip1.wav" in table and "skipped" in table and "WER" not in table


def test_the_report_is_valid_json_though_some_measures_are_not_defined(clips: list[Path], codec: SpectralCodec):
    report = json.loads(json.dumps(codec_report(clips, codec).to_dict(), allow_nan=False))
    assert report["mean"]["word_error_rate"] is None
    assert report["clips"][0]["measures"]["stoi"] < 1


class Typist:
    """Stands in for the recogniser: the first and the second transcript of each clip."""

    texts = ["one two three", "one two three", "four", "five six"]

    def __init__(self) -> None:
        self.left = list(self.texts)

    def detect_language(self, audio: np.ndarray, sample_rate: int) -> str:
        return "en"

    def transcribe(self, audio: np.ndarray, sample_rate: int, language: str) -> str:
        return self.left.pop(0)


def test_the_mean_word_error_rate_is_pooled_over_words(
    clips: list[Path], codec: SpectralCodec, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("jiwer")
    monkeypatch.setattr(module, "Transcriber", Typist)
    report = codec_report(clips, codec, asr=True)
    assert [clip.measures.word_error_rate for clip in report.clips] == [0, 2]
    assert report.mean.word_error_rate == 0.5
    assert "50.0%" in report.table()


def test_no_usable_clip_is_an_error_that_says_why(codec: SpectralCodec, tmp_path: Path):
    with pytest.raises(ValueError, match="no such file"):
        codec_report([tmp_path / "missing.wav"], codec)


def test_codebook_use_of_even_and_of_single_entries():
    assert codebook_use(np.array([5, 5, 0, 0])).used_share == 0.5
    assert codebook_use(np.array([5, 5, 0, 0])).perplexity == pytest.approx(2)
    assert codebook_use(np.array([0, 9, 0, 0])).perplexity == pytest.approx(1)
