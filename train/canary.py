"""The canary: fixed held-out prompts, continued at evaluations, so that one sees and hears what the loss does not tell.

A model whose loss is fine may still fall silent, buzz, or never end. Continuations are measured as `codeclm evaluate
--continuations` does; where faster-whisper is installed their words are counted. It takes a small share of the time:
while that is not there yet, an evaluation does without.
"""

import time
from importlib.util import find_spec

import numpy as np
import torch

from ..data.split import name_hash
from ..inference.config import SamplingConfig
from ..inference.evaluate.continuations import Continuation, measure_continuation
from ..inference.generation import Generation
from ..inference.generator import SpeechGenerator
from ..inference.grid import Request
from ..inference.sound.transcribe import Transcriber
from ..model.files import readable
from .trainer import Trainer

PROMPT_S, DURATION_S = 3.0, 4.0
GUESS_S = 2.0  # seconds that the first one is taken to last


class Canary:
    """The prompts of a run, and the time that was spent on them."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.spent_s, self.newest_s = trainer, 0.0, GUESS_S
        store, self.num_frames = trainer.store, max(1, round(PROMPT_S * trainer.store.codec.frame_rate))
        # the first corpus; a model in parts cannot be heard by one rank alone
        scored = [] if trainer.is_sharded else trainer.corpora[0].scored
        long_enough = [i for i in scored if store.num_frames[i] >= self.num_frames]
        self.prompts = sorted(long_enough, key=lambda i: name_hash(store.names[i]))[: trainer.config.canary]
        self.transcriber: Transcriber | None = None

    def is_due(self, trained_s: float) -> bool:
        """Whether another one fits into its share of the seconds of training."""
        share = self.trainer.config.canary_share
        return bool(self.prompts) and (share >= 1 or self.spent_s + self.newest_s <= share * trained_s)

    def listen(self) -> list[tuple[Continuation, Generation]]:
        """Continue every prompt with the weights as they are."""
        started = time.monotonic()
        if self.transcriber is None and find_spec("faster_whisper") is not None:
            self.transcriber = Transcriber()
        names = [readable(self.trainer.store.names[i]) for i in self.prompts]
        found = [
            (measure_continuation(name, generation, self.transcriber), generation)
            for name, generation in zip(names, self.continued(), strict=True)
        ]
        self.newest_s = time.monotonic() - started
        self.spent_s += self.newest_s
        return found

    def continued(self) -> list[Generation]:
        trainer, model = self.trainer, self.trainer.raw_model
        assert trainer.codec is not None
        codes = np.stack([trainer.store.codes(i, 0, self.num_frames).T for i in self.prompts]).astype(np.int64)
        frames = round(DURATION_S * trainer.store.codec.frame_rate)
        writes = model.config.text.layout == "aligned" and model.predicts_text
        request = Request(frames, torch.from_numpy(codes).to(model.device), draw_text=writes)
        learning = model.training
        try:
            if model.device.type != "cpu":
                trainer.codec.to(model.device)
            lm = SpeechGenerator(model, trainer.codec, "canary", trainer.tokenizer)
            return lm.run(request, range(len(codes)), SamplingConfig(stop_at_end=True))
        finally:
            model.train(learning)

    def save(self, found: list[tuple[Continuation, Generation]]) -> None:
        """RUN/samples/step-N/01-NAME.wav and on, each a prompt with its continuation."""
        folder = self.trainer.out / "samples" / f"step-{self.trainer.step:08d}"
        for number, (continuation, generation) in enumerate(found, 1):
            if len(generation.audio):
                name = continuation.name.replace("/", "-")
                generation.save(folder / f"{number:02d}-{name}.wav", with_prompt=True)


def numbers(found: list[tuple[Continuation, Generation]]) -> dict[str, float]:
    """Means over the prompts, and how many pass all checks. Loudness is that of those which are not silent."""
    measures = [continuation.continuation for continuation, _ in found]
    loudness = [m.loudness_dbfs for m in measures if np.isfinite(m.loudness_dbfs)]
    words = [continuation.num_words for continuation, _ in found if continuation.num_words is not None]
    values = {
        "canary_silent_share": float(np.mean([m.silent_share for m in measures])),
        "canary_seconds": float(np.mean([m.duration_s for m in measures])),
        "canary_loudness_dbfs": float(np.mean(loudness)) if loudness else float("-inf"),
        "canary_voiced_share": float(np.mean([m.voiced_share for m in measures])),
        "canary_passed": sum(continuation.checks.passed for continuation, _ in found),
        "canary_prompts": len(found),
    }
    return values | ({"canary_words": float(np.mean(words))} if words else {})


def in_words(values: dict[str, float], found: list[tuple[Continuation, Generation]]) -> str:
    """A line for the log; the checks that fail are named."""
    failed = sorted({name.replace("_", " ") for continuation, _ in found for name in continuation.checks.failed})
    said = f"{values['canary_passed']} of {len(found)} continuations pass all checks"
    said += f" (some fail: {', '.join(failed)})" if failed else ""
    said += f", {values['canary_silent_share']:.0%} silent, {values['canary_seconds']:.1f} s long"
    return said + (f", {values['canary_words']:.1f} words" if "canary_words" in values else "")
