"""Trainer: one run of a SpeechLM, with its optimizer, its data, and where it stands. What a run is made of is loop.py.

Step n is a pure function of (seed, n). Losses are divided by the global number of codes, so two ranks equal one.
B batch, K codebooks, T frames.
"""

import json
import logging
import math
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..data.ahead import Ahead
from ..data.rows import Rows, can_be_packed
from ..data.text_tokenizer import TextTokenizer
from ..inference.config import EvaluateConfig
from ..inference.evaluate.score import score_store
from ..inference.loading import FOREIGN_KEYS, save_model
from ..model.codecs import Codec
from ..model.device import has_fast_bf16
from ..model.layout import num_scored
from ..model.lm import SpeechLM
from ..model.losses import Weights
from ..model.speech_lm_config import SpeechLMConfig
from .borrowed import borrowed
from .checkpoint import (
    difference,
    filled,
    latest_checkpoint,
    load_state,
    load_tensors,
    pack_optimizer,
    save_checkpoint,
    tensors_sha256,
    unpack_optimizer,
)
from .config import BatchConfig, LossConfig, OptimizerConfig, RunConfig
from .corpora import Stores, batches_of, corpora
from .optim import learning_rate, make_optimizer
from .processes import start as start_processes
from .processes import total

ANNOUNCED = 8  # steps ahead, for what is read from a disk

log = logging.getLogger(__name__)


