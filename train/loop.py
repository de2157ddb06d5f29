"""Train a SpeechLM on a token store: `codeclm train` and `codeclm finetune`. The trainer never touches audio.

A run folder holds config.json, metrics.jsonl, step-N/ checkpoints and model/ with the weights that were best on the
held-out utterances. A run that was killed goes on exactly where it stood; one that is asked to stop (Ctrl-C, SIGTERM)
saves first. Works under `torchrun` through accelerate. What a step is is trainer.py.
"""

import logging
import math
import shlex
import sys
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..data.split import recordings
from ..data.text_tokenizer import TextTokenizer
from ..data.token_store import TokenStore
from ..model.codecs import Codec
from ..model.lm import SpeechLM
from .alarms import check
from .config import RunConfig, TrainConfig
from .config_file import SHAPE
from .corpora import Stores
from .extension import BEFORE_DECAY
from .identity import own_settings
from .interruption import Interrupted, Interruption
from .processes import agree
from .run_folder import LANGUAGE_MODEL, claim, cut_metrics, write_config
from .run_log import Log, describe, outcome
from .trainer import Trainer
from .tuning import Tuning

Config = TypeVar("Config", bound=RunConfig)
DUE = 1  # less than the number of any signal that asks a run to stop
log = logging.getLogger(__name__)


def train(
    model: SpeechLM,
    codec: Codec | None,
    store: Stores,
    out: Path,
    config: RunConfig,
    tokenizer: TextTokenizer | None = None,
    start: str | None = None,
    tuning: Tuning = Tuning(),
    deadline: float = math.inf,
) -> Path:
    """Run or resume -> the folder of the best weights on the held-out utterances.

    codec, start: see Trainer. tokenizer: for a model with text. tuning: of a fine-tune. deadline: when, by
    time.monotonic(), the run is stopped as if by a signal. `model` learns; else it is left as it
    came, in eval mode. With config.check nothing runs but alarms.py; CheckFailed if one rang. Raises Interrupted (a
    KeyboardInterrupt) after SIGINT or SIGTERM, with everything saved.
    """
    with (
        claim(out, LANGUAGE_MODEL),
        Trainer(model, codec, store, out, config, tokenizer, start, tuning) as trainer,
        Interruption(deadline) as interruption,
    ):
        if config.check:
            check(trainer)
            return out / "model"
        begin(trainer)
        with Log(trainer) as written:
            if trainer.step == 0:
                written.heldout()
            while not trainer.is_finished:
                written.step()
                if trainer.step % config.evaluate_every == 0 or trainer.step == config.steps:
                    written.heldout()
                last = trainer.is_finished
                due = DUE if trainer.is_main and trainer.is_due() else 0  # by its clock
                wish = DUE if last else agree(trainer.accelerator, interruption.number or due)
                asked = wish if wish > DUE else 0
                if wish:
                    trainer.save()
                if trainer.decays_from_here:
                    trainer.save(BEFORE_DECAY, keep=1)
                if last or asked:
                    trainer.finish()
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
    write_config(trainer.out, LANGUAGE_MODEL, record(trainer))
    if resumed:
        log.info(f"resumed at step {trainer.step}")
    log.info(describe(trainer))
    ranks, rows = trainer.accelerator.num_processes, trainer.batches.most_rows
    if ranks > 1 or trainer.config.batch.frames_per_microbatch:
        parts = trainer.read_rows(0)
        frames = sum(part.rows.text.numel() for part in parts)
        log.info(f"{ranks} processes, {frames} frames of a step in each, in {len(parts)} microbatches")
    if rows < ranks:
        log.warning(
            f"{ranks - rows} of {ranks} processes have nothing to do: a step of "
            f"{trainer.config.batch.frames_per_batch} frames has {rows} rows; give more --batch.frames-per-batch"
        )


def record(trainer: Trainer) -> dict[str, Any]:
    """What config.json says of a run: its settings, and what it was made with. config_file.py reads the settings."""
    settings = asdict(trainer.config)
    if isinstance(trainer.config, TrainConfig):
        settings[SHAPE] = settings["model"]
    packages = ("codeclm", "torch", "transformers", "accelerate", "numpy")
    return settings | {
        "model": own_settings(trainer.raw_model.config),
        "data": trainer.data,
        "start": trainer.start,
        "versions": {name: version_of(name) for name in packages},
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that is used where it lies
        return "not installed"


def for_small_data(config: Config, store: TokenStore) -> Config:
    """Hold out at least about three recordings, whatever the share says."""
    share = min(0.5, max(config.batch.heldout_share, 3 / max(len(np.unique(recordings(store))), 1)))
    return replace(config, batch=replace(config.batch, heldout_share=share))
