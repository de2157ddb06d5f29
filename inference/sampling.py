"""Drawing codes from logits: pure functions, without a host synchronisation; and the settings of a batch.

B batch, V classes, N frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model.delay_pattern import ABSENT
from .config import SamplingConfig, numbers


class Limits(NamedTuple):
    """What `sample` needs to know of a slot: numbers, or [B, 1] where rows differ."""

    temperature: float | Tensor
    top_k: int | Tensor
    top_p: float | Tensor
    min_p: float | Tensor


def sample(
    logits: Tensor,
    noise: Tensor,
    temperature: float | Tensor,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
) -> Tensor:
    """logits [B, V] -> indices [B], drawn from softmax(logits / temperature) over the classes that the limits leave.

    noise: [B, V] Gumbel noise (noise.py), the only source of randomness. temperature 0 takes the largest logit.
    top_k: the likeliest classes (0: all). top_p: as few of the likeliest as have this probability together.
    min_p: those at least this share as likely as the likeliest. A class as likely as one that is left is left, too.
    Each a number, or [B, 1], one for each row.
    """
    if isinstance(temperature, Tensor):
        scores = noise + logits / temperature
    elif temperature == 0:
        return logits.argmax(dim=-1)
    else:
        scores = torch.add(noise, logits, alpha=1 / temperature)
    if isinstance(top_k, Tensor):
        falling = logits.sort(dim=-1, descending=True).values
        least = falling.gather(-1, top_k.clamp(max=logits.shape[-1]) - 1)
        scores.masked_fill_(logits < least, float("-inf"))
    elif 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        scores.masked_fill_(logits < least, float("-inf"))
    if isinstance(min_p, Tensor) or min_p > 0:
        p = (logits / temperature).softmax(dim=-1)
        scores.masked_fill_(p < min_p * p.amax(dim=-1, keepdim=True), float("-inf"))
    if isinstance(top_p, Tensor) or top_p < 1:
        p = (logits / temperature).softmax(dim=-1)
        falling = p.sort(dim=-1, descending=True).values
        needed = (falling.cumsum(dim=-1) - falling < top_p).sum(dim=-1, keepdim=True)  # classes, at least 1
        scores.masked_fill_(p < falling.gather(-1, needed - 1), float("-inf"))
    return scores.argmax(dim=-1)


def recent_codes(codes: Tensor, frame: int, sampling: "BatchSampling") -> Tensor:
    """[B, N] codes of the frames that are looked back on from `frame`, of codes [B, T]; ABSENT beyond a row's own."""
    recent = codes[:, max(0, frame - sampling.repetition_frames) : frame]
    if sampling.own_frames is None:
        return recent
    age = torch.arange(recent.shape[1], 0, -1, device=recent.device)
    return torch.where(age <= sampling.own_frames, recent, ABSENT)


def draw_again(drawn: Tensor, recent: Tensor, most: float | Tensor, logits: Tensor, noise: Tensor) -> Tensor:
    """Codes [B]: another from softmax(logits [B, V]) in place of one that is in `recent` [B, N] more than `most` times.

    VALL-E 2's repetition-aware sampling (arXiv:2406.05370). noise: [B, V], other than that of `drawn`. most: or [B, 1].
    """
    repeats = (recent == drawn[:, None]).sum(dim=-1, keepdim=True)
    return torch.where((repeats > most).squeeze(-1), sample(logits, noise, 1.0), drawn)


@dataclass(frozen=True)
class BatchSampling:
    """The settings of a batch, slot by slot: tensors only where its rows differ, so that other batches pay nothing."""

    codebooks: list[Limits]
    text: Limits
    stop_at_end: bool  # whether some row may end before the others
    endless: Tensor | None  # [B, 1] rows that may not, if others may
    repetition_frames: int  # the most of any row; 0: codebook 0 is never drawn again
    most_repeats: float | Tensor  # in a row's own number of frames; [B, 1]
    own_frames: Tensor | None  # [B, 1] repetition_frames of each row, where they differ
    guidance: float | Tensor  # [B, 1]

    @property
    def is_guided(self) -> bool:
        return isinstance(self.guidance, Tensor) or self.guidance != 1


def batch_sampling(
    settings: SamplingConfig | Sequence[SamplingConfig], batch: int, num_codebooks: int, like: Tensor
) -> BatchSampling:
    """Settings of all rows, or of each; tensors on the device and of the precision of `like`.

    Raises ValueError for settings that do not fit the model or each other.
    """
    rows = [settings] * batch if isinstance(settings, SamplingConfig) else list(settings)
    if len(rows) != batch:
        raise ValueError(f"{len(rows)} sampling settings for {batch} rows; give one for all, or one for each")
    frames = max((row.repetition_frames for row in rows if row.repetition_share < 1), default=0)
    own_frames = [row.repetition_frames if row.repetition_share < 1 else frames for row in rows]

    def merged(values: list[Any], neutral: Any = None, stand_in: Any = None) -> Any:
        """stand_in: a number beside others that does what the number `neutral` does alone."""
        if len(set(values)) == 1:
            return values[0]
        values = [stand_in if value == neutral else value for value in values]
        dtype = like.dtype if any(isinstance(value, float) for value in values) else None
        return torch.tensor(values, dtype=dtype, device=like.device)[:, None]

    def limits(temperatures: list[float], k: int) -> Limits:
        return Limits(
            merged(temperatures, 0, 1e-30),  # logits over that leave no weight to the noise
            merged([of_codebook(row, "top_k", k, num_codebooks) for row in rows], 0, 1 << 30),
            # a sum of probabilities may be rounded to 1 before all are in it
            merged([of_codebook(row, "top_p", k, num_codebooks) for row in rows], 1, 2.0),
            merged([of_codebook(row, "min_p", k, num_codebooks) for row in rows]),
        )

    stops, looks_back = merged([row.stop_at_end for row in rows]), merged(own_frames)
    return BatchSampling(
        [limits([of_codebook(row, "temperature", k, num_codebooks) for row in rows], k) for k in range(num_codebooks)],
        limits([row.text_temperature for row in rows], 0),
        stop_at_end=any(row.stop_at_end for row in rows),
        endless=~stops if isinstance(stops, Tensor) else None,
        repetition_frames=frames,
        most_repeats=merged([row.repetition_share * own for row, own in zip(rows, own_frames, strict=True)]),
        own_frames=looks_back if isinstance(looks_back, Tensor) else None,
        guidance=merged([row.guidance for row in rows]),
    )


def leading_codebooks(settings: SamplingConfig | Sequence[SamplingConfig]) -> int:
    """The codebooks that are drawn, 0 for all. Raises ValueError where rows differ."""
    chosen = {row.num_codebooks for row in ([settings] if isinstance(settings, SamplingConfig) else settings)}
    if len(chosen) > 1:
        raise ValueError("num_codebooks must be the same in all rows of a batch")
    return max(chosen, default=0)


def of_codebook(settings: SamplingConfig, name: str, k: int, num_codebooks: int) -> Any:
    """A setting's number for codebook k: the last one holds for the codebooks after it."""
    values = numbers(getattr(settings, name), name)
    if len(values) > num_codebooks:
        raise ValueError(f"{name} has {len(values)} numbers; this model has {num_codebooks} codebooks")
    return values[min(k, len(values) - 1)]
