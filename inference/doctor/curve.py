"""The curve of a training run: config.json and metrics.jsonl as arrays, and what they say. No weights are read.

L lines of metrics.jsonl with a loss, E evaluations on the held-out speech.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...model.strict import read_object
from .findings import Examination, count

CONFIG, METRICS = "config.json", "metrics.jsonl"
LANGUAGE_MODEL = "the training of a language model"  # what config.json says of such a run
STILL = 0.001  # relative change that is none
FEWEST_STEPS = 20  # after which weights have moved
RISE = 0.05  # by which the loss is over its lowest level: diverged
PEAK = 1.5  # loss over that of the first weights: a step destroyed them
OVERFIT, BEST_BEFORE = 0.02, 0.75  # rise of the held-out bits over the best, at this share of the steps or earlier
FALLING = 0.01  # fall of the held-out bits over the last quarter: not at its end
START = (0.9, 1.15)  # first held-out bits over raw bits, for random weights
SPIKE, FEWEST_SPIKES = 10.0, 2  # gradient norms over the median of their neighbours
NEIGHBOURS = 21
WAITING = 0.1  # share of a step
CANARY, MUTE = "canary_silent_share", 0.8


@dataclass(frozen=True)
class Curve:
    config: dict[str, Any]
    steps: np.ndarray  # [L]
    values: dict[str, np.ndarray]  # what each of these lines says [L]; NaN where it is missing
    heldout_steps: np.ndarray  # [E]
    heldout: np.ndarray  # [E] bits/s
    num_broken: int  # lines that are cut off or no JSON
    silent_share: float = math.nan  # in its continuations of fixed prompts, at the last look
    lines: list[dict[str, Any]] = field(default_factory=list)  # all of metrics.jsonl that can be read

    @classmethod
    def read(cls, folder: Path) -> "Curve":
        """Raises ValueError or FileNotFoundError, in one line, if there is no run of a language model."""
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(f"{folder / CONFIG}: is missing, so this is no training run")
        config = read_object(folder / CONFIG)
        if (kind := config.get("run")) != LANGUAGE_MODEL:
            raise ValueError(f"{folder}: holds {kind or 'something else'}; give a folder of codeclm train or finetune")
        lines, num_broken = [], 0
        path = folder / METRICS
        for line in path.read_text("utf-8", "replace").splitlines() if path.is_file() else []:
            try:
                values = json.loads(line)
                lines.append({"step": int(values.pop("step"))} | values)
            except (ValueError, KeyError, TypeError, AttributeError):
                num_broken += 1
        taken = [line for line in lines if "loss" in line]
        looks = [line for line in lines if "heldout_bits_per_second" in line]
        names = {name for line in taken for name, value in line.items() if isinstance(value, int | float | None)}
        return cls(
            config,
            np.array([line["step"] for line in taken], np.int64),
            {name: np.array([number(line.get(name)) for line in taken]) for name in names},
            np.array([line["step"] for line in looks], np.int64),
            np.array([number(line["heldout_bits_per_second"]) for line in looks]),
            num_broken,
            number(next((line[CANARY] for line in reversed(lines) if CANARY in line), None)),
            lines,
        )

    def setting(self, *path: str, default: Any = None) -> Any:
        """A setting of the config, where it has one."""
        value: Any = self.config
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return default if value is None else value

    @property
    def planned(self) -> int:
        return int(self.setting("steps", default=0))

    @property
    def last_step(self) -> int:
        return int(max(self.steps.max(initial=0), self.heldout_steps.max(initial=0)))

    @property
    def codes_per_second(self) -> float:
        """NaN if the config does not say."""
        codec = self.setting("model", "codec", default={})
        try:
            return codec["sample_rate"] / codec["hop_length"] * self.config["model"]["num_codebooks"]
        except (KeyError, TypeError, ZeroDivisionError):
            return math.nan

    @property
    def raw_bits(self) -> float:
        """Bits/s of the codes as they are; NaN if the config does not say."""
        return self.codes_per_second * math.log2(self.setting("model", "codebook_size", default=2))

    @property
    def first_loss(self) -> float:
        """Nats a code of the held-out speech, before the first step; NaN if that was not looked at."""
        seen = len(self.heldout) and self.heldout_steps[0] == 0
        return self.heldout[0] * math.log(2) / self.codes_per_second if seen else math.nan

    @property
    def is_new(self) -> bool:
        """Whether it began with random weights."""
        return self.config.get("start") == "random"

    def loss(self) -> np.ndarray:
        return self.values.get("loss", np.zeros(0))


def number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def smooth(values: np.ndarray) -> np.ndarray:
    """[L] -> [L], the median of each value's neighbours."""
    if not len(values):
        return values
    width = max(1, min(NEIGHBOURS, len(values) // 4 * 2 + 1))
    padded = np.pad(values, width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)


def examine_curve(curve: Curve, seen: Examination) -> None:
    looks = dict(zip(curve.heldout_steps.tolist(), curve.heldout.tolist(), strict=True))
    seen.facts |= {"last_step": curve.last_step, "planned_steps": curve.planned, "heldout_bits_per_second": looks}
    seen.lines.append(("steps", f"{curve.last_step} of {curve.planned}"))
    if len(curve.heldout):
        best = int(np.nanargmin(curve.heldout)) if np.isfinite(curve.heldout).any() else 0
        told = [f"{curve.heldout[0]:.1f} at step {curve.heldout_steps[0]}"]
        told += [f"{curve.heldout[best]:.1f} at step {curve.heldout_steps[best]} (best)"]
        told += [f"{curve.heldout[-1]:.1f} at step {curve.heldout_steps[-1]}"]
        raw = f"; raw codes {curve.raw_bits:.1f}" if math.isfinite(curve.raw_bits) else ""
        seen.lines.append(("held-out", f"{', '.join(dict.fromkeys(told))} bits/s{raw}"))
    if curve.num_broken:
        seen.warn("metrics", f"{count(curve.num_broken, 'line')} cannot be read", "the last may have been cut off")
    if not len(curve.steps) and len(curve.heldout) < 2:
        seen.note("metrics", "nothing has been learned yet", "look again later")
        return
    if is_broken(curve, seen) or has_not_moved(curve, seen):
        return
    judge_start(curve, seen)
    if not has_diverged(curve, seen):
        judge_peak(curve, seen)
        if not has_overfit(curve, seen):
            judge_end(curve, seen)
    judge_steps(curve, seen)
    judge_canary(curve, seen)


def is_broken(curve: Curve, seen: Examination) -> bool:
    """Numbers that are none."""
    named = {"held-out bits/s": (curve.heldout_steps, curve.heldout)}
    named |= {name: (curve.steps, curve.values[name]) for name in ("loss", "gradient_norm") if name in curve.values}
    for name, (steps, values) in named.items():
        if not np.isfinite(values).all():
            first = steps[np.flatnonzero(~np.isfinite(values))[0]]
            seen.error("not finite", f"{name} is no number from step {first}", "lower --optimizer.learning-rate; "
                       "look at the speech of that step")  # fmt: skip
            return True
    return False


def has_not_moved(curve: Curve, seen: Examination) -> bool:
    learned = curve.heldout if len(curve.heldout) > 1 else smooth(curve.loss())
    if curve.last_step < FEWEST_STEPS or len(learned) < 2 or np.ptp(learned) > STILL * abs(learned[0]):
        return False
    rates, norms = (curve.values.get(name, np.ones(1)) for name in ("learning_rate", "gradient_norm"))
    if rates.max() < 1e-9:
        cause, advice = f"the learning rate was {rates.max():g}", "set --optimizer.learning-rate (1e-3; finetune: 3e-4)"
    elif norms.max() < 1e-9:
        cause, advice = "no gradient came", "see whether all parameters are frozen; codeclm verify shows what learns"
    else:
        cause = f"with a learning rate of up to {rates.max():.2g}"
        advice = "raise it, or see whether the parameters are frozen or the optimizer holds others"
    seen.error("never moved", f"the held-out speech costs the same after {curve.last_step} steps: {cause}", advice)
    return True


def judge_start(curve: Curve, seen: Examination) -> None:
    """Random weights know nothing: ln V nats for every code."""
    if not curve.is_new or not len(curve.heldout) or curve.heldout_steps[0] != 0 or not math.isfinite(curve.raw_bits):
        return
    share = curve.heldout[0] / curve.raw_bits
    if share < START[0]:
        found = f"random weights need only {share:.0%} of the raw codes' bits"
        seen.error("first loss", found, "they see what they predict: run codeclm verify on the model")
    elif share > START[1]:
        found = f"random weights need {share:.0%} of the raw codes' bits; 100 to 105 % is usual"
        seen.warn("first loss", found, "their initial spread is too wide, or an output is not normalised")


def has_diverged(curve: Curve, seen: Examination) -> bool:
    loss = smooth(curve.loss())
    worse = len(curve.heldout) > 1 and curve.heldout[-1] > curve.heldout[0] * (1 + OVERFIT)
    if not len(loss):
        return False
    start = curve.first_loss
    rose = len(loss) >= 4 and loss[-1] > loss.min() + RISE * abs(loss.min())
    if not rose and not (worse and loss[-1] > start * (1 + RISE)):
        return False
    lowest = int(loss.argmin())
    found = f"the training loss rose from {loss[lowest]:.3f} at step {curve.steps[lowest]} to {loss[-1]:.3f}"
    if not rose:
        found = f"the training loss is {loss[-1]:.3f}, before the first step it was {start:.3f}"
    found += "; held-out speech costs more than before the first step" if worse else ""
    seen.error("diverged", found, "lower --optimizer.learning-rate, or warm up for longer; go on from before that step")
    return True


def judge_peak(curve: Curve, seen: Examination) -> None:
    """What a run has recovered from."""
    loss, uniform = curve.loss(), curve.raw_bits * math.log(2) / curve.codes_per_second
    if len(loss) and loss.max() > PEAK * max(curve.first_loss, uniform if curve.is_new else 0.0):
        step = curve.steps[int(loss.argmax())]
        found = f"the training loss was {loss.max():.3f} at step {step}, before the first step {curve.first_loss:.3f}"
        seen.warn("unstable", found, "lower --optimizer.learning-rate, or warm up for longer: it had to learn anew")


def has_overfit(curve: Curve, seen: Examination) -> bool:
    if len(curve.heldout) < 3:
        return False
    best, loss = int(curve.heldout.argmin()), smooth(curve.loss())
    step = curve.heldout_steps[best]
    rise = curve.heldout[-1] / curve.heldout[best] - 1
    since = loss[curve.steps >= step]
    if rise < OVERFIT or step > BEST_BEFORE * curve.last_step or (len(since) > 1 and since[-1] > since[0]):
        return False
    found = f"held-out speech was cheapest at step {step} of {curve.last_step} and costs {rise:.1%} more now, "
    advice = f"the best weights are kept; stop near step {step}, give more speech, or more --dropout, --input-dropout"
    seen.warn("overfit", found + "while the training loss fell", advice)
    return True


def judge_end(curve: Curve, seen: Examination) -> None:
    before = curve.heldout_steps <= 0.75 * curve.last_step
    if len(curve.heldout) < 3 or not before.any():
        return
    fall = 1 - curve.heldout[-1] / curve.heldout[before][-1]
    if curve.heldout[-1] <= curve.heldout.min() and fall >= FALLING:
        found = f"held-out speech still got {fall:.1%} cheaper in the last quarter of the steps"
        seen.note("under-trained", found, f"more --steps would help (it had {curve.last_step})")


def waiting_shares(curve: Curve) -> np.ndarray:
    """The share of the time that each line's steps waited for data; none where the log does not say."""
    if not {"waited_s", "codes", "codes_per_second"} <= curve.values.keys():
        return np.zeros(0)
    seconds = curve.values["codes"] * np.diff(curve.steps, prepend=0) / curve.values["codes_per_second"]
    shares = curve.values["waited_s"] / seconds
    return shares[np.isfinite(shares)]


def judge_canary(curve: Curve, seen: Examination) -> None:
    """The last continuations that the run listened to, if it does."""
    if curve.silent_share > MUTE:
        found = f"{curve.silent_share:.0%} of what it says at the last look is silence"
        seen.warn("canary", found, "look at the silence in its speech; codeclm generate lets you hear it")


def judge_steps(curve: Curve, seen: Examination) -> None:
    norms = curve.values.get("gradient_norm", np.zeros(0))
    if len(norms) >= NEIGHBOURS:
        spikes = np.flatnonzero(norms > SPIKE * smooth(norms))
        if len(spikes) >= FEWEST_SPIKES:
            found = f"{len(spikes)} of {len(norms)} gradient norms are over {SPIKE:g} times their neighbours', "
            found += f"the first at step {curve.steps[spikes[0]]} ({norms[spikes[0]]:.3g})"
            seen.warn("spikes", found, "lower --optimizer.learning-rate, or warm up for longer")
    waits = waiting_shares(curve)
    if len(waits) and np.median(waits) > WAITING:
        found = f"half of the steps waited for data for more than {np.median(waits):.0%} of their time"
        seen.warn("waiting", found, "put the store on a faster disk, or nearer")
    if curve.last_step < curve.planned:
        found = f"it stands at step {curve.last_step} of {curve.planned}"
        seen.note("unfinished", found, "the same command goes on from there")
