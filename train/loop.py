"""Train a SpeechLM on a token store: `codeclm train` and `codeclm finetune`. The trainer never touches audio.

A run folder holds config.json, metrics.jsonl, step-N/ checkpoints and model/ with the weights that were best on the
held-out utterances. A run that was killed goes on exactly where it stood; one that is asked to stop (Ctrl-C, SIGTERM)
saves first. Works under `torchrun` through accelerate. What a step is is trainer.py.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ..data.preparation import duration
from ..data.progress import progress_bar
from ..data.split import recordings
from ..data.text_tokenizer import TextTokenizer
from ..data.token_store import TokenStore
from ..model.codecs import Codec
from ..model.lm import SpeechLM
from .config import RunConfig
from .interruption import Interrupted, Interruption
from .processes import agree
from .run_folder import LANGUAGE_MODEL, METRICS, claim, cut_metrics, write_config
from .trainer import Trainer

log = logging.getLogger(__name__)


def train(
    model: SpeechLM,
    codec: Codec,
    store: TokenStore,
    out: Path,
    config: RunConfig,
    tokenizer: TextTokenizer | None = None,
    start: str | None = None,
) -> Path:
    """Run or resume -> the folder of the best weights on the held-out utterances.

    tokenizer: for a model with text. start: see Trainer. `model` learns; else it is left as it came, in eval mode.
    Raises Interrupted (a KeyboardInterrupt) after SIGINT or SIGTERM, with everything saved.
    """
    with (
        claim(out, LANGUAGE_MODEL),
        Trainer(model, codec, store, out, config, tokenizer, start) as trainer,
        Interruption() as interruption,
    ):
        begin(trainer)
        with Log(trainer) as written:
            if trainer.step == 0 and trainer.is_main:
                written.heldout(trainer.evaluate())
            while trainer.step < config.steps:
                written.step(trainer.train_step())
                last = trainer.step == config.steps
                if trainer.is_main and (trainer.step % config.evaluate_every == 0 or last):
                    written.heldout(trainer.evaluate())
                asked = 0 if last else agree(trainer.accelerator, interruption.number)
                if trainer.is_main and (trainer.is_due() or last or asked):
                    trainer.save()
                if last or asked:
                    trainer.accelerator.wait_for_everyone()
                if asked:
                    done = f"stopped and saved at step {trainer.step} of {config.steps}"
                    raise Interrupted(f"{out}: {done}; the same command goes on from there", asked)
        if trainer.is_main:
            log.info(outcome(trainer))
    return out / "model"


def begin(trainer: Trainer) -> None:
    """Restore what the run folder holds, and write down what this run is."""
    resumed = trainer.restore()
    if not trainer.is_main:
        return
    cut_metrics(trainer.out, trainer.step if resumed else -1)
    settings = {"model": trainer.model_settings(), "data": trainer.store.data_hash, "start": trainer.start}
    write_config(trainer.out, LANGUAGE_MODEL, asdict(trainer.config) | settings)
    if resumed:
        log.info(f"resumed at step {trainer.step}")
    log.info(describe(trainer))


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
    machine, precision = trainer.accelerator, str(model.dtype).removeprefix("torch.")
    return (
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters ({sizes}); "
        f"{duration(hours)} to train on, {len(trainer.heldout)} utterances held out; {trainer.config.steps} steps on "
        f"{machine.num_processes} x {machine.device.type}, precision {precision}"
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
        self._write({"heldout_bits_per_second": bits})
        log.info(f"step {self.trainer.step}: held-out {bits:.1f} bits/s")

    def _write(self, metrics: dict[str, float]) -> None:
        assert self.file is not None
        values = {name: round(value, 6) for name, value in metrics.items()}
        self.file.write(json.dumps({"step": self.trainer.step, **values}) + "\n")
        self.file.flush()


def for_small_data(config: RunConfig, names: Sequence[str]) -> RunConfig:
    """Hold out at least about three recordings, whatever the share says. names: of the store's utterances."""
    share = min(0.5, max(config.batch.heldout_share, 3 / max(len(set(recordings(names))), 1)))
    return replace(config, batch=replace(config.batch, heldout_share=share))
