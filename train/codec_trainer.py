"""CodecTrainer: the networks of a codec run, their optimizers, and one training step. The run itself is codec.py.

Step n is a pure function of (seed, n). B batch, S samples, N trunk frames.
"""

import json
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..model.codecs import load_spectral
from ..model.codecs.spectral import SpectralCodec
from ..model.device import has_fast_bf16
from ..model.weights import check_fit
from . import codec_losses as losses
from .balancer import Balancer
from .checkpoint import load_state, load_tensors, pack_optimizer, save_checkpoint, unpack_optimizer
from .codec_config import CodecTrainConfig
from .discriminators import Discriminators, adversarial_losses, discriminator_loss
from .distillation import Teacher
from .processes import start
from .voice_crops import VoiceCrops

FITTING_BATCHES = 60  # whose latents the codebooks are filled from
FREE = {  # settings that may change from one start to the next: what is learned does not depend on them
    "device", "bf16", "heldout", "evaluate_every", "log_every", "save_every", "save_minutes",
}  # fmt: skip


def learning_rate(config: CodecTrainConfig, step: int) -> float:
    """Linear warm-up, a plateau, and from `decay_from` on a cosine to a twentieth."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    falling = config.decay_from * config.steps
    progress = min(1.0, max(0.0, step - falling) / max(1.0, config.steps - falling))
    return config.learning_rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


class CodecTrainer:
    """The networks, their optimizers, and one training step."""

    def __init__(self, config: CodecTrainConfig):
        """Raises ValueError if the ranks cannot share the batch."""
        torch.manual_seed(config.seed)
        self.config, self.step = config, 0
        self.accelerator = start(config.device)
        self.bf16 = config.bf16 and has_fast_bf16(self.accelerator.device)
        if config.batch_size % self.accelerator.num_processes:
            ranks = self.accelerator.num_processes
            raise ValueError(f"batch_size {config.batch_size} must be a multiple of the number of processes, {ranks}")
        device = self.accelerator.device
        self.codec = first_codec(config).train().to(device)
        self.average = {name: tensor.detach().clone() for name, tensor in self.codec.state_dict().items()}
        self.discriminators = Discriminators(config.discriminator_windows, config.discriminator_periods).to(device)
        self.learning: list[nn.Parameter] = list(self.codec.parameters())
        self.teacher: Teacher | None = None
        if config.teacher:
            self.teacher = Teacher(config.teacher, config.codec.sample_rate, config.codec.codebook_dim).to(device)
            self.learning += list(self.teacher.project.parameters())
        self.optimizer = torch.optim.AdamW(
            self.learning, lr=0, betas=(0.8, 0.99), weight_decay=config.weight_decay, fused=True
        )
        self.discriminator_optimizer = torch.optim.AdamW(
            self.discriminators.parameters(), lr=0, betas=(0.8, 0.99), fused=True
        )
        self.balancer = Balancer() if config.balance else None

    def autocast(self) -> AbstractContextManager:
        """The precision of the networks."""
        return torch.autocast(self.accelerator.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    @property
    def quantize_step(self) -> int:
        """The step before which nothing is quantized."""
        return 0 if self.config.start_from else round(self.config.quantize_from * self.config.steps)

    @torch.no_grad()
    def fill_codebooks(self, crops: VoiceCrops) -> None:
        """k-means on the latents of a few batches, drawn as a function of the seed; or as the codebooks were."""
        config, latents = self.config, []
        if config.start_from:
            for book in self.codec.quantizer.books():
                book.expect(config.batch_size * config.crop_frames)
            return
        for number in range(FITTING_BATCHES):
            rng = np.random.default_rng([config.seed, 1, number])
            audio, _ = crops.draw(config.batch_size, samples_per_crop(config), rng)
            with self.autocast():
                latent = self.codec.encoder(audio.to(self.accelerator.device))
            latents.append(latent.float().flatten(0, 1))
        torch.manual_seed(config.seed)
        self.codec.quantizer.fit(torch.cat(latents), config.batch_size * config.crop_frames)
        for name, tensor in self.codec.quantizer.state_dict().items():
            self.average[f"quantizer.{name}"].copy_(tensor)

    def train_step(self, audio: Tensor, pitch: Tensor) -> dict[str, float]:
        """One step of the codec, and of the discriminators once they have joined, on this rank's rows of the batch.

        audio [B, S], pitch [B, N]: the whole batch. Raises FloatingPointError, with nothing changed, if a loss is not
        finite.
        """
        config, rank, ranks = self.config, self.accelerator.process_index, self.accelerator.num_processes
        audio, pitch = (x[rank::ranks].to(self.accelerator.device) for x in (audio, pitch))
        torch.manual_seed(hash((config.seed, self.step, rank)) if rank else hash((config.seed, self.step)))
        rate = learning_rate(config, self.step)
        set_rate(self.optimizer, rate)
        set_rate(self.discriminator_optimizer, rate / 2)

        quantize = self.step >= self.quantize_step
        with self.autocast():
            output, read, quantized = self.codec(audio, pitch, config.quantizer_dropout, quantize)
        heard = losses.reconstruction_terms(output, audio, config.codec.sample_rate)
        other = {"pitch": pitch_error(read, pitch)}
        if quantize:
            other["commitment"] = quantized.commitment
        if self.teacher is not None:
            other["teacher"] = self.teacher.loss(audio, quantized.first)
        if self.step >= config.adversarial_from * config.steps:
            heard |= self._adversarial_terms(audio[: config.adversarial_rows], output[: config.adversarial_rows])
        weights = {name: getattr(config, f"{name}_weight") for name in heard | other}
        terms = {name: weights[name] * term for name, term in (heard | other).items()}
        total = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(total):
            raise FloatingPointError(f"step {self.step}: the loss is {total.item()}; nothing was changed by this step")

        self.optimizer.zero_grad()
        if self.balancer is None:
            total.backward()
        else:
            gradient = self.balancer.gradient(heard, weights, output) * config.balanced_norm
            rest = torch.stack([terms[name] for name in other]).sum()
            torch.autograd.backward([output, rest], [gradient, torch.ones_like(rest)])
        self._apply(self.optimizer, self.learning)
        self._update_average()
        self.step += 1
        return {name: term.item() for name, term in terms.items()} | {"loss": total.item(), "learning_rate": rate}

    def _adversarial_terms(self, real: Tensor, output: Tensor) -> dict[str, Tensor]:
        with self.autocast():
            loss = discriminator_loss(self.discriminators(real), self.discriminators(output.detach()))
        self.discriminator_optimizer.zero_grad()
        loss.backward()
        self._apply(self.discriminator_optimizer, list(self.discriminators.parameters()))
        self.discriminators.requires_grad_(False)
        with self.autocast():
            with torch.no_grad():
                features = self.discriminators(real)
            fooled, matching = adversarial_losses(features, self.discriminators(output))
        self.discriminators.requires_grad_(True)
        return {"adversarial": fooled, "matching": matching}

    def _apply(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
        """Average the gradients over the ranks, clip them, and take the optimizer's step."""
        if self.accelerator.num_processes > 1:
            learned = [p for p in parameters if p.grad is not None]
            flat = torch.cat([cast(Tensor, p.grad).flatten() for p in learned])
            flat = cast(Tensor, self.accelerator.reduce(flat, "mean"))
            for p, gradient in zip(learned, flat.split([p.numel() for p in learned]), strict=True):
                p.grad = gradient.view_as(p)
        torch.nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for name, tensor in self.codec.state_dict().items():
            self.average[name].lerp_(tensor, 1 - decay)

    def averaged_codec(self) -> SpectralCodec:
        codec = SpectralCodec(self.config.codec).to(self.accelerator.device)
        codec.load_state_dict(self.average)
        return codec.eval().requires_grad_(False)

    def files(self) -> dict[str, dict[str, Tensor]]:
        usage = {}
        for k, book in enumerate(self.codec.quantizer.books()):
            usage |= {f"counts.{k}": book.counts, f"sums.{k}": book.sums}
        files = {
            "model": self.average,
            "codec": self.codec.state_dict(),
            "usage": usage,
            "optimizer": pack_optimizer(self.optimizer),
            "discriminators": self.discriminators.state_dict(),
            "discriminator_optimizer": pack_optimizer(self.discriminator_optimizer),
        }
        if self.teacher is not None:
            files["teacher"] = self.teacher.project.state_dict()
        if self.balancer is not None:
            files["balancer"] = self.balancer.sizes
        return files

    def restore(self, checkpoint: Path) -> None:
        device = self.accelerator.device
        self.average = {name: tensor.to(device) for name, tensor in load_tensors(checkpoint, "model").items()}
        self.codec.load_state_dict(load_tensors(checkpoint, "codec"))
        usage = load_tensors(checkpoint, "usage")
        for k, book in enumerate(self.codec.quantizer.books()):
            book.counts.copy_(usage[f"counts.{k}"])
            book.sums.copy_(usage[f"sums.{k}"])
        self.discriminators.load_state_dict(load_tensors(checkpoint, "discriminators"))
        if self.teacher is not None:
            self.teacher.project.load_state_dict(load_tensors(checkpoint, "teacher"))
        if self.balancer is not None:
            self.balancer.sizes = {k: v.to(device) for k, v in load_tensors(checkpoint, "balancer").items()}
        unpack_optimizer(self.optimizer, load_tensors(checkpoint, "optimizer"))
        unpack_optimizer(self.discriminator_optimizer, load_tensors(checkpoint, "discriminator_optimizer"))
        self.step = load_state(checkpoint)["step"]

    def save(self, out: Path) -> None:
        save_checkpoint(out, self.step, self.files(), {"config": identity(self.config)})


