"""Train the "spectral" codec: `codeclm codec train DATA --out RUN`.

DATA: a folder of audio; each of its sub-folders counts as one voice, and voices are drawn by the square root of
their hours, so that a voice with much speech does not drown the others. Step n is a pure function of (seed, n): a
run that was killed goes on from its newest checkpoint as if it had not been. B batch, S samples.
"""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..data.audio import AudioError, find_audio, load_audio
from ..data.prepare import stamp
from ..data.progress import progress_bar
from ..data.shards import atomic_file
from ..model.codecs.spectral import SpectralCodec
from . import codec_losses as losses
from .checkpoint import latest_checkpoint, load_state, load_tensors, pack_optimizer, save_checkpoint, unpack_optimizer
from .config import CodecTrainConfig
from .precision import has_fast_bf16


class VoiceCrops:
    """Random crops of the voices in a folder, kept decoded as int16 in `cache`, one array a voice."""

    def __init__(self, data: Path, cache: Path, sample_rate: int, max_hours: float):
        """Raises AudioError if no file of any voice can be used."""
        cache.mkdir(parents=True, exist_ok=True)
        voices: dict[str, list[Path]] = {}
        for path in find_audio(data):
            parts = path.relative_to(data if data.is_dir() else data.parent).parts
            voice = parts[0] if len(parts) > 1 else data.resolve().stem  # a folder without sub-folders is one voice
            voices.setdefault(voice, []).append(path)
        decoded = {}
        for voice, paths in sorted(voices.items()):
            made_from = [sample_rate, max_hours, [[str(path), *stamp(path)] for path in paths]]
            key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]
            stored = cache / f"{voice}-{key}.npy"
            if stored.exists() or self._decode(voice, paths, stored, sample_rate, max_hours):
                decoded[voice] = np.load(stored, mmap_mode="r", allow_pickle=False)
        if not decoded:
            raise AudioError(f"{data}: no file of any voice can be used")
        self.voices = list(decoded.values())
        hours = np.array([len(voice) for voice in self.voices]) / sample_rate / 3600
        self.shares = np.sqrt(hours) / np.sqrt(hours).sum()
        for voice, hour, share in zip(decoded, hours, self.shares, strict=True):
            tqdm.write(f"voice {voice}: {hour:.2f} h, drawn {share:.0%} of the time")

    @staticmethod
    def _decode(voice: str, paths: list[Path], stored: Path, sample_rate: int, max_hours: float) -> bool:
        """Write the voice's samples; False if none of its files can be used."""
        parts, total = [], 0
        for path in progress_bar(paths, desc=f"decode {voice}", unit="file"):
            try:
                audio = load_audio(path, sample_rate)
            except AudioError as error:
                tqdm.write(f"skipped {error}")
                continue
            parts.append((np.clip(audio, -1, 1) * 32767).astype(np.int16))
            total += len(audio)
            if total > max_hours * 3600 * sample_rate:
                break
        if not parts:
            tqdm.write(f"voice {voice}: left out, no file of it can be used")
            return False
        with atomic_file(stored) as file:
            np.save(file, np.concatenate(parts), allow_pickle=False)
        return True

    def draw(self, batch_size: int, num_samples: int, rng: np.random.Generator) -> Tensor:
        """[B, S] with a random speed (and so pitch and formants) for half of the rows, and a random level."""
        rows = []
        while len(rows) < batch_size:
            voice = self.voices[rng.choice(len(self.voices), p=self.shares)]
            speed = rng.uniform(0.8, 1.25) if rng.random() < 0.5 else 1.0
            length = math.ceil(num_samples * speed)
            start = int(rng.integers(0, max(1, len(voice) - length)))
            crop = torch.from_numpy(voice[start : start + length].astype(np.float32) / 32768)
            crop = F.pad(crop, (0, length - len(crop)))
            if crop.square().mean() < 1e-5 and rng.random() < 0.9:  # mostly silence teaches little
                continue
            row = F.interpolate(crop[None, None], size=num_samples, mode="linear", align_corners=False)[0, 0]
            gain = 10 ** (rng.uniform(-14, 6) / 20)
            rows.append(row * min(gain, 0.99 / max(float(row.abs().max()), 1e-4)))
        return torch.stack(rows)


def learning_rate(config: CodecTrainConfig, step: int) -> float:
    warm = min(1.0, (step + 1) / config.warmup_steps)
    progress = min(1.0, step / config.steps)
    return config.learning_rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


