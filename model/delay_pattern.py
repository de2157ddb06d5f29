"""The delay pattern of MusicGen (arXiv:2306.05284): codebook k lags `delays[k]` frames. B batch, K codebooks, T frames.

The sequence grows by the largest delay, so that no tail is dropped: every one of the T * K codes has its place.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

ABSENT = -1  # no code here: embeds to zero and is never scored


def delay(codes: Tensor, delays: Sequence[int]) -> Tensor:
    """codes [B, K, T] -> [B, K, T + max(delays)], ABSENT where no code is. Raises ValueError if len(delays) != K."""
    if len(delays) != codes.shape[1]:
        raise ValueError(f"{len(delays)} delays were given for {codes.shape[1]} codebooks")
    batch, num_codebooks, num_frames = codes.shape
    delayed = torch.full(
        (batch, num_codebooks, num_frames + max(delays)), ABSENT, dtype=codes.dtype, device=codes.device
    )
    for k, lag in enumerate(delays):
        delayed[:, k, lag : lag + num_frames] = codes[:, k]
    return delayed


def undelay(delayed: Tensor, delays: Sequence[int]) -> Tensor:
    """The inverse of `delay`: [B, K, T + max(delays)] of anything -> [B, K, T]. Raises ValueError as `delay` does."""
    if len(delays) != delayed.shape[1]:
        raise ValueError(f"{len(delays)} delays were given for {delayed.shape[1]} codebooks")
    num_frames = delayed.shape[2] - max(delays)
    return torch.stack([delayed[:, k, lag : lag + num_frames] for k, lag in enumerate(delays)], dim=1)
