"""`codeclm verify` (inference/verify) on the device, in float64, float32 and bfloat16."""

import math
from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import nn

from codeclm.inference.verify.checks import CHECKS, Check, shifts_check
from codeclm.inference.verify.findings import NotApplicable
from codeclm.inference.verify.options import PLAIN, tiny_model
from codeclm.model.lm import SpeechLM

from .harness import Reading
from .setting import Setting

# nats; four times what this machine's bfloat16 was seen to do to the embedded and to every tiny model, rounded up. What
# is broken costs tenths of a nat and more (tests/test_gpu_check.py)
HALF_BOUNDS = {"causality": 0.02, "distribution": 0.02, "loss": 0.02}
HALF_BOUND = 0.25


# one of each kind of pattern, and those whose parts differ most from the plain one's
MOSHI = {
    "delays": (0, 1, 1), "first_codebook": "depth", "weight_sets": "schedule", "embeddings": "wide", "rope": False,
    "text": "predicted", "sees_text": True, "user_codebooks": 2, "sliding_window": 3, "gaps": "bos", "end": "never",
    "final_norm": False,
}  # fmt: skip
CSM = {"conditioning": "prefix", "embeddings": "shared", "weight_sets": "own", "text": "given"}
TINY = {
    "delays": {"delays": (0, 1, 1)},
    "like Moshi": MOSHI,
    "flatten": {"pattern": "flatten", "text": "predicted"},
    "pattern delay": {"delays": (0, 1, 2), "pattern": "delay", "num_kv_heads": 2},
    "like CSM": CSM,
}


def bound(check: Check, dtype: torch.dtype) -> float:
    """The most that a check may find, in nats."""
    if dtype == torch.bfloat16:
        return HALF_BOUNDS.get(check.name, HALF_BOUND)
    return check.bounds[0 if dtype == torch.float64 else 1]


@torch.no_grad()
def verified(model: SpeechLM, name: str, checks: tuple[Check, ...] = CHECKS) -> Iterator[Reading]:
    """Every check that applies to a model, in its own dtype, as readings."""
    for check in checks:
        try:
            found = check.run(model)
        except NotApplicable:
            continue
        value, most = math.inf if found.problem else found.difference, bound(check, model.dtype)
        note = found.problem or (found.where if not value <= most else "")
        yield Reading(f"{name}: {check.name}", value, most, "nats", note)


def verify_tiny(setting: Setting, dtype: torch.dtype) -> Iterator[Reading]:
    """All in float64, where nothing hides in rounding; the first ones in the others."""
    for name, choice in list(TINY.items())[: 5 if dtype == torch.float64 else 2]:
        model = tiny_model(PLAIN | choice).make()
        nn.Module.to(model, dtype)
        yield from verified(setting.there(model), name)


def verify_embedded(setting: Setting, dtype: torch.dtype) -> Iterator[Reading]:
    model = deepcopy(setting.model)
    nn.Module.to(model, dtype)
    yield from verified(setting.there(model), "embedded", (*CHECKS, shifts_check(setting.codes[0])))


def tiny_float64(setting: Setting) -> Iterator[Reading]:
    return verify_tiny(setting, torch.float64)


def tiny_float32(setting: Setting) -> Iterator[Reading]:
    return verify_tiny(setting, torch.float32)


def tiny_bfloat16(setting: Setting) -> Iterator[Reading]:
    return verify_tiny(setting, torch.bfloat16)


def embedded_float32(setting: Setting) -> Iterator[Reading]:
    return verify_embedded(setting, torch.float32)


def embedded_bfloat16(setting: Setting) -> Iterator[Reading]:
    return verify_embedded(setting, torch.bfloat16)