class Trainer:
    """`close` it, or use it in a `with`: until then the model is changed for training (borrowed.py)."""

    def __init__(
        self,
        model: SpeechLM,
        codec: Codec,
        store: Stores,
        out: Path,
        config: RunConfig,
        tokenizer: TextTokenizer | None = None,
        start: str | None = None,
    ):
        """start: what the first weights are, when something else in the run's identity says it (default: their hash)"""
        self.corpora = corpora(store, config.batch)
        self.store = self.corpora[0].store
        self.store.require_model(model.config)
        self.config, self.out, self.codec, self.tokenizer = config, out, codec, tokenizer
        self.raw_model, self.step = model, 0
        self.before = self.best = math.inf  # bits/s of the held-out speech: of the first weights, of the best ones
        self.best_step = 0
        self.heldout_bits: dict[str, float] = {}  # of each corpus, at the last evaluation
        self.start = tensors_sha256(model.state_dict()) if start is None else start
        packed = can_be_packed(model.config)
        self.batches = batches_of(self.corpora, config.batch, config.seed, *self._text(), packed)
        self.accelerator = start_processes(config.device)
        self.bf16 = config.bf16 and has_fast_bf16(self.accelerator.device)
        self._rows = Ahead(self.read_rows, config.steps)
        self._saved = time.monotonic()
        self._borrowed = ExitStack()
        self.model: Any = self._borrowed.enter_context(borrowed(model, self.accelerator, config, self.autocast()))
        self.optimizer = make_optimizer(model, config.optimizer)

    def close(self) -> None:
        """Give the model back."""
        self._rows.close()
        self.model = self.raw_model
        self._borrowed.close()

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def autocast(self) -> AbstractContextManager:
        """The precision of the forward pass."""
        return torch.autocast(self.accelerator.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def train_step(self) -> dict[str, float]:
        """One optimizer step on this rank's rows of the global batch."""
        config, device = self.config, self.accelerator.device
        rate = learning_rate(config.optimizer, self.step, config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # the frames that the depth decoder sees, and dropout
        torch.manual_seed(config.seed * 1_000_003 + self.step * 1009 + self.accelerator.process_index)
        rows, scored = self._rows(self.step)
        num_global = round(total(self.accelerator, scored)[0])
        rows = rows.to(device)
        with self.autocast():
            output = self.model(
                rows.codes,
                ends=rows.ends,
                text=self.text_of(rows),
                documents=rows.documents,
                weights=Weights(config.loss.codebooks or None, config.loss.text, config.loss.z_loss),
                depth_fraction=config.depth_fraction,
                depth_chunk=config.depth_chunk,
                input_dropout=config.input_dropout,
            )
        loss = output.loss * (self.accelerator.num_processes * scored / num_global)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.raw_model.parameters(), config.optimizer.clip_norm)
        reduced = cast(Tensor, self.accelerator.reduce(loss.detach(), "mean"))
        value, slope = torch.stack([reduced, norm]).tolist()  # a GPU is waited for here
        if not math.isfinite(value) or not math.isfinite(slope):
            newest = latest_checkpoint(self.out)
            kept = f", and {newest} is intact" if newest else ""
            raise FloatingPointError(
                f"step {self.step}: the loss is {value}, its gradient {slope}; the weights were not touched{kept}"
            )
        self.optimizer.step()
        self.step += 1
        return {"loss": value, "learning_rate": rate, "gradient_norm": slope, "codes": num_global}

    def read_rows(self, step: int) -> tuple[Rows, int]:
        """This rank's rows of a step, and the number of codes that it scores."""
        mine = self.accelerator.process_index, self.accelerator.num_processes
        if step + ANNOUNCED < self.config.steps:
            self.batches.announce(step + ANNOUNCED, *mine)
        rows = self.batches.rows(step, *mine)
        scored = self.num_scored(rows)
        if scored == 0:  # fewer rows than ranks: this one takes part in the reduction, with a loss that counts nothing
            rows = self.batches.rows(step, 0, self.config.batch.frames_per_batch)  # the first alone
        return rows.pinned() if self.accelerator.device.type == "cuda" else rows, scored

    def text_of(self, rows: Rows) -> Tensor | None:
        return rows.text if self.raw_model.text_size else None

    def num_scored(self, rows: Rows) -> int:
        """Codes, EOS and text tokens that a batch scores."""
        return int(num_scored(self.raw_model.config, rows.codes, rows.ends, self.text_of(rows)))

    def _text(self) -> tuple[TextTokenizer | None, Any]:
        return self.tokenizer, self.raw_model.config.text.layout

    def evaluate(self) -> float:
        """bits/s of the held-out utterances, where there are several corpora their mean by share.

        Before the first step that is `before`; later the best weights are kept.

        Every rank scores a part of them.
        """
        config = EvaluateConfig(bf16=self.bf16)
        for corpus in self.corpora:
            mine = corpus.scored[self.accelerator.process_index :: self.accelerator.num_processes]
            scores = score_store(self.raw_model, corpus.store, config, mine, False, self.tokenizer)
            nats, num_frames = total(self.accelerator, scores.nll.sum(), scores.num_frames.sum())
            self.heldout_bits[corpus.name] = self.store.codec.frame_rate * nats / num_frames / math.log(2)
        bits = sum(corpus.share * self.heldout_bits[corpus.name] for corpus in self.corpora)
        if self.step == 0:  # a run's model is what it learned
            self.before = bits
        elif bits < self.best:
            self.best, self.best_step = bits, self.step
            if self.is_main:
                save_model(self.raw_model, self.codec, self.out / "model", tokenizer=self.tokenizer)
        return bits

    def is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        since = time.monotonic() - self._saved
        return self.step % self.config.save_every == 0 or since > 60 * self.config.save_minutes

    def save(self) -> Path:
        files = {"model": dict(self.raw_model.state_dict()), "optimizer": pack_optimizer(self.optimizer)}
        state = {name: getattr(self, name) for name in ("best", "best_step", "before")}
        path = save_checkpoint(self.out, self.step, files, state | {"steps": self.config.steps, "run": self.identity()})
        self._saved = time.monotonic()
        return path

    def restore(self) -> bool:
        """Go on from the newest whole checkpoint. Raises ValueError if it belongs to another run."""
        found = latest_checkpoint(self.out)
        if found is None:
            return False
        state, tensors = load_state(found), load_tensors(found, "model")
        older = defaults(state["run"].get("seed", 0))
        for key, value in self.identity().items():
            other = difference(filled(state["run"].get(key, value), older.get(key)), value)
            # whoever goes on with the model that the run itself has trained does not start anew
            if other and not (key == "start" and tensors_sha256(tensors) == value):
                raise ValueError(
                    f"{found}: was made with another {key}; give another --out, or the same {key} ({other})"
                )
        self.start = state["run"].get("start", self.start)
        self.raw_model.load_state_dict(tensors)
        unpack_optimizer(self.optimizer, load_tensors(found, "optimizer"))
        self.step, self.best, steps = state["step"], state["best"], state.get("steps", self.config.steps)
        self.best_step, self.before = state.get("best_step", 0), state.get("before", math.inf)
        if steps != self.config.steps and self.is_main:
            log.info(
                f"steps was {steps} and is {self.config.steps}: from here the learning rate follows another cosine"
            )
        return True

    def identity(self) -> dict[str, Any]:
        """What must be the same for a resumed run to be the same run."""
        config = self.config
        values = {
            "data": self.data,
            "model": self.model_settings(),
            "batch": asdict(config.batch) | ({} if self.is_capped() else {"heldout_frames": 0}),
            "optimizer": asdict(config.optimizer),
            "loss": asdict(config.loss),
            **{name: getattr(config, name) for name in ("seed", "depth_fraction", "dropout", "input_dropout")},
            "rows": "packed" if self.batches.packed else "padded",
            "start": self.start,
        }
        # to JSON and back, as a checkpoint returns it: transformers' own settings have keys that are numbers
        return json.loads(json.dumps(values))

    @property
    def data(self) -> str | list[str]:
        """The hash of the data, or of each corpus."""
        hashes = [corpus.store.data_hash for corpus in self.corpora]
        return hashes if len(hashes) > 1 else hashes[0]

    def is_capped(self) -> bool:
        """Whether an evaluation scores only a part of what is held out."""
        return any(corpus.scored != corpus.heldout for corpus in self.corpora)

    def model_settings(self) -> dict[str, Any]:
        """The model's config.json without what transformers adds to it."""
        return own_settings(self.raw_model.config)


def own_settings(config: SpeechLMConfig) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in FOREIGN_KEYS}


def defaults(seed: int) -> dict[str, Any]:
    """A run's identity where nobody chose: the values of settings that the version which began it did not know.

    seed: of the run. It decided what is held out, and all of that was scored.
    """
    parts = {
        "batch": BatchConfig(heldout_seed=seed, heldout_frames=0),
        "optimizer": OptimizerConfig(),
        "loss": LossConfig(),
    }
    values = {name: asdict(part) for name, part in parts.items()} | {"model": own_settings(SpeechLMConfig())}
    values["batch"]["heldout_by"] = "utterance"  # and by another hash: such a run cannot go on
    return json.loads(json.dumps(values))
