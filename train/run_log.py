"""A run in words and numbers: metrics.jsonl, its page, the bar on the screen, and what is said at its start and end."""

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from ..data.preparation import duration
from ..data.progress import progress_bar
from ..inference.json_safe import json_safe
from .canary import Canary, in_words, numbers
from .meter import Meter
from .normal import outside, unigram_bits
from .run_folder import METRICS
from .run_page import PAGE, write_page
from .trackers import Tracker, make_tracker
from .trainer import Trainer

log = logging.getLogger(__name__)


def outcome(trainer: Trainer) -> str:
    """What the run did to the held-out speech."""
    before, best, step = trainer.before, trainer.best, trainer.best_step
    said = f", {trainer.said_share:.0%} of it with its text" if trainer.said_share else ""
    found = f"held-out speech{said}: {before:.1f} bits/s before, {best:.1f} at step {step}"
    if trainer.has_stopped and trainer.step < trainer.config.steps:
        found = f"stopped at step {trainer.step}, {trainer.since_best} evaluations after the best (--patience); {found}"
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
    some = f", {scored} of them scored" if trainer.is_capped else ""
    machine, precision = trainer.accelerator, str(model.dtype).removeprefix("torch.")
    return (
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters ({sizes}); "
        f"{duration(hours)} to train on, {heldout} utterances held out{some}; "
        f"{trainer.config.steps} steps on {machine.num_processes} x {machine.device.type}, precision {precision}"
        f"{' with products in bfloat16' if trainer.bf16 else ''}"
    )


class Log:
    """metrics.jsonl, the bar on the screen, and the tracker; the main process alone has them."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.meter = trainer, Meter(trainer)
        self.tracker: Tracker | None = None
        self.file = (trainer.out / METRICS).open("a") if trainer.is_main else None
        self.unigram: list[float] = []
        self.canary = Canary(trainer)
        steps = trainer.config.steps
        self.bar = progress_bar(total=steps, initial=trainer.step, unit="step", disable=not trainer.is_main)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.file is not None:
            self.file.close()
        if self.tracker is not None:
            self.tracker.close()

    def step(self) -> None:
        """Take a step; every tenth, and the last, is written down, with means since the line before."""
        with self.meter.running():
            metrics = self.trainer.train_step()
        self.meter.add(metrics)
        self.bar.update(1)
        step = self.trainer.step
        if self.file is None or (step % 10 and step != self.trainer.config.steps):
            return
        metrics |= self.meter.read()
        metrics["bits_per_code"] = metrics["loss"] / math.log(2)
        if self.trainer.skipped:
            metrics["skipped"] = self.trainer.skipped
        self._write("train", metrics)
        frames_s = f"{metrics['frames_per_second']:.0f}"
        self.bar.set_postfix(bits_per_code=f"{metrics['bits_per_code']:.3f}", frames_s=frames_s)

    def heldout(self) -> None:
        """Evaluate. The first line of a process also has what is normal (normal.py)."""
        trainer, words = self.trainer, ""
        bits = trainer.evaluate()
        if not trainer.is_main:
            return
        values: dict[str, Any] = {"heldout_bits_per_second": bits, "heldout_bits_per_codebook": trainer.codebook_bits}
        if len(trainer.corpora) > 1:
            values |= {f"heldout_bits_per_second of {name}": own for name, own in trainer.heldout_bits.items()}
        if not self.unigram:
            each = [corpus.share * np.array(unigram_bits(corpus)) for corpus in trainer.corpora]
            self.unigram = sum(each[1:], each[0]).tolist()
            values["uniform_bits_per_codebook"] = [math.log2(trainer.store.codec.codebook_size)] * len(self.unigram)
            values["unigram_bits_per_codebook"] = self.unigram
        if trainer.step:
            unusual = outside(trainer.codebook_bits, self.unigram)
            words = f" ({unusual})" if unusual else ""
        if trainer.given_text_bits is not None:
            values["heldout_bits_per_second_given_text"] = trainer.given_text_bits
            words = f", {trainer.given_text_bits:.1f} with its text{words}"
        if len(trainer.corpora) > 1:
            words = "".join(f", {name} {own:.1f}" for name, own in trainer.heldout_bits.items()) + words
        self._write("heldout", values)
        log.info(f"step {trainer.step}: held-out {bits:.1f} bits/s{words}")
        if trainer.step and self.canary.is_due(self.meter.seconds):
            self.listen()
        self.draw()

    def listen(self) -> None:
        """Continue the fixed prompts: numbers, files, and sound for the tracker."""
        trainer, canary = self.trainer, self.canary
        with trainer.averaged():
            found = canary.listen()
        values = numbers(found)
        canary.save(found)
        self._write("canary", values)
        for number, (_, generation) in enumerate(found, 1):
            if self.tracker is not None and len(generation.audio):
                self.tracker.audio(trainer.step, f"canary/{number}", generation.audio, generation.sample_rate)
        log.info(f"step {trainer.step}: {in_words(values, found)}")

    def draw(self) -> None:
        """Write the run's page; a run goes on without one."""
        try:
            write_page(self.trainer.out)
        except (OSError, ValueError) as error:
            log.warning(f"{PAGE} was not written: {error}")

    def _write(self, group: str, metrics: dict[str, Any]) -> None:
        """Numbers, and lists of one for each codebook."""
        assert self.file is not None
        trainer = self.trainer
        values = {name: rounded(value) for name, value in metrics.items()}
        self.file.write(json.dumps({"step": trainer.step, **json_safe(values)}) + "\n")
        self.file.flush()
        if self.tracker is None:
            settings = asdict(trainer.config) | {"data": trainer.data}
            self.tracker = make_tracker(trainer.config.track, trainer.out, trainer.step, settings)
        self.tracker.numbers(trainer.step, dict(flat(group, metrics)))


def rounded(value: Any) -> Any:
    return [round(item, 6) for item in value] if isinstance(value, list) else round(value, 6)


def flat(group: str, metrics: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Names as trackers show them; a list has a curve for each codebook."""
    for name, value in metrics.items():
        if isinstance(value, list):
            yield from ((f"{group}/{name}/{k}", item) for k, item in enumerate(value))
        else:
            yield f"{group}/{name}", value
