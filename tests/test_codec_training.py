"""Training the "spectral" codec, on seconds of synthetic voices and with tiny networks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from codeclm.data.audio import AudioError, save_wav
from codeclm.model.codecs import load_codec
from codeclm.model.config import SpectralConfig
from codeclm.train import codec as codec_module
from codeclm.train.checkpoint import latest_checkpoint
from codeclm.train.codec import CodecTrainer, VoiceCrops, batches, learning_rate, train_codec
from codeclm.train.config import CodecTrainConfig

RATE = 8_000
TINY = CodecTrainConfig(
    steps=30,
    batch_size=2,
    crop_frames=25,
    learning_rate=3e-3,
    warmup_steps=3,
    adversarial_from=0.5,
    adversarial_rows=2,
    save_every=10,
    bf16=False,
    codec=SpectralConfig(
        sample_rate=RATE, trunk_hop=80, window=160, encoder_dim=16, dim=16, encoder_layers=1, bottleneck_layers=1,
        decoder_layers=1, kernel=3, num_codebooks=3, codebook_size=32, codebook_dim=4,
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


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("voices")
    for name, pitch in (("low", 110.0), ("high", 210.0)):
        for index in range(2):
            save_wav(folder / name / f"{index}.wav", voice(pitch, 3.0, index), RATE)
    return folder


def crops_of(data: Path, tmp_path: Path) -> VoiceCrops:
    return VoiceCrops(data, tmp_path / "decoded", RATE, max_hours=1.0)


def tensors_of(trainer: CodecTrainer) -> dict[str, torch.Tensor]:
    return {f"{file}/{key}": t.clone() for file, tensors in trainer.files().items() for key, t in tensors.items()}


def test_the_loss_falls(data: Path, tmp_path: Path):
    config = replace(TINY, adversarial_from=1.0)
    trainer = CodecTrainer(config)
    mel = [trainer.train_step(audio)["mel"] for audio in batches(crops_of(data, tmp_path), config, 0)]
    assert len(mel) == config.steps
    assert np.mean(mel[-5:]) < 0.6 * np.mean(mel[:5])


def test_a_resumed_run_equals_an_uninterrupted_run(data: Path, tmp_path: Path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_codec(data, whole, TINY)

    class Killed(Exception):
        pass

    original = CodecTrainer.train_step

    def dies(self: CodecTrainer, audio: torch.Tensor) -> dict[str, float]:
        if self.step == 24:  # after the discriminators joined, between two checkpoints
            raise Killed
        return original(self, audio)

    monkeypatch.setattr(CodecTrainer, "train_step", dies)
    with pytest.raises(Killed):
        train_codec(data, cut, TINY)
    monkeypatch.undo()
    assert latest_checkpoint(cut) == cut / "step-00000020"
    train_codec(data, cut, TINY)

    first, second = latest_checkpoint(whole), latest_checkpoint(cut)
    assert first is not None and second is not None and first.name == second.name == "step-00000030"
    assert (first / "COMPLETE").read_text() == (second / "COMPLETE").read_text()  # the hashes of every file
    assert load_codec(whole / "codec").fingerprint == load_codec(cut / "codec").fingerprint


def test_every_trained_parameter_gets_a_gradient(data: Path, tmp_path: Path):
    config = replace(TINY, steps=12, adversarial_from=0.0, warmup_steps=1)
    trainer = CodecTrainer(config)
    still = set()
    for file, module in (("codec", trainer.codec), ("discriminators", trainer.discriminators)):
        for name, parameter in module.named_parameters():
            still.add(f"{file}/{name}")
            parameter.register_hook(lambda g, key=f"{file}/{name}": still.discard(key) if g.any() else None)
    # several steps: the bias of a discriminator's score gets none until some score leaves the hinge's margin
    for audio in batches(crops_of(data, tmp_path), config, 0):
        trainer.train_step(audio)
    assert still == set()


def test_discriminators_rest_until_their_share_of_the_steps(data: Path, tmp_path: Path):
    trainer = CodecTrainer(replace(TINY, steps=4, adversarial_from=0.5))
    audio = next(batches(crops_of(data, tmp_path), TINY, 0))
    terms = [trainer.train_step(audio) for _ in range(4)]
    assert ["adversarial" in step for step in terms] == [False, False, True, True]


def test_a_step_is_a_pure_function_of_seed_and_step(data: Path, tmp_path: Path):
    crops = crops_of(data, tmp_path)
    rows = list(batches(crops, TINY, 0))
    assert torch.equal(rows[7], next(batches(crops, TINY, 7)))
    assert not torch.equal(rows[7], rows[8])
    assert not torch.equal(rows[7], next(batches(crops, replace(TINY, seed=1), 7)))
    assert rows[0].shape == (2, 25 * 160)
    assert all(batch.abs().max() <= 1 for batch in rows)


def test_a_loss_that_is_not_finite_stops_before_anything_changes(data: Path, tmp_path: Path, monkeypatch):
    trainer = CodecTrainer(TINY)
    audio = next(batches(crops_of(data, tmp_path), TINY, 0))
    trainer.codec.eval()  # so that dead entries are not moved, either
    before = tensors_of(trainer)
    nan = torch.tensor(torch.nan, requires_grad=True)
    monkeypatch.setattr(codec_module.losses, "spectral_losses", lambda *_: (nan, nan))
    with pytest.raises(FloatingPointError, match="step 0: the loss is nan"):
        trainer.train_step(audio)
    after = tensors_of(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_kept_weights_are_the_average_that_the_codec_folder_holds(data: Path, tmp_path: Path):
    folder = train_codec(data, tmp_path / "run", replace(TINY, steps=3, save_every=3))
    checkpoint = latest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    codec = load_codec(folder)
    trainer = CodecTrainer(TINY)
    trainer.restore(checkpoint)
    assert trainer.step == 3
    assert all(torch.equal(codec.state_dict()[name], tensor) for name, tensor in trainer.average.items())
    assert any(not torch.equal(tensor, trainer.codec.state_dict()[name]) for name, tensor in trainer.average.items())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["codec"]["sample_rate"] == RATE


def test_the_learning_rate_warms_up_and_decays():
    rates = [learning_rate(TINY, step) for step in range(TINY.steps + 1)]
    assert rates[0] == pytest.approx(TINY.learning_rate / 3, rel=0.01)
    assert max(rates) <= TINY.learning_rate
    assert rates[-1] == pytest.approx(TINY.learning_rate / 20)
    assert all(a > b for a, b in zip(rates[3:-1], rates[4:], strict=True))


def test_an_unusable_file_or_voice_is_named_and_left_out_and_nothing_usable_is_an_error(tmp_path: Path, capsys):
    good, bad = tmp_path / "data" / "anna" / "good.wav", tmp_path / "data" / "anna" / "bad.wav"
    save_wav(good, voice(150.0, 2.0, 0), RATE)
    bad.write_bytes(b"not audio")
    crops = VoiceCrops(tmp_path / "data", tmp_path / "first", RATE, 1.0)
    assert [len(samples) for samples in crops.voices] == [2 * RATE]
    output = capsys.readouterr()
    assert "bad.wav: cannot be read as audio" in output.out + output.err
    other = tmp_path / "data" / "bert" / "bad.wav"
    other.parent.mkdir()
    other.write_bytes(b"not audio")
    assert len(VoiceCrops(tmp_path / "data", tmp_path / "second", RATE, 1.0).voices) == 1
    output = capsys.readouterr()
    assert "voice bert: left out" in output.out + output.err
    good.unlink()
    with pytest.raises(AudioError, match="no file of any voice can be used"):
        VoiceCrops(tmp_path / "data", tmp_path / "third", RATE, 1.0)


def test_a_folder_without_sub_folders_is_one_voice(tmp_path: Path):
    for number in range(3):
        save_wav(tmp_path / "data" / f"{number}.wav", voice(150.0, 1.0, number), RATE)
    assert [len(samples) for samples in VoiceCrops(tmp_path / "data", tmp_path / "c", RATE, 1.0).voices] == [3 * RATE]