def first_codec(config: CodecTrainConfig) -> SpectralCodec:
    """As the run begins with it. Raises ValueError if the codec that it starts from has another shape, or kind."""
    codec = SpectralCodec(config.codec)
    if config.start_from:
        source = load_spectral(config.start_from)
        check_fit(codec, source.state_dict(), f"--start-from {config.start_from}")
        codec.load_state_dict(source.state_dict())
    return codec


def identity(config: CodecTrainConfig) -> dict[str, Any]:
    """What must be the same for a resumed run to be the same run: of what is learned, and in which steps."""
    settings = {key: value for key, value in asdict(config).items() if key not in FREE}
    return json.loads(json.dumps(settings))  # as a checkpoint returns it


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def pitch_error(read: Tensor, pitch: Tensor) -> Tensor:
    """log2 Hz that was read [B, N], the truth in Hz [B, N] (0: unvoiced) -> mean distance in octaves where voiced."""
    voiced = pitch > 0
    distance = (read - pitch.double().clamp_min(1.0).log2()).abs() * voiced
    return (distance.sum() / voiced.sum().clamp_min(1)).float()


def samples_per_crop(config: CodecTrainConfig) -> int:
    return config.crop_frames * config.codec.trunk_hop * config.codec.stride


def batches(crops: VoiceCrops, config: CodecTrainConfig, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
    for step in range(first_step, config.steps):
        yield crops.draw(config.batch_size, samples_per_crop(config), np.random.default_rng([config.seed, 0, step]))
