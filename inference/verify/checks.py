"""The checks by name, and running them: `verify`."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...data.progress import progress_bar
from ...model.lm import SpeechLM
from . import agreement, distribution, generation, training
from .findings import Finding, NotApplicable

EXACT = (1e-9, 1e-4)  # bounds in float64 and float32
DTYPES = (torch.float64, torch.float32)


@dataclass(frozen=True)
class Check:
    name: str
    claim: str  # what holds if it passes
    hint: str  # what is usually wrong if it does not
    run: Callable[[SpeechLM], Finding]
    bounds: tuple[float, float] = EXACT


CHECKS = (
    Check(
        "every code",
        "each code is scored, as its logits say",
        "the tail of the delays is dropped, or the targets are shifted",
        training.check_every_code,
    ),
    Check(
        "causality",
        "a token moves nothing before it, something after",
        "inputs are not one step behind targets, or the attention is not causal",
        distribution.check_causality,
    ),
    Check(
        "distribution",
        "the probabilities of all that may come sum to 1",
        "the current frame leaks into its own prediction, or the softmax runs over the wrong classes",
        distribution.check_distribution,
    ),
    Check(
        "steps",
        "step by step with caches == all at once",
        "the cache is off by one, or something is done only when generating",
        agreement.check_steps,
    ),
    Check(
        "chunks",
        "fed in chunks onto the cache == all at once",
        "positions or masks are wrong when the cache is not empty",
        agreement.check_chunks,
    ),
    Check(
        "padding",
        "a row of a padded batch == the row alone",
        "the mask is ignored: padding is scored, or rows see each other",
        agreement.check_padding,
    ),
    Check(
        "packing",
        "documents packed into a row == each alone",
        "the document mask is ignored",
        agreement.check_packing,
    ),
    Check(
        "windows",
        "what generation records == what scoring gives",
        "generation and scoring do not look back equally far, or do not share one layout",
        generation.check_windows,
    ),
    Check(
        "loss",
        "the training loss == its nats, weighted as asked",
        "a weight lands on the wrong codebook, or a part is left out",
        training.check_loss,
    ),
    Check(
        "gradients",
        "every parameter learns, in chunks as in one piece",
        "a part of the model or of the loss is cut off from the gradient",
        training.check_gradients,
    ),
    Check(
        "slope",
        "each part of the loss back-propagates",
        "a part of the loss does not back-propagate",
        training.check_slope,
        (1e-6, 1e-6),
    ),
)
SHIFTS = "shifts"
ROOTS = ("every code", "causality", "distribution")  # if one of these fails, the ways to compute it differ, too


@dataclass(frozen=True)
class Result:
    """What one check found in one dtype."""

    check: str
    claim: str
    dtype: str
    outcome: str  # "ok", "failed", "skipped"
    difference: float  # the largest that was seen
    bound: float
    detail: str = ""  # what is wrong and where; why it was skipped
    hint: str = ""  # what is usually wrong

    @property
    def failed(self) -> bool:
        return self.outcome == "failed"


def verify(
    model: SpeechLM,
    speech: Tensor | None = None,
    names: Collection[str] = (),
    dtypes: Sequence[torch.dtype] = DTYPES,
    progress: bool = False,
) -> list[Result]:
    """Run the checks (default: all), by default in float64 and in float32; the model is left in its own dtype.

    speech: codes [K, T] of real speech, for the check "shifts", which runs once; without, that is skipped.
    """
    before = model.dtype, model.training
    wanted = [check for check in CHECKS if not names or check.name in names]
    results = []
    try:
        model.eval()
        with progress_bar(total=len(dtypes) * len(wanted), desc="verify", unit="check", disable=not progress) as bar:
            for dtype in dtypes:
                nn.Module.to(model, dtype)
                for check in wanted:
                    results.append(run_check(model, check))
                    bar.update()
        if not names or SHIFTS in names:
            results.append(run_check(model, shifts_check(speech)))
    finally:
        nn.Module.to(model, before[0])
        model.train(before[1])
    return results


def shifts_check(speech: Tensor | None) -> Check:
    def run(model: SpeechLM) -> Finding:
        if speech is None:
            raise NotApplicable("no speech in this model's codes is at hand")
        return generation.check_shifts(model, speech)

    return Check(
        SHIFTS,
        "real speech out of step costs more",
        "hidden states or targets were off by one in training",
        run,
    )


@torch.no_grad()
def run_check(model: SpeechLM, check: Check) -> Result:
    bound = check.bounds[DTYPES.index(model.dtype)]
    result = Result(check.name, check.claim, str(model.dtype).removeprefix("torch."), "ok", 0.0, bound)
    try:
        finding = check.run(model)
    except NotApplicable as reason:
        return replace(result, outcome="skipped", detail=str(reason))
    except Exception as error:  # what a broken model does is a finding, too
        finding = Finding(problem=f"it stopped with {type(error).__name__}: {' '.join(str(error).split())}")
    result = replace(result, difference=finding.difference)
    if finding.difference <= bound and not finding.problem:
        return replace(result, detail=finding.note)
    far = "" if finding.difference <= bound else f"{finding.where} (allowed: {bound:.0e})"
    return replace(result, outcome="failed", detail="\n".join(filter(None, [finding.problem, far])), hint=check.hint)
