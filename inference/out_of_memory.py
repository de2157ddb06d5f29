"""Too little memory for a batch: told in one line, with the batch that would fit. B rows."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from ..model.lm import SpeechLM
from .config import SamplingConfig
from .engine import generate
from .grid import Request

PER_ROW = {"codes": 3, "text": 2, "new_text": 2, "user": 3, "new_codes": 3}  # dimensions of a field that has rows


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, on any device, or Python found too little memory."""
    words = str(error).lower()
    said = "out of memory" in words or ("defaultcpuallocator" in words and "memory" in words)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or said


def out_of_memory(
    model: SpeechLM, request: Request, seeds: Sequence[int], sampling: SamplingConfig | Sequence[SamplingConfig]
) -> str:
    """What to tell: half of the rows, a quarter and so on are tried, until their prompt and first frame fit."""
    batch = len(seeds)
    while batch > 1:
        batch //= 2
        rows = sampling if isinstance(sampling, SamplingConfig) else sampling[:batch]
        with suppress(RuntimeError, MemoryError):
            next(generate(model, first_rows(request, batch), seeds[:batch], rows))
            return f"{len(seeds)} rows at once need more memory than there is; {batch} would fit"
    return (
        f"{len(seeds)} x {request.num_frames} frames need more memory than there is, and so does one row: generate a "
        "shorter duration, or on another device"
    )


def first_rows(request: Request, batch: int) -> Request:
    """The request of the first rows."""
    fields = {name: getattr(request, name) for name in PER_ROW}
    return replace(
        request,
        **{name: x[:batch] for name, x in fields.items() if x is not None and x.ndim == PER_ROW[name]},
    )
