"""Train a SpeechLM on a token store: `codeclm train` and `codeclm finetune`. The trainer never touches audio.

A run folder holds config.json, metrics.jsonl, step-N/ checkpoints and model/ with the weights that were best on the
held-out utterances. Step n is a pure function of (seed, n): a killed run goes on exactly where it stood. Works under
`torchrun` through accelerate: losses are divided by the global number of codes, so two ranks equal one.
B batch, K codebooks, T frames.
"""

import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from tqdm import tqdm

from ..data.dataset import TokenBatches, balance_voices, split_heldout
from ..data.progress import progress_bar
from ..data.shards import TokenStore
from ..data.text_tokenizer import TextTokenizer
from ..inference.config import EvaluateConfig
from ..inference.loading import FOREIGN_KEYS, save_model
from ..inference.score import score_store
from ..model.codecs import Codec
from ..model.config import CodecReference, DepthConfig, TextConfig, nested
from ..model.convert.text_lm import from_text_lm
from ..model.hf_config import SpeechLMConfig
from ..model.lm import SpeechLM
from ..model.losses import Weights
from ..model.steps import num_scored
from ..model.transformer import Block
from .checkpoint import latest_checkpoint, load_state, load_tensors, pack_optimizer, save_checkpoint, unpack_optimizer
from .config import TrainConfig
from .optim import learning_rate, make_optimizer
from .precision import has_fast_bf16


def new_tokenizer(store: TokenStore, config: TrainConfig) -> TextTokenizer | None:
    """A tokenizer for the transcripts of the utterances that are trained on, if the model is to have a text stream."""
    if config.model.text.layout == "none":
        return None
    training, _ = split_heldout(store.names, config.batch.heldout_share, config.seed)
    return TextTokenizer.train((store.text(i) or "" for i in training), config.model.text.vocab_size)


def new_model(
    store: TokenStore, config: TrainConfig, tokenizer: TextTokenizer | None = None, init_from: Path | None = None
) -> SpeechLM:
    """A SpeechLM with random weights (config.seed) for the codes of a store, and for text with a tokenizer.

    init_from: a Llama- or Qwen-family text model (a transformers folder, or a .gguf file) that becomes the backbone.
    """
    torch.manual_seed(config.seed)
    codec, (backbone, depth) = store.codec, config.model.parts
    layout = config.model.text.layout
    if layout == "aligned":  # else a frame's codes would not see the text of that very frame
        depth = replace(nested(DepthConfig, depth, "depth"), first_codebook="depth", sees_text=True)
    settings: dict[str, Any] = {
        "num_codebooks": codec.num_codebooks,
        "codebook_size": codec.codebook_size,
        "depth": depth,
        "delays": list(config.model.delays) or None,
        "pattern": config.model.pattern,
        "context_frames": config.batch.max_frames,
        "codec": CodecReference(codec.name, codec.fingerprint, codec.sample_rate, codec.hop_length),
    }
    if init_from is not None:
        if tokenizer is not None:
            raise ValueError("a text model brings text tokens of its own: leave --model.text.layout out")
        return from_text_lm(init_from, **settings)
    text = tokenizer and TextConfig(tokenizer.vocab_size, layout=layout, tokenizer=tokenizer.fingerprint)
    return SpeechLM(SpeechLMConfig(backbone=backbone, text=text, **settings))


