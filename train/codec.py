"""Train the "spectral" codec: `codeclm codec train DATA --out RUN`.

A run folder holds config.json, metrics.jsonl, tensorboard/, step-N/ checkpoints and, at the end, codec/ with the
averaged weights. A run that was killed goes on from its newest checkpoint as if it had not been; one that is asked to
stop (Ctrl-C, SIGTERM) saves first. Runs on a CPU, a GPU, or several ranks under `torchrun`, which share the rows of a
batch. What a step is is codec_trainer.py.
"""

import logging
import time
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from ..data.progress import progress_bar
from ..model.codecs.spectral import SpectralCodec
from ..model.files import whole_folder
from .checkpoint import difference, filled, latest_checkpoint, load_state
from .codec_config import CodecTrainConfig
from .codec_heldout import HeldOut
from .codec_log import CodecLog
from .codec_trainer import CodecTrainer, batches, identity, samples_per_crop
from .interruption import Interrupted, Interruption
from .processes import agree, main_first
from .run_folder import CODEC, claim, cut_metrics, write_config
from .voice_crops import VoiceCrops

log = logging.getLogger(__name__)


def train_codec(data: str | Path, out: Path, config: CodecTrainConfig = CodecTrainConfig()) -> Path:
    """Train on the audio below `data`, resuming what `out` holds -> the folder of the finished codec.

    Raises Interrupted (a KeyboardInterrupt) after SIGINT or SIGTERM, with everything saved.
    """
    with claim(out, CODEC):
        trainer = CodecTrainer(config)
        with main_first(trainer.accelerator):  # the others find the audio decoded
            settings = config.codec.sample_rate, config.max_hours_per_voice, config.codec.trunk_hop, config.max_voices
            crops = VoiceCrops(data, out / "decoded", *settings)
        resume(trainer, out)
        with Interruption() as interruption:
            run(trainer, crops, out, interruption)
        if trainer.accelerator.is_main_process:
            keep(level_matched(trainer.averaged_codec(), crops, config), out / "codec")
        trainer.accelerator.wait_for_everyone()
    return out / "codec"


def resume(trainer: CodecTrainer, out: Path) -> None:
    """Go on from the newest whole checkpoint, if there is one; write down what this run is.

    Raises ValueError if the checkpoint belongs to another run.
    """
    found = latest_checkpoint(out)
    if found is not None:
        made = filled(load_state(found)["config"], identity(CodecTrainConfig()))  # an older one has fewer settings
        now = identity(trainer.config)
        other = difference({key: made.get(key) for key in now}, now)
        if other:
            raise ValueError(f"{found}: was made with other settings ({other}); give another --out, or the same ones")
        trainer.restore(found)
    if trainer.accelerator.is_main_process:
        if found is not None:
            log.info(f"resumed from {found}")
        cut_metrics(out, trainer.step)
        write_config(out, CODEC, asdict(trainer.config))


def run(trainer: CodecTrainer, crops: VoiceCrops, out: Path, interruption: Interruption) -> None:
    """The steps that are left. Raises Interrupted, with everything saved, once a signal has come."""
    config, is_main = trainer.config, trainer.accelerator.is_main_process
    heldout = HeldOut(Path(config.heldout)) if config.heldout and is_main else None
    steps = batches(crops, config, trainer.step)
    bar = progress_bar(steps, total=config.steps, initial=trainer.step, unit="step", disable=not is_main)
    started = saved = time.monotonic()
    writing = closing(CodecLog(out, config.codec.sample_rate, trainer.step)) if is_main else nullcontext()
    with writing as written, closing(bar):
        for audio, pitch in bar:
            if trainer.step == trainer.quantize_step:
                trainer.fill_codebooks(crops)
            terms = trainer.train_step(audio, pitch)
            last = trainer.step == config.steps
            asked = 0 if last else agree(trainer.accelerator, interruption.number)
            if written is not None:
                if trainer.step % config.log_every == 0 or last:
                    written.numbers(trainer.step, terms | {"seconds": time.monotonic() - started})
                    bar.set_postfix(loss=f"{terms['loss']:.3f}", mel=f"{terms['mel']:.3f}")
                if heldout is not None and (trainer.step % config.evaluate_every == 0 or last):
                    look(trainer, heldout, written)
                is_due = trainer.step % config.save_every == 0 or time.monotonic() - saved > 60 * config.save_minutes
                if is_due or last or asked:
                    trainer.save(out)
                    saved = time.monotonic()
            if asked:
                trainer.accelerator.wait_for_everyone()
                done = f"stopped and saved at step {trainer.step} of {config.steps}"
                raise Interrupted(f"{out}: {done}; the same command goes on from there", asked)


def look(trainer: CodecTrainer, heldout: HeldOut, written: CodecLog) -> None:
    """Measure the averaged weights on held-out speech, and write down what they make of it."""
    codec = trainer.averaged_codec()
    written.numbers(trainer.step, heldout.measure(codec), group="heldout")
    for number, (original, output) in enumerate(heldout.examples(codec)):
        written.listen(trainer.step, number, original, output)


@torch.no_grad()
def level_matched(codec: SpectralCodec, crops: VoiceCrops, config: CodecTrainConfig, rows: int = 64) -> SpectralCodec:
    """Make the codec as loud as what goes in, on crops: the losses alone leave it a little quieter."""
    audio, _ = crops.draw(rows, samples_per_crop(config), np.random.default_rng([config.seed, 2]))
    audio = audio.to(codec.device)
    output = codec.decode(codec.encode(audio[:, None]))[:, 0]
    before, after = (x.square().sum(dim=1).clamp_min(1e-6).log() for x in (audio, output))
    codec.decoder.head.bias.add_((before - after).median() / 2)  # the head's outputs are logarithms of gains
    return codec


def keep(codec: SpectralCodec, folder: Path) -> None:
    """Save the codec as `folder`, replacing what is there at once."""
    with whole_folder(folder, replace=True) as partial:
        codec.cpu().save(partial)