class CodecTrainer:
    """The networks, their optimizers, and one training step."""

    def __init__(self, config: CodecTrainConfig):
        torch.manual_seed(config.seed)
        self.config, self.step = config, 0
        self.codec = SpectralCodec(config.codec).train()
        self.average = {name: tensor.detach().clone() for name, tensor in self.codec.state_dict().items()}
        self.discriminators = losses.Discriminators()
        self.optimizer = torch.optim.AdamW(
            self.codec.parameters(), lr=0, betas=(0.8, 0.99), weight_decay=config.weight_decay
        )
        self.discriminator_optimizer = torch.optim.AdamW(self.discriminators.parameters(), lr=0, betas=(0.8, 0.99))
        self.bf16 = config.bf16 and has_fast_bf16()

    def mixed_precision(self) -> AbstractContextManager:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16)

    def train_step(self, audio: Tensor) -> dict[str, float]:
        config = self.config
        torch.manual_seed(hash((config.seed, self.step)))
        rate = learning_rate(config, self.step)
        for optimizer in (self.optimizer, self.discriminator_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = rate / 2 if optimizer is self.discriminator_optimizer else rate

        with self.mixed_precision():
            output, quantized = self.codec(audio, config.quantizer_dropout)
        mel, phase = losses.spectral_losses(output, audio, config.codec.sample_rate)
        terms = {
            "mel": config.mel_weight * mel,
            "complex": config.complex_weight * phase,
            "commitment": config.commitment_weight * quantized.commitment,
            "codebook": config.commitment_weight * 4 * quantized.codebook,
        }
        if self.step >= config.adversarial_from * config.steps:
            terms |= self._adversarial_terms(audio[: config.adversarial_rows], output[: config.adversarial_rows])
        total = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(total):
            raise FloatingPointError(f"step {self.step}: the loss is {total.item()}; nothing was changed by this step")
        self.optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.codec.parameters(), 10.0)
        self.optimizer.step()
        self._update_average()
        self.step += 1
        return {name: term.item() for name, term in terms.items()} | {"loss": total.item(), "learning_rate": rate}

    def _adversarial_terms(self, real: Tensor, output: Tensor) -> dict[str, Tensor]:
        config = self.config
        with self.mixed_precision():
            loss = losses.discriminator_loss(self.discriminators(real), self.discriminators(output.detach()))
        self.discriminator_optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.discriminators.parameters(), 10.0)
        self.discriminator_optimizer.step()
        self.discriminators.requires_grad_(False)
        with self.mixed_precision():
            with torch.no_grad():
                features = self.discriminators(real)
            fooled, matching = losses.adversarial_losses(features, self.discriminators(output))
        self.discriminators.requires_grad_(True)
        return {"adversarial": config.adversarial_weight * fooled, "matching": config.matching_weight * matching}

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for name, tensor in self.codec.state_dict().items():
            self.average[name].lerp_(tensor, 1 - decay)

    def files(self) -> dict[str, dict[str, Tensor]]:
        usage = {f"usage.{k}": book.usage for k, book in enumerate(self.codec.quantizer.books())}
        return {
            "model": self.average,
            "codec": self.codec.state_dict(),
            "usage": usage,
            "optimizer": pack_optimizer(self.optimizer),
            "discriminators": self.discriminators.state_dict(),
            "discriminator_optimizer": pack_optimizer(self.discriminator_optimizer),
        }

    def restore(self, checkpoint: Path) -> None:
        self.average = load_tensors(checkpoint, "model")
        self.codec.load_state_dict(load_tensors(checkpoint, "codec"))
        usage = load_tensors(checkpoint, "usage")
        for k, book in enumerate(self.codec.quantizer.books()):
            book.usage.copy_(usage[f"usage.{k}"])
        self.discriminators.load_state_dict(load_tensors(checkpoint, "discriminators"))
        unpack_optimizer(self.optimizer, load_tensors(checkpoint, "optimizer"))
        unpack_optimizer(self.discriminator_optimizer, load_tensors(checkpoint, "discriminator_optimizer"))
        self.step = load_state(checkpoint)["step"]


def batches(crops: VoiceCrops, config: CodecTrainConfig, first_step: int) -> Iterator[Tensor]:
    num_samples = config.crop_frames * config.codec.trunk_hop * config.codec.stride
    for step in range(first_step, config.steps):
        yield crops.draw(config.batch_size, num_samples, np.random.default_rng([config.seed, step]))


def train_codec(data: Path, out: Path, config: CodecTrainConfig = CodecTrainConfig()) -> Path:
    """Train on the audio below `data`, resuming what `out` holds -> the folder of the finished codec."""
    out.mkdir(parents=True, exist_ok=True)
    crops = VoiceCrops(data, out / "decoded", config.codec.sample_rate, config.max_hours_per_voice)
    trainer = CodecTrainer(config)
    found = latest_checkpoint(out)
    if found is not None:
        trainer.restore(found)
        tqdm.write(f"resumed from {found}")
    (out / "config.json").write_text(json.dumps(asdict(config), indent=2))
    seconds = config.crop_frames * config.codec.trunk_hop * config.codec.stride / config.codec.sample_rate
    with (out / "metrics.jsonl").open("a") as log:
        progress = progress_bar(
            batches(crops, config, trainer.step), total=config.steps, initial=trainer.step, unit="step", mininterval=5
        )
        started = time.monotonic()
        for audio in progress:
            terms = trainer.train_step(audio)
            if trainer.step % 50 == 0:
                terms["seconds"] = round(time.monotonic() - started, 1)
                log.write(json.dumps({"step": trainer.step, **{k: round(v, 5) for k, v in terms.items()}}) + "\n")
                log.flush()
                progress.set_postfix(loss=f"{terms['loss']:.3f}", mel=f"{terms['mel']:.3f}")
            if trainer.step % config.save_every == 0 or trainer.step == config.steps:
                state = {"config": asdict(config), "audio_seconds_per_step": config.batch_size * seconds}
                save_checkpoint(out, trainer.step, trainer.files(), state)
    codec = SpectralCodec(config.codec)
    codec.load_state_dict(trainer.average)
    partial = out / ".codec.partial"
    codec.save(partial)
    shutil.rmtree(out / "codec", ignore_errors=True)
    partial.rename(out / "codec")
    return out / "codec"
