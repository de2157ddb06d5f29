"""A run in words and numbers: metrics.jsonl, the bar on the screen, and what is said at its start and end."""

import json
import logging
import math
import time

import torch

from ..data.preparation import duration
from ..data.progress import progress_bar
from .run_folder import METRICS
from .trainer import Trainer

log = logging.getLogger(__name__)


def outcome(trainer: Trainer) -> str:
    """What the run did to the held-out speech."""
    before, best, step = trainer.before, trainer.best, trainer.best_step
    found = f"held-out speech: {before:.1f} bits/s before, {best:.1f} at step {step}"
    if best < before:
        return f"{found} ({1 - best / before:.1%} less)"
    return f"{found}: no step that was looked at is better than the start; the best of them is kept"


def describe(trainer: Trainer) -> str:
    model, batches = trainer.raw_model, trainer.batches
    parts: dict[str, torch.nn.Module] = {"backbone": model.backbone}
    if model.pattern == "depth":
        parts["depth decoder"] = model.depth_decoder
    sizes = ", ".join(f"{name} {sum(p.numel() for p in part.parameters()) / 1e6:.1f} M" for name, part in parts.items())
    hours = batches.num_frames / trainer.store.codec.frame_rate / 3600
    heldout, scored = (sum(len(getattr(c, name)) for c in trainer.corpora) for name in ("heldout", "scored"))
    some = f", {scored} of them scored" if trainer.is_capped() else ""
    machine, precision = trainer.accelerator, str(model.dtype).removeprefix("torch.")
    return (
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters ({sizes}); "
        f"{duration(hours)} to train on, {heldout} utterances held out{some}; "
        f"{trainer.config.steps} steps on {machine.num_processes} x {machine.device.type}, precision {precision}"
        f"{' with products in bfloat16' if trainer.bf16 else ''}"
    )


class Log:
    """metrics.jsonl, and the bar on the screen; the main process alone has either."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.file, self.started, self.codes_seen = trainer, None, time.monotonic(), 0
        if trainer.is_main:
            self.file = (trainer.out / METRICS).open("a")
        steps = trainer.config.steps
        self.bar = progress_bar(total=steps, initial=trainer.step, unit="step", disable=not trainer.is_main)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.file is not None:
            self.file.close()

    def step(self, metrics: dict[str, float]) -> None:
        """A step that was taken; every tenth, and the last, is written down."""
        step, num_codebooks = self.trainer.step, self.trainer.store.codec.num_codebooks
        self.codes_seen += int(metrics["codes"])
        self.bar.update(1)
        if self.file is None or (step % 10 and step != self.trainer.config.steps):
            return
        metrics["bits_per_code"] = metrics["loss"] / math.log(2)
        metrics["frames_per_second"] = self.codes_seen / num_codebooks / (time.monotonic() - self.started)
        self._write(metrics)
        frames_s = f"{metrics['frames_per_second']:.0f}"
        self.bar.set_postfix(bits_per_code=f"{metrics['bits_per_code']:.3f}", frames_s=frames_s)

    def heldout(self, bits: float) -> None:
        if self.trainer.is_main:
            each = self.trainer.heldout_bits if len(self.trainer.corpora) > 1 else {}
            values = {f"heldout_bits_per_second of {name}": found for name, found in each.items()}
            self._write({"heldout_bits_per_second": bits, **values})
            told = "".join(f", {name} {found:.1f}" for name, found in each.items())
            log.info(f"step {self.trainer.step}: held-out {bits:.1f} bits/s{told}")

    def _write(self, metrics: dict[str, float]) -> None:
        assert self.file is not None
        values = {name: round(value, 6) for name, value in metrics.items()}
        self.file.write(json.dumps({"step": self.trainer.step, **values}) + "\n")
        self.file.flush()
