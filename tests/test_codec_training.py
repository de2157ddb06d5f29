"""Training the "spectral" codec, on seconds of synthetic voices and with tiny networks."""

import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoConfig, AutoModel

from codeclm.data.audio_out import save_audio
from codeclm.model.codecs import SpectralCodec, load_codec
from codeclm.train import codec_trainer
from codeclm.train.balancer import Balancer
from codeclm.train.checkpoint import latest_checkpoint
from codeclm.train.cli import codec_train
from codeclm.train.codec import level_matched, train_codec
from codeclm.train.codec_config import CodecTrainConfig
from codeclm.train.codec_trainer import CodecTrainer, batches, identity, learning_rate, samples_per_crop
from codeclm.train.discriminators import Discriminators

from .codec_voices import RATE, TINY, crops_of, low_and_high, voice

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return low_and_high(tmp_path_factory.mktemp("voices"))


@pytest.fixture(autouse=True)
def few_batches_to_fit(monkeypatch):
    monkeypatch.setattr(codec_trainer, "FITTING_BATCHES", 2)


def tensors_of(trainer: CodecTrainer) -> dict[str, torch.Tensor]:
    return {f"{file}/{key}": t.clone() for file, tensors in trainer.files().items() for key, t in tensors.items()}


def test_the_loss_falls(data: Path, tmp_path: Path):
    config = replace(TINY, adversarial_from=1.0, learning_rate=1e-2, quantize_from=0.0)
    trainer, crops = CodecTrainer(config), crops_of(data, tmp_path)
    trainer.fill_codebooks(crops)
    batch = next(batches(crops, config, 0))
    loss = [trainer.train_step(*batch)["loss"] for _ in range(config.steps)]
    assert np.mean(loss[-3:]) < 0.6 * np.mean(loss[:3])


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_run(data: Path, tmp_path: Path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_codec(data, whole, TINY)

    class Killed(Exception):
        pass

    original = CodecTrainer.train_step

    def dies(self: CodecTrainer, audio: torch.Tensor, pitch: torch.Tensor) -> dict[str, float]:
        if self.step == 24:  # after the discriminators joined, between two checkpoints
            raise Killed
        return original(self, audio, pitch)

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
    config = replace(TINY, steps=12, adversarial_from=0.0, warmup_steps=1, learning_rate=5e-2)
    trainer = CodecTrainer(config)
    still = set()
    for file, module in (("codec", trainer.codec), ("discriminators", trainer.discriminators)):
        for name, parameter in module.named_parameters():
            still.add(f"{file}/{name}")
            parameter.register_hook(lambda g, key=f"{file}/{name}": still.discard(key) if g.any() else None)
    # several steps: the bias of a discriminator's score gets none until some score leaves the hinge's margin
    for batch in batches(crops_of(data, tmp_path), config, 0):
        trainer.train_step(*batch)
    assert still == set()


def test_discriminators_rest_until_their_share_of_the_steps(data: Path, tmp_path: Path):
    trainer = CodecTrainer(replace(TINY, steps=4, adversarial_from=0.5))
    batch = next(batches(crops_of(data, tmp_path), TINY, 0))
    terms = [trainer.train_step(*batch) for _ in range(4)]
    assert ["adversarial" in step for step in terms] == [False, False, True, True]


def test_a_step_is_a_pure_function_of_seed_and_step(data: Path, tmp_path: Path):
    crops = crops_of(data, tmp_path)
    rows = list(batches(crops, TINY, 0))
    again, other_seed = (next(batches(crops, config, 7)) for config in (TINY, replace(TINY, seed=1)))
    assert all(torch.equal(a, b) for a, b in zip(rows[7], again, strict=True))
    assert not torch.equal(rows[7][0], rows[8][0])
    assert not torch.equal(rows[7][0], other_seed[0])
    assert rows[0][0].shape == (2, 25 * 160) and rows[0][1].shape == (2, 50)
    assert all(audio.abs().max() <= 1 for audio, _ in rows)


def test_codebooks_are_filled_from_latents_where_quantizing_starts(data: Path, tmp_path: Path):
    crops, trainer = crops_of(data, tmp_path), CodecTrainer(replace(TINY, quantize_from=0.1))
    stream = batches(crops, TINY, 0)
    first = trainer.train_step(*next(stream))
    assert "commitment" not in first and trainer.quantize_step == 3
    latent = trainer.codec.encoder(next(stream)[0])
    left = [None, None]
    for number in (0, 1):
        codes, _ = trainer.codec.quantizer.encode(latent.detach())
        left[number] = float((latent.detach() - trainer.codec.quantizer.decode(codes)).square().mean())
        trainer.fill_codebooks(crops)
    assert left[1] < 0.5 * left[0]
    assert torch.equal(trainer.average["quantizer.codebooks.2.entries"], trainer.codec.quantizer.books()[2].entries)


def test_a_run_that_starts_from_a_codec_begins_with_it(data: Path, tmp_path: Path):
    learned = train_codec(data, tmp_path / "first", replace(TINY, learning_rate=1e-2, steps=40, adversarial_from=1.0))
    config = replace(TINY, start_from=str(learned), steps=3, learning_rate=1e-5, adversarial_from=1.0)
    bent = replace(config, codec=replace(config.codec, knee=80))  # what has no weights may change
    trainer, crops = CodecTrainer(bent), crops_of(data, tmp_path)
    known = load_codec(learned).state_dict()
    assert all(torch.equal(tensor, known[name]) for name, tensor in trainer.codec.state_dict().items())
    trainer.fill_codebooks(crops)
    batch = next(batches(crops, config, 0))
    loss = trainer.train_step(*batch)
    assert loss["loss"] < 0.8 * CodecTrainer(replace(config, start_from="")).train_step(*batch)["loss"]
    assert "commitment" in loss  # it quantizes from the first step on
    moved = trainer.codec.quantizer.books()[0].entries - known["quantizer.codebooks.0.entries"]
    assert moved.abs().max() < 2 * known["quantizer.codebooks.0.entries"].abs().max()  # not filled anew
    again = load_codec(train_codec(data, tmp_path / "second", config)).state_dict()
    assert float((again["encoder.inlet.weight"] - known["encoder.inlet.weight"]).abs().max()) < 1e-3


def test_a_run_cannot_start_from_a_codec_of_another_shape_or_kind(tmp_path: Path):
    SpectralCodec(replace(TINY.codec, dim=24)).save(tmp_path / "wide")
    with pytest.raises(ValueError, match="--start-from .*wide"):
        CodecTrainer(replace(TINY, start_from=str(tmp_path / "wide")))
    with pytest.raises(ValueError, match="another kind"):
        CodecTrainer(replace(TINY, start_from="mulaw"))


def test_the_command_trains_on_tar_files_by_their_speakers(tmp_path: Path, capsys):
    folder = tmp_path / "speech"
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for index, (speaker, pitch) in enumerate((("low", 110.0), ("high", 210.0))):
            save_audio(tmp_path / "clip.wav", voice(pitch, 2.0, index), RATE)
            (tmp_path / "clip.json").write_text(json.dumps({"speaker": speaker}))
            for kind in ("wav", "json"):
                tar.add(tmp_path / f"clip.{kind}", f"{index}.{kind}")
    out = tmp_path / "run"
    codec_train(str(folder), out, replace(TINY, steps=2, adversarial_from=1.0))
    assert sorted(path.name.split("-")[0] for path in (out / "decoded").glob("*.pitch.npy")) == ["high", "low"]


def test_the_finished_codec_is_as_loud_as_what_went_in(data: Path, tmp_path: Path):
    crops, trainer = crops_of(data, tmp_path), CodecTrainer(TINY)
    # untrained, it knows no level: that of other crops would be off by some dB
    audio, _ = crops.draw(64, samples_per_crop(TINY), np.random.default_rng([TINY.seed, 2]))

    def level(codec: SpectralCodec) -> float:
        output = codec.decode(codec.encode(audio[:, None]))[:, 0]
        return float((10 * (output.square().sum(dim=1) / audio.square().sum(dim=1)).log10()).median())

    trainer.average["decoder.head.bias"] -= 2.0
    assert level(trainer.averaged_codec()) < -10
    assert abs(level(level_matched(trainer.averaged_codec(), crops, TINY))) < 2  # the median of an even number of crops


def test_balanced_weights_are_shares_of_the_gradient():
    output = torch.randn(3, 50, requires_grad=True)
    terms = {"large": 1e4 * output.square().sum(), "small": 1e-4 * (output**3).sum()}
    gradient = Balancer().gradient(terms, {"large": 3.0, "small": 1.0}, output)
    large, small = (torch.autograd.grad(terms[name], output, retain_graph=True)[0] for name in terms)
    torch.testing.assert_close(gradient, 0.75 * large / large.norm() + 0.25 * small / small.norm())


def test_balancing_changes_what_is_learned_and_survives_a_resume(data: Path, tmp_path: Path):
    config = replace(TINY, balance=True, steps=8, save_every=4, quantize_from=0.0)
    folder = train_codec(data, tmp_path / "run", config)
    trainer = CodecTrainer(config)
    trainer.restore(tmp_path / "run" / "step-00000004")
    for batch in batches(crops_of(data, tmp_path), config, 4):
        trainer.train_step(*batch)
    assert set(trainer.balancer.sizes) == {"mel", "difference", "added", "envelope", "level", "adversarial", "matching"}
    weights = load_codec(folder).state_dict()
    assert torch.equal(weights["encoder.inlet.weight"], trainer.average["encoder.inlet.weight"])
    plain = load_codec(train_codec(data, tmp_path / "plain", replace(config, balance=False)))
    assert plain.fingerprint != load_codec(folder).fingerprint


@pytest.mark.parametrize("model_type", ["hubert", "wavlm"])
def test_codebook_0_learns_what_a_teacher_hears(data: Path, tmp_path: Path, model_type: str):
    torch.manual_seed(0)
    tiny = dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
        conv_kernel=(10, 8), conv_stride=(20, 16), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, feat_extract_norm="layer", do_stable_layer_norm=True,
    )  # fmt: skip
    AutoModel.from_config(AutoConfig.for_model(model_type, **tiny)).save_pretrained(tmp_path / "teacher")
    config = replace(
        TINY, teacher=str(tmp_path / "teacher"), quantize_from=0.0, adversarial_from=1.0, learning_rate=1e-2
    )
    trainer, crops = CodecTrainer(config), crops_of(data, tmp_path)
    trainer.fill_codebooks(crops)
    batch = next(batches(crops, config, 0))
    terms = [trainer.train_step(*batch)["teacher"] for _ in range(config.steps)]
    assert np.mean(terms[-3:]) < 0.8 * np.mean(terms[:3])
    assert "teacher" in trainer.files() and not any(p.requires_grad for p in trainer.teacher.model.parameters())


