"""A run that ends by the clock: `codeclm train`'s own, stopped where its learning rate must begin to decay.

    checks     steps at full size on a copy: in one piece or several, as memory allows; compiled where that is faster
    constant   at the full learning rate, until a deadline stops it as a signal would
    decay      the same run with its number of steps, which is now known: the last `decay_share` of them

Nothing here is a trainer: the second run resumes the first with fewer steps, as any run can (train/extension.py).
"""

import copy
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
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
WORTH_IT = 1.03  # how many times as fast compiled steps must be, or the run is not compiled
MOST_COMPILING = 0.25  # share of the time in which compiled steps must have been tried
RESTORED_S = 8.0  # writing and reading a checkpoint, packing, and compiled steps from the compiler's cache
MOST_RESTORED = 0.05  # share of the time left
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
    log.info(f"torch {torch.__version__} on {device_name(resolve_device(config.device))}")
    most_s = MOST_COMPILING * (ends - time.monotonic())
    config, trial = checked(config, partial(attempted, model, store, tokenizer), most_s)
    started = time.monotonic()
    share = config.optimizer.decay_share
    log.info(f"{ends - started:.0f} s to train, the last {share:.0%} of the steps with a falling rate")
    restart = min(trial.begin_s + RESTORED_S, MOST_RESTORED * (ends - started))
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
    has_tokenizer, text = (folder / TOKENIZER_FILE).is_file(), config.model.text
    tokenizer = TextTokenizer.load(folder, text.numbers, text.phonemes) if has_tokenizer else None
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


@dataclass(frozen=True)
class Trial:
    """Some steps of a copy of the model."""

    begin_s: float  # what a trainer takes before its first step
    first_s: float  # the first step, with compiling
    frames_per_second: float  # of the fastest of the others
    told: str


Try = Callable[[TrainConfig], Trial]


def checked(config: TrainConfig, attempt: Try, most_s: float) -> tuple[TrainConfig, Trial]:
    """The settings with which a step works here and is fastest; what does not work is said.

    most_s: seconds that compiling may take.
    """
    plain, found = fitting(replace(config, compile=False), attempt)
    log.info(f"not compiled: {found.told}")
    if not config.compile:
        return plain, found
    try:
        with within(most_s):
            compiled = attempt(replace(plain, compile=True))
    except Exception as error:  # a compiler may fail in any way
        log.warning(f"compiling fails, so the run goes on without ({type(error).__name__}: {str(error)[:300]})")
        return plain, found
    log.info(f"compiled: {compiled.told}")
    if compiled.frames_per_second < WORTH_IT * found.frames_per_second:
        log.info("not faster: the run goes on without compiling")
        return plain, found
    return replace(plain, compile=True), compiled


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """TimeoutError, in the main thread, if the block takes longer."""

    def end(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fitting(config: TrainConfig, attempt: Try) -> tuple[TrainConfig, Trial]:
    """The same with as many frames at a time as the memory holds."""
    try:
        return config, attempt(config)
    except torch.OutOfMemoryError:
        batch = config.batch
        frames = (batch.frames_per_microbatch or batch.frames_per_batch) // 2
        if frames < batch.max_frames:
            raise
        log.warning(f"out of memory: {frames} frames at a time")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return fitting(replace(config, batch=replace(batch, frames_per_microbatch=frames)), attempt)


def attempted(model: SpeechLM, store: TokenStore, tokenizer: TextTokenizer | None, config: TrainConfig) -> Trial:
    """TRIED_STEPS steps of a copy."""
    begun = time.monotonic()
    with TemporaryDirectory() as scratch:
        trainer = Trainer(copy.deepcopy(model), None, store, Path(scratch), config, tokenizer, start="tried")
        with trainer:
            marks, losses = [time.monotonic()], []
            for _ in range(TRIED_STEPS):
                losses.append(trainer.train_step()["loss"])
                marks.append(time.monotonic())
            device = trainer.accelerator.device
    begin, (first, *others) = marks[0] - begun, [b - a for a, b in pairwise(marks)]
    rate = config.batch.frames_per_batch / min(others)
    memory = f", {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB" if device.type == "cuda" else ""
    told = f"{begin:.1f} s to begin, first step {first:.1f} s, then {rate:.0f} frames/s{memory}"
    return Trial(begin, first, rate, f"{told}, loss {losses[0]:.3f} to {losses[-1]:.3f}")


def device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    memory = torch.cuda.get_device_properties(device).total_memory
    return f"{torch.cuda.get_device_name(device)}, {memory / 1e9:.0f} GB"
