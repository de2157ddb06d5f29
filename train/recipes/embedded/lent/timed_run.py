"""A run that ends by the clock: `codeclm train`'s own, stopped where its learning rate must begin to decay.

    checks     a small step, then steps at full size on a copy: compiled or not, in one piece or several, as it goes
    constant   at the full learning rate, until a deadline stops it as a signal would
    decay      the same run with its number of steps, which is now known: the last `decay_share` of them

Nothing here is a trainer: the second run resumes the first with fewer steps, as any run can (train/extension.py).
"""

import copy
import logging
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from .....data.text_tokenizer import TOKENIZER_FILE, TextTokenizer
from .....data.token_store import TokenStore
from .....inference.loading import load_speech_lm, load_tokenizer
from .....model.device import resolve_device
from .....model.lm import SpeechLM
from ....checkpoint import latest_checkpoint, load_state
from ....config import TrainConfig
from ....interruption import Interrupted
from ....loop import train
from ....new_model import new_model
from ....trainer import Trainer
from .pack import FIRST, send_back

TRIED_STEPS = 5
RESERVED_S = 25.0  # for the last look, the checkpoint and packing
MOST_RESERVED = 0.15  # share of all seconds, where these are few
SLACK = 0.97  # the decay begins a little before its share of the time is left: it must come to its end
log = logging.getLogger(__name__)


def timed_run(folder: Path, store: TokenStore, config: TrainConfig, run: Path, out: Path, ends: float) -> None:
    """Train until `ends` (time.monotonic()) on what pack.py has unpacked into `folder`; `out` has the parcel to bring
    back, first of the constant phase, then of the whole run. Raises Interrupted if the time was too short for any look.
    """
    left = ends - time.monotonic()
    ends -= min(RESERVED_S, MOST_RESERVED * left)
    model, tokenizer = first_model(folder, store, config)
    config = checked(model, store, config, tokenizer)
    started = time.monotonic()
    log.info(f"again: {tried(model, store, config, tokenizer)}")
    restart = time.monotonic() - started  # as long will it take where the decay begins
    started = time.monotonic()
    share = config.optimizer.decay_share
    log.info(f"{ends - started:.0f} s to train, the last {share:.0%} of the steps with a falling rate")
    turn = started + SLACK * (1 - share) * (ends - started - restart)
    going_on(model, store, run, config, tokenizer, turn)
    step = newest_step(run)
    steps = max(step + 1, round(step / (1 - share)))
    log.info(f"step {step} after {time.monotonic() - started:.0f} s: the run has {steps} steps")
    if (run / "model").is_dir():
        send_back(run, out, run.with_name("back"))
    config = replace(config, steps=steps, evaluate_every=max(1, min(config.evaluate_every, (steps - step) // 3)))
    going_on(model, store, run, config, tokenizer, ends)
    if not (run / "model").is_dir():
        raise Interrupted("the time was over before the weights were looked at once; give more --minutes", 15)
    send_back(run, out, run.with_name("back"))


def first_model(folder: Path, store: TokenStore, config: TrainConfig) -> tuple[SpeechLM, TextTokenizer | None]:
    """The one that was sent, or a new one for the tokenizer that was."""
    if (folder / FIRST).is_dir():
        model = load_speech_lm(folder / FIRST)
        return model, load_tokenizer(folder / FIRST, model)
    tokenizer = TextTokenizer.load(folder) if (folder / TOKENIZER_FILE).is_file() else None
    return new_model(store, config, tokenizer), tokenizer


def going_on(
    model: SpeechLM, store: TokenStore, run: Path, config: TrainConfig, tokenizer: TextTokenizer | None, ends: float
) -> None:
    """`codeclm train`, until its last step or the deadline."""
    try:
        train(model, None, store, run, config, tokenizer, deadline=ends)
    except Interrupted as interrupted:
        if time.monotonic() < ends:  # somebody else asked
            raise
        log.info(str(interrupted).partition(";")[0])


def newest_step(run: Path) -> int:
    found = latest_checkpoint(run)
    if found is None:
        raise Interrupted("the time was over before the first step; give more --minutes", 15)
    return load_state(found)["step"]


def checked(model: SpeechLM, store: TokenStore, config: TrainConfig, tokenizer: TextTokenizer | None) -> TrainConfig:
    """The settings with which a step works here; what does not is said. Raises what even the smallest step does."""
    device = resolve_device(config.device)
    log.info(f"torch {torch.__version__} on {device_name(device)}")
    batch = config.batch
    small = replace(config, compile=False, batch=replace(batch, frames_per_batch=batch.max_frames))
    log.info(f"a small step: {tried(model, store, small, tokenizer, 1)}")
    while True:
        try:
            log.info(f"{'compiled' if config.compile else 'not compiled'}: {tried(model, store, config, tokenizer)}")
            return config
        except torch.OutOfMemoryError:
            whole = batch.frames_per_microbatch or batch.frames_per_batch
            if whole <= batch.max_frames:
                raise
            batch = replace(batch, frames_per_microbatch=max(batch.max_frames, whole // 2))
            log.warning(f"out of memory: {batch.frames_per_microbatch} frames at a time")
            config = replace(config, batch=batch)
            release(device)
        except Exception as error:  # a compiler may fail in any way
            if not config.compile:
                raise
            log.warning(f"compiling fails, so the run goes on without ({type(error).__name__}: {str(error)[:300]})")
            config = replace(config, compile=False)
            release(device)


def tried(
    model: SpeechLM, store: TokenStore, config: TrainConfig, tokenizer: TextTokenizer | None, steps: int = TRIED_STEPS
) -> str:
    """Some steps of a copy, in words."""
    with TemporaryDirectory() as scratch:
        trainer = Trainer(copy.deepcopy(model), None, store, Path(scratch), config, tokenizer, start="tried")
        with trainer:
            seconds, losses = [], []
            for _ in range(steps):
                begun = time.monotonic()
                losses.append(trainer.train_step()["loss"])
                seconds.append(time.monotonic() - begun)
        device = trainer.accelerator.device
    memory = f", {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB" if device.type == "cuda" else ""
    rate = config.batch.frames_per_batch / min(seconds)
    return f"{seconds[0]:.1f} s, then {rate:.0f} frames/s{memory}, loss {losses[0]:.3f} to {losses[-1]:.3f}"


def release(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    memory = torch.cuda.get_device_properties(device).total_memory
    return f"{torch.cuda.get_device_name(device)}, {memory / 1e9:.0f} GB"