TWO_RANKS = """
import sys
from pathlib import Path
from dataclasses import replace
import torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from codec_voices import TINY
from codeclm.train import codec_trainer
from codeclm.train.codec import train_codec
codec_trainer.FITTING_BATCHES = 2
original = codec_trainer.CodecTrainer.train_step
def checked(self, audio, pitch):
    terms = original(self, audio, pitch)
    for module in (self.codec, self.discriminators):
        for name, tensor in (*module.state_dict().items(), *((n, b.sums) for n, b in
                             enumerate(self.codec.quantizer.books()))):
            both = [torch.empty_like(tensor) for _ in range(2)]
            dist.all_gather(both, tensor.contiguous())
            assert torch.equal(*both), (self.step, name)
    return terms
codec_trainer.CodecTrainer.train_step = checked
train_codec(Path(sys.argv[2]), Path(sys.argv[3]), replace(TINY, steps=6, batch_size=4, save_every=6))
"""


@pytest.mark.slow
def test_two_ranks_share_a_batch_and_keep_one_codec(data: Path, tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(TWO_RANKS)
    torchrun = Path(sys.executable).parent / "torchrun"
    arguments = [script, Path(__file__).parent, data, tmp_path / "run"]
    workers = subprocess.run(
        [torchrun, "--standalone", "--nproc_per_node", "2", *arguments],
        capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert workers.returncode == 0, workers.stderr[-3000:]
    assert load_codec(tmp_path / "run" / "codec").num_codebooks == 3


def test_a_batch_that_ranks_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    with pytest.raises(ValueError, match="batch_size 2 must be a multiple of the number of processes, 3"):
        CodecTrainer(TINY)


def test_a_teacher_that_is_none_is_refused_in_one_line(tmp_path: Path):
    with pytest.raises(ValueError, match="teacher '.*nothing' cannot be loaded from safetensors") as caught:
        CodecTrainer(replace(TINY, teacher=str(tmp_path / "nothing")))
    assert len(str(caught.value).splitlines()) == 1


def test_periods_judge_every_sample_once():
    audio = torch.randn(2, 101)
    judge = Discriminators(windows=(), periods=(3,), channels=2)
    (score, features) = judge(audio)[0]
    assert features[0].shape == (2, 2, 12, 3) and score.shape[-1] == 3
    for sample in (0, 100):
        changed = audio.clone()
        changed[:, sample] += 1
        assert not torch.equal(judge(changed)[0][1][0], features[0])


def test_tensorboard_holds_curves_audio_and_spectrograms_of_held_out_speech(data: Path, tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(TINY, steps=4, evaluate_every=4, log_every=2, heldout=str(data / "low"))
    train_codec(data, tmp_path / "run", config)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert [event.step for event in events.Scalars("train/mel")] == [2, 4]
    assert "heldout/log_mel_distance" in tags["scalars"]
    assert set(tags["audio"]) == {f"{n}/{name}" for n in (0, 1) for name in ("original", "output")}
    assert set(tags["images"]) == {"0/original over output", "1/original over output"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 4] and "log_mel_distance" in lines[2]


def test_a_loss_that_is_not_finite_stops_before_anything_changes(data: Path, tmp_path: Path, monkeypatch):
    trainer = CodecTrainer(TINY)
    batch = next(batches(crops_of(data, tmp_path), TINY, 0))
    trainer.codec.eval()  # so that dead entries are not moved, either
    before = tensors_of(trainer)
    nan = torch.tensor(torch.nan, requires_grad=True)
    monkeypatch.setattr(codec_trainer.losses, "mel_loss", lambda *_: nan)
    with pytest.raises(FloatingPointError, match="step 0: the loss is nan"):
        trainer.train_step(*batch)
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
    kept = {name: tensor for name, tensor in trainer.average.items() if name != "decoder.head.bias"}  # level
    assert all(torch.equal(codec.state_dict()[name], tensor) for name, tensor in kept.items())
    assert any(not torch.equal(tensor, trainer.codec.state_dict()[name]) for name, tensor in trainer.average.items())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["codec"]["sample_rate"] == RATE


def test_the_learning_rate_warms_up_stays_and_decays():
    rates = [learning_rate(TINY, step) for step in range(TINY.steps + 1)]
    assert rates[0] == pytest.approx(TINY.learning_rate / 3)
    assert rates[3:16] == pytest.approx([TINY.learning_rate] * 13)
    assert rates[-1] == pytest.approx(TINY.learning_rate / 20)
    assert all(a > b for a, b in zip(rates[15:-1], rates[16:], strict=True))


def test_a_run_of_an_older_codeclm_that_had_fewer_settings_goes_on(data: Path, tmp_path: Path, monkeypatch):
    short = replace(TINY, steps=2)

    def fewer(config: CodecTrainConfig) -> dict:
        return {key: value for key, value in identity(config).items() if key != "max_voices"}

    monkeypatch.setattr(codec_trainer, "identity", fewer)
    train_codec(data, tmp_path / "run", short)
    monkeypatch.undo()
    train_codec(data, tmp_path / "run", short)
    with pytest.raises(ValueError, match="max_voices was 0, is 1"):
        train_codec(data, tmp_path / "run", replace(short, max_voices=1))
