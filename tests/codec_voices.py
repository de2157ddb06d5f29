"""Seconds of synthetic voices, and the settings of a tiny "spectral" codec that is trained on them."""

from pathlib import Path

import numpy as np

from codeclm.data.audio_out import save_audio
from codeclm.model.codec_shapes import SpectralConfig
from codeclm.train.codec_config import CodecTrainConfig
from codeclm.train.voice_crops import VoiceCrops

RATE = 8_000
TINY = CodecTrainConfig(
    steps=30,
    batch_size=2,
    crop_frames=25,
    learning_rate=3e-3,
    warmup_steps=3,
    quantize_from=0.2,
    adversarial_from=0.5,
    adversarial_rows=2,
    save_every=10,
    bf16=False,
    codec=SpectralConfig(
        sample_rate=RATE, trunk_hop=80, window=160, pitch_window=256, filters_per_hop=2,
        encoder_dim=16, dim=16, encoder_layers=1, bottleneck_layers=1, decoder_layers=1, pitch_dim=8, kernel=3,
        num_codebooks=3, codebook_size=32, codebook_dim=4,
    ),
)  # fmt: skip


def voice(pitch: float, duration_s: float, seed: int) -> np.ndarray:
    """Harmonics of a wandering pitch under a syllable-like envelope, with some breath."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(duration_s * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * time))) / RATE
    tone = sum(np.sin(n * phase) / n for n in range(1, 8))
    envelope = 0.15 + 0.85 * np.sin(2 * np.pi * 2 * time) ** 2
    return 0.2 * envelope * tone + 0.01 * rng.standard_normal(len(time))


def low_and_high(folder: Path) -> Path:
    """Two voices, two recordings each."""
    for name, pitch in (("low", 110.0), ("high", 210.0)):
        for index in range(2):
            save_audio(folder / name / f"{index}.wav", voice(pitch, 3.0, index), RATE)
    return folder


def crops_of(data: Path, tmp_path: Path) -> VoiceCrops:
    return VoiceCrops(data, tmp_path / "decoded", RATE, max_hours=1.0, hop=80)
