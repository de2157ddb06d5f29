"""Trainer: one run of a SpeechLM, with its optimizer, its data, and where it stands. What a run is made of is loop.py.

Step n is a pure function of (seed, n). Losses are divided by the global number of codes, so two ranks equal one.
B batch, K codebooks, T frames.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..data.ahead import Ahead
from ..data.rows import Rows, can_be_packed
from ..data.text_times import times_file
from ..data.text_tokenizer import TextTokenizer
from ..inference.config import EvaluateConfig
from ..inference.evaluate.score import score_store
from ..inference.loading import save_model
from ..model.codecs import Codec
from ..model.device import has_fast_bf16
from ..model.lm import SpeechLM
from ..model.losses import Weights
from .background import Background
from .bad_batch import blamed
from .borrowed import borrowed
from .checkpoint import (
    Part,
    latest_checkpoint,
    load_state,
    load_tensors,
    on_host,
    pack_optimizer,
    save_checkpoint,
    tensors_sha256,
    unpack_optimizer,
)
from .config import RunConfig
from .corpora import Corpus, Stores, batches_of, corpora
from .ema import Ema
from .extension import resume_from
from .identity import check_same_run, identity
from .microbatches import Microbatch, StepRows
from .optim import make_optimizer
from .processes import own_part, total
from .processes import start as start_processes
from .schedule import decay_start, learning_rate
from .sharding import gather, load_parts, whole
from .tuning import Tuning

log = logging.getLogger(__name__)

STANDING = ("best", "best_step", "since_best", "before", "skipped")  # what a checkpoint says of a run, beside its step


class Trainer:
    """`close` it, or use it in a `with`: until then the model is changed for training (borrowed.py)."""

    def __init__(
        self,
        model: SpeechLM,
        codec: Codec | None,
        store: Stores,
        out: Path,
        config: RunConfig,
        tokenizer: TextTokenizer | None = None,
        start: str | None = None,
        tuning: Tuning = Tuning(),
    ):
        """codec: None where nobody listens (no canary); the model is then kept without it.

        start: what the first weights are, when something else in the run's identity says it (default: their hash).
        """
        if codec is None and config.canary:
            raise ValueError("a run without its codec cannot be heard: give canary 0")
        self.corpora = corpora(store, config.batch)
        self.store = self.corpora[0].store
        self.store.require_model(model.config)
        self.config, self.out, self.codec, self.tokenizer = config, out, codec, tokenizer
        self.raw_model, self.step = model, 0
        self.tuning = tuning
        self.before = self.best = math.inf  # bits/s of the held-out speech: of the first weights, of the best ones
        self.best_step = self.since_best = 0  # evaluations since the best one
        self.skipped = 0  # batches that were left out
        self.codebook_bits: list[float] = []  # bits of a held-out code, for each codebook
        self.heldout_bits: dict[str, float] = {}  # for each corpus, at the last evaluation
        self.given_text_bits: float | None = None  # bits/s of all of it as speech with its text, where that is learned
        self.start = tensors_sha256(model.state_dict()) if start is None else start
        how = self.tokenizer, model.config.text, can_be_packed(model.config), tuning.replay, tuning.replay_share
        self.batches = batches_of(self.corpora, config.batch, config.seed, *how)
        self.accelerator = start_processes(config.device)
        self.bf16 = config.bf16 and has_fast_bf16(self.accelerator.device)
        self.read_rows = StepRows(self.batches, config, self.accelerator, model.config)
        self._rows = Ahead(self.read_rows, config.steps)
        self._saved = time.monotonic()
        self._borrowed = ExitStack()
        self.model: Any = self._borrowed.enter_context(borrowed(model, self.accelerator, config, self.autocast()))
        self.is_sharded = config.sharding == "fsdp" and self.accelerator.num_processes > 1
        self.learner: SpeechLM = self.model if self.is_sharded else model  # whose parameters learn
        self.optimizer = make_optimizer(self.learner, config.optimizer)
        self.ema = Ema(self.learner, config.ema_decay) if config.ema_decay else None
        self.part = own_part(self.accelerator) if self.is_sharded else Part()
        self._writer = Background()

    def close(self, is_well: bool = True) -> None:
        """Give the model back; if all went well, with what it learned also where its weights are sharded."""
        self._rows.close()
        try:
            self._writer.close()
            if self.is_sharded and is_well:
                gather(self.learner, self.raw_model)
        finally:
            self.model = self.raw_model
            self._borrowed.close()

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(is_well=kind is None)

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def autocast(self) -> AbstractContextManager:
        """The precision of the forward pass."""
        return torch.autocast(self.accelerator.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def train_step(self) -> dict[str, float]:
        """One optimizer step on this rank's rows of the global batch."""
        self._writer.check()
        config = self.config
        rate = learning_rate(config.optimizer, self.step, config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_scale"]
        parts = self._rows(self.step)
        num_global = round(total(self.accelerator, sum(part.scored for part in parts))[0])
        loss = torch.zeros((), device=self.accelerator.device)
        self.optimizer.zero_grad()
        for part in parts:
            # gradients of the ranks are summed once, in the last backward pass
            is_last = part is parts[-1] or self.is_sharded  # whole gradients would not fit: each is summed at once
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                share = self.loss(part) * (self.accelerator.num_processes * part.scored / num_global)
                self.accelerator.backward(share)
            loss += share.detach()
        norm = whole(torch.nn.utils.clip_grad_norm_(self.learner.parameters(), config.optimizer.clip_norm))
        reduced = cast(Tensor, self.accelerator.reduce(loss, "mean"))
        value, slope = torch.stack([reduced, norm]).tolist()  # a GPU is waited for here
        metrics = {"loss": value, "learning_rate": rate, "gradient_norm": slope, "codes": num_global}
        metrics["waited_s"] = self._rows.waited_s
        if math.isfinite(value) and math.isfinite(slope):
            self.optimizer.step()
        else:
            self.leave_out(value, slope)
            metrics |= {"loss": 0.0, "codes": 0}
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)
        return metrics

    def loss(self, part: Microbatch) -> Tensor:
        """The mean over what the rows score."""
        config, rows = self.config, part.rows.to(self.accelerator.device)
        of = config.loss
        with self.autocast():
            output = self.model(
                rows.codes,
                ends=rows.ends,
                text=self.text_of(rows),
                documents=rows.documents,
                given=rows.given,
                weights=Weights(of.codebooks or None, of.text, of.time_only, of.written_codes, of.z_loss),
                depth_fraction=config.depth_fraction,
                depth_chunk=config.depth_chunk,
                input_dropout=config.input_dropout,
                frame_dropout=config.frame_dropout,
                row_keys=part.keys.to(self.accelerator.device),
            )
        return output.loss

    def leave_out(self, loss: float, slope: float) -> None:
        """Count a batch whose loss is not finite. Raises FloatingPointError unless such batches are to be skipped."""
        problem = f"step {self.step}: the loss is {loss}, its gradient {slope}, by {blamed(self)}"
        if self.config.skip_bad:
            self.skipped += 1
            log.warning(f"{problem}; the batch was left out, the {self.skipped}. of this run")
            return
        newest = latest_checkpoint(self.out)
        kept = f", and {newest} is intact" if newest else ""
        raise FloatingPointError(f"{problem}; the weights were not touched{kept}; --skip-bad leaves such a batch out")

    def aside(self, call: Callable[[], Any]) -> Any:
        """`call`, which reads `batches`, while nobody else does."""
        return self._rows.aside(call)

    def text_of(self, rows: Rows) -> Tensor | None:
        return rows.text if self.raw_model.text_size else None

    def evaluate(self) -> float:
        """bits/s of the held-out utterances, where there are several corpora their mean by share.

        Before the first step that is `before`; later the best weights are kept. What is compared is the mean of speech
        alone and of speech with its text, by the `said_share`. The weights are the average of those that learned, if
        there is one. Every rank scores a part of the utterances.
        """
        rate = self.store.codec.frame_rate
        with self.averaged(), self.uncompiled(), self.whole() as model:
            each = [self._heldout_bits(model, corpus) for corpus in self.corpora]
            self.heldout_bits = {c.name: rate * sum(own) for c, own in zip(self.corpora, each, strict=True)}
            self.codebook_bits = self._mean(each)
            bits = judged = rate * sum(self.codebook_bits)
            if self.said_share:
                given = [
                    self._heldout_bits(model, corpus, given_text=True) if self._has_texts(corpus) else own
                    for corpus, own in zip(self.corpora, each, strict=True)
                ]
                self.given_text_bits = rate * sum(self._mean(given))
                judged += self.said_share * (self.given_text_bits - bits)
            if self.step == 0:  # a run's model is what it learned
                self.before = judged
            elif judged < self.best:
                self.best, self.best_step, self.since_best = judged, self.step, 0
                if self.is_main:
                    (self.tuning.save or self.save_whole)(self.out / "model")
            else:
                self.since_best += 1
        return bits

    def _heldout_bits(self, model: SpeechLM, corpus: Corpus, given_text: bool = False) -> list[float]:
        """Bits of a held-out code in each codebook."""
        mine = corpus.scored[self.accelerator.process_index :: self.accelerator.num_processes]
        config = EvaluateConfig(bf16=self.bf16, given_text=given_text)
        scores = score_store(model, corpus.store, config, mine, False, self.tokenizer)
        *nats, num_frames = total(self.accelerator, *scores.nll.sum(axis=0), scores.num_frames.sum())
        return [value / num_frames / math.log(2) for value in nats]

    def _has_texts(self, corpus: Corpus) -> bool:
        """Whether its texts are used: "timed" needs to know when they are said."""
        return self.raw_model.config.text.layout != "timed" or times_file(corpus.store).is_file()

    def _mean(self, each: Sequence[Sequence[float]]) -> list[float]:
        """Of the corpora, by share."""
        return (np.array([corpus.share for corpus in self.corpora]) @ np.array(each)).tolist()

    @property
    def said_share(self) -> float:
        """Share of the utterances that are learned as speech with their text, where the layout draws that."""
        shares, is_drawn = self.config.batch.text, self.tokenizer is not None and self.raw_model.config.text.is_tagged
        return shares.say + shares.say_voice if is_drawn else 0.0

    def uncompiled(self) -> AbstractContextManager:
        """Scores with a window go through a cache, for whose layers blocks would be compiled one by one."""
        is_apart = self.config.compile and self.raw_model.config.backbone.sliding_window
        return torch.compiler.set_stance("force_eager") if is_apart else nullcontext()

    @contextmanager
    def whole(self) -> Iterator[SpeechLM]:
        """The model with all of its weights, on the device; where they are sharded every rank takes part."""
        if self.is_sharded:
            gather(self.learner, self.raw_model.to(self.accelerator.device))  # pyright: ignore[reportArgumentType]
        yield self.raw_model
        if self.is_sharded:
            self.raw_model.to("cpu")  # pyright: ignore[reportArgumentType]

    def save_whole(self, folder: Path) -> None:
        save_model(self.raw_model, self.codec, folder, tokenizer=self.tokenizer)

    def averaged(self) -> AbstractContextManager:
        """The model has the weights that are evaluated and kept."""
        return nullcontext() if self.ema is None else self.ema.applied()

    @property
    def is_finished(self) -> bool:
        """Whether all steps are taken, or patience is over."""
        return self.step >= self.config.steps or self.has_stopped

    @property
    def has_stopped(self) -> bool:
        return 0 < self.config.patience <= self.since_best

    @property
    def decays_from_here(self) -> bool:
        """Whether a longer run would go on from here."""
        optimizer, steps = self.config.optimizer, self.config.steps
        return optimizer.schedule == "wsd" and self.step == decay_start(optimizer, steps) < steps

    def is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        since = time.monotonic() - self._saved
        return self.step % self.config.save_every == 0 or since > 60 * self.config.save_minutes

    def save(self, inner: str = "", keep: int = 2) -> None:
        """Begin a checkpoint in the folder of the run, or in a folder `inner` there; all ranks call this.

        It is written while training goes on; `finish` waits for it.
        """
        self._saved = time.monotonic()
        if not (self.is_main or self.is_sharded):
            return
        self._writer.wait()
        files = {"model": dict(self.learner.state_dict()), "optimizer": pack_optimizer(self.optimizer)}
        if self.ema is not None:
            files["ema"] = self.ema.tensors
        state = {name: getattr(self, name) for name in STANDING} | {"steps": self.config.steps, "run": identity(self)}
        step, files = self.step, on_host(files, self.part)
        self._writer.start(lambda: save_checkpoint(self.out / inner, step, files, state, keep, self.part))

    def finish(self) -> None:
        """Wait until the last checkpoint is written, on all ranks."""
        self._writer.wait()
        self.accelerator.wait_for_everyone()

    def restore(self) -> bool:
        """Go on from the newest whole checkpoint. Raises ValueError if it belongs to another run."""
        newest = latest_checkpoint(self.out)
        if newest is None:
            return False
        state, tensors = load_state(newest), load_tensors(newest, "model")
        check_same_run(self, newest, state["run"], tensors)
        self.start = state["run"].get("start", self.start)
        best, best_step = state["best"], state.get("best_step", 0)
        found, changed = resume_from(self.out, newest, self.config)
        if found != newest:
            state, tensors = load_state(found), load_tensors(found, "model")
        load_parts(tensors, self.learner.state_dict())
        unpack_optimizer(self.optimizer, load_tensors(found, "optimizer"))
        if self.ema is not None:
            self.ema.load(load_tensors(found, "ema"))
        self.step = state["step"]
        for name in STANDING:
            setattr(self, name, state.get(name, getattr(self, name)))
        if found != newest:  # model/ holds what was best, also of steps that are taken again
            self.best, self.best_step, self.since_best = best, best_step, 0
        if changed and self.is_main:
            log.info(changed)
        return True

    @property
    def data(self) -> str | list[str]:
        """The hash of the data, or of each corpus."""
        hashes = [corpus.store.data_hash for corpus in self.corpora]
        return hashes if len(hashes) > 1 else hashes[0]

    @property
    def is_capped(self) -> bool:
        """Whether an evaluation scores only a part of what is held out."""
        return any(corpus.scored != corpus.heldout for corpus in self.corpora)