class Trainer:
    """One run: the model, its optimizer, the data, and where it stands."""

    def __init__(
        self,
        model: SpeechLM,
        codec: Codec,
        store: TokenStore,
        out: Path,
        config: TrainConfig,
        tokenizer: TextTokenizer | None = None,
    ):
        reference = model.config.codec_reference
        store.require_codec(reference.fingerprint, reference.name)
        self.config, self.out, self.codec, self.store, self.tokenizer = config, out, codec, store, tokenizer
        self.raw_model, self.step, self.best = model, 0, math.inf
        training, self.heldout = split_heldout(store.names, config.batch.heldout_share, config.seed)
        batch = config.batch
        training = balance_voices(store, training, batch.voice_power) if batch.voice_power < 1 else training
        max_frames = min(batch.max_frames, batch.frames_per_batch)
        self.batches = TokenBatches(store, batch.frames_per_batch, max_frames, config.seed, training, *self._text())
        AcceleratorState._reset_state()  # a second run in this process may want another precision
        precision = "bf16" if config.bf16 and has_fast_bf16() else "no"
        self.accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
        for block in (module for module in model.modules() if isinstance(module, Block)):
            block.dropout = config.dropout
            if config.compile:
                block.compile(dynamic=True)
        self.model: Any = self.accelerator.prepare(model)
        self.optimizer = make_optimizer(model, config.optimizer)

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def train_step(self) -> dict[str, float]:
        """One optimizer step on this rank's rows of the global batch."""
        config, device = self.config, self.accelerator.device
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        rate = learning_rate(config.optimizer, self.step, config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(config.seed * 1_000_003 + self.step * 1009 + rank)  # the frames the depth decoder sees
        rows = self._rows(rank, world_size)
        scored = self.num_scored(*rows)
        num_global = self.num_scored(*self._rows(0, 1)) if world_size > 1 else scored
        if scored == 0:  # fewer rows than ranks: this one takes part in the reduction, with a loss that counts nothing
            rows = tuple(values if values is None else values[:1] for values in self._rows(0, 1))
        codes, ends, text = (values if values is None else values.to(device) for values in rows)
        output = self.model(
            codes,
            ends=ends,
            text=text,
            weights=Weights(config.loss.codebooks or None, config.loss.text, config.loss.z_loss),
            depth_fraction=config.depth_fraction,
            depth_chunk=config.depth_chunk,
            input_dropout=config.input_dropout,
        )
        loss = output.loss * (world_size * scored / num_global)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.raw_model.parameters(), config.optimizer.clip_norm)
        total = float(cast(Tensor, self.accelerator.reduce(loss.detach(), "mean")))
        if not math.isfinite(total) or not math.isfinite(float(norm)):
            raise FloatingPointError(
                f"step {self.step}: the loss is {total}, its gradient {float(norm)}; "
                f"the weights were not touched, and the newest checkpoint in {self.out} is intact"
            )
        self.optimizer.step()
        self.step += 1
        return {"loss": total, "learning_rate": rate, "gradient_norm": float(norm), "codes": num_global}

    def _rows(self, rank: int, world_size: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes, ends and text of this step."""
        batch = self.step, rank, world_size
        text, codes = self.batches.rank_grid(*batch)
        return codes, self.batches.rank_ends(*batch), text if self.raw_model.text_size else None

    def num_scored(self, codes: Tensor, ends: Tensor, text: Tensor | None) -> int:
        """Codes, EOS and text tokens that a batch scores."""
        return int(num_scored(self.raw_model.config, codes, ends, text))

    def _text(self) -> tuple[TextTokenizer | None, Any]:
        return self.tokenizer, self.raw_model.config.text["layout"]

    def evaluate(self) -> float:
        """bits/s of the held-out utterances; keeps the weights if they are the best so far. Main process only."""
        self.raw_model.eval()
        config = EvaluateConfig(bf16=self.accelerator.mixed_precision == "bf16")
        scores = score_store(self.raw_model, self.store, config, self.heldout, False, self.tokenizer)
        self.raw_model.train()
        rate = self.store.codec.frame_rate
        bits = float(rate * scores.nll.sum() / scores.num_frames.sum() / math.log(2))
        if bits < self.best:
            self.best = bits
            save_model(self.raw_model, self.codec, self.out / "model", tokenizer=self.tokenizer)
        return bits

    def save(self) -> None:
        files = {"model": dict(self.raw_model.state_dict()), "optimizer": pack_optimizer(self.optimizer)}
        save_checkpoint(self.out, self.step, files, {"best": self.best, "run": self.identity()})

    def restore(self) -> bool:
        """Go on from the newest whole checkpoint. Raises ValueError if it belongs to another data set or model."""
        found = latest_checkpoint(self.out)
        if found is None:
            return False
        state = load_state(found)
        for key, value in self.identity().items():
            if state["run"].get(key) != value:
                raise ValueError(f"{found}: was made with another {key}; give another --out, or the same {key}")
        self.raw_model.load_state_dict(load_tensors(found, "model"))
        unpack_optimizer(self.optimizer, load_tensors(found, "optimizer"))
        self.step, self.best = state["step"], state["best"]
        return True

    def identity(self) -> dict[str, Any]:
        """What must be the same for a resumed run to be the same run."""
        # to JSON and back, as a checkpoint returns it: transformers' own settings have keys that are numbers
        settings = json.loads(json.dumps(self.raw_model.config.to_dict()))
        return {
            "data": self.store.data_hash,
            "model": {key: value for key, value in settings.items() if key not in FOREIGN_KEYS},
            "batch": asdict(self.config.batch),
            "seed": self.config.seed,
        }


def train(
    model: SpeechLM,
    codec: Codec,
    store: TokenStore,
    out: Path,
    config: TrainConfig,
    tokenizer: TextTokenizer | None = None,
) -> Path:
    """Run or resume -> the folder of the best weights on the held-out utterances. tokenizer: for a model with text."""
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(model, codec, store, out, config, tokenizer)
    if trainer.restore() and trainer.is_main:
        tqdm.write(f"resumed at step {trainer.step}")
    if trainer.is_main:
        (out / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
        tqdm.write(describe(trainer))
    trainer.raw_model.train()
    with (out / "metrics.jsonl").open("a") as log:
        bar = progress_bar(total=config.steps, initial=trainer.step, unit="step", disable=not trainer.is_main)
        if trainer.step == 0 and trainer.is_main:
            report(log, bar, {"step": 0, "heldout_bits_per_second": trainer.evaluate()})
        started, codes_seen = time.monotonic(), 0
        while trainer.step < config.steps:
            metrics = trainer.train_step()
            codes_seen += int(metrics["codes"])
            last = trainer.step == config.steps
            if trainer.is_main and (trainer.step % 10 == 0 or last):
                per_frame = trainer.store.codec.num_codebooks
                metrics["bits_per_code"] = metrics["loss"] / math.log(2)
                metrics["frames_per_second"] = codes_seen / per_frame / (time.monotonic() - started)
                report(log, bar, {"step": trainer.step, **metrics})
            bar.update(1)
            if trainer.is_main and (trainer.step % config.evaluate_every == 0 or last):
                report(log, bar, {"step": trainer.step, "heldout_bits_per_second": trainer.evaluate()})
            if trainer.is_main and (trainer.step % config.save_every == 0 or last):
                trainer.save()
            trainer.accelerator.wait_for_everyone()
        bar.close()
    return out / "model"


def describe(trainer: Trainer) -> str:
    model, batches = trainer.raw_model, trainer.batches
    parts: dict[str, torch.nn.Module] = {"backbone": model.backbone}
    if model.pattern == "depth":
        parts["depth decoder"] = model.depth_decoder
    sizes = ", ".join(f"{name} {sum(p.numel() for p in part.parameters()) / 1e6:.1f} M" for name, part in parts.items())
    hours = batches.num_frames / trainer.store.codec.frame_rate / 3600
    machine = trainer.accelerator
    return (
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters ({sizes}); {hours:.2f} h to train on, "
        f"{len(trainer.heldout)} utterances held out; {trainer.config.steps} steps on "
        f"{machine.num_processes} x {machine.device.type}, precision {machine.mixed_precision}"
    )


def report(log: Any, bar: tqdm, metrics: dict[str, float]) -> None:
    log.write(json.dumps({key: round(value, 6) for key, value in metrics.items()}) + "\n")
    log.flush()
    if "heldout_bits_per_second" in metrics:
        tqdm.write(f"step {metrics['step']}: held-out {metrics['heldout_bits_per_second']:.1f} bits/s")
    else:
        bar.set_postfix(bits_per_code=f"{metrics['bits_per_code']:.3f}", frames_s=f"{metrics['frames_per_second']:.0f}")


def for_small_data(config: TrainConfig, num_utterances: int) -> TrainConfig:
    """Hold out at least about three utterances, whatever the share says."""
    share = min(0.5, max(config.batch.heldout_share, 3 / max(num_utterances, 1)))
    return replace(config, batch=replace(config.batch, heldout_share=share))
