"""What the decoder filters into speech: a pulse train that follows the pitch, and white noise.

The pulses carry their phase from frame to frame, so harmonics stay coherent without a network having to learn it. The
phase is summed in float64: what a stream has played for an hour does not depend on how it was cut into chunks.
B batch, N trunk frames, H samples per trunk frame, S = N * H samples.
"""

import math

import torch
from torch import Tensor

NOISE_PERIOD = 1 << 16  # samples


def pitch_curve(pitch: Tensor, before: Tensor, hop: int) -> Tensor:
    """log2 Hz at the ends of the hops [B, N], and at the start [B, 1] -> Hz for every sample [B, N * hop]."""
    start = torch.cat([before, pitch[:, :-1]], dim=1)
    share = torch.arange(1, hop + 1, device=pitch.device, dtype=pitch.dtype) / hop
    return (start[..., None] + (pitch - start)[..., None] * share).exp2().flatten(1)


def pulses(frequency: Tensor, sample_rate: int, phase: Tensor) -> tuple[Tensor, Tensor]:
    """Hz [B, S] float64, cycles at the start [B, 1] -> (all harmonics below Nyquist at mean power 1 [B, S], cycles).

    The sum of cosines has a closed form (Dirichlet's kernel); the topmost harmonic fades in and out with the pitch.
    """
    cycles = phase + torch.cumsum(frequency / sample_rate, dim=1)
    angle = math.pi * cycles.remainder(1).float()
    frequency = frequency.float()
    order = 0.4938 * sample_rate / frequency  # of the topmost harmonic
    whole = order.floor()
    sine = angle.sin()
    at_peak = sine.abs() < 1e-3
    kernel = ((2 * whole + 1) * angle).sin() / (2 * torch.where(at_peak, 1.0, sine)) - 0.5
    kernel = torch.where(at_peak, whole, kernel) + (order - whole) * (2 * (whole + 1) * angle).cos()
    return kernel * (frequency * 4 / sample_rate).sqrt(), cycles[:, -1:].remainder(1)


def noise_table() -> Tensor:
    """[NOISE_PERIOD] of mean power 1, uniform; from integers, so that every machine has the same."""
    x = torch.arange(1, NOISE_PERIOD + 1, dtype=torch.long) * 0x9E3779B1
    for shift in (15, 13):
        x = ((x ^ (x >> shift)) * 0x85EBCA6B) & 0xFFFFFFFF
    return (((x >> 8).double() / (1 << 24) - 0.5) * math.sqrt(12)).float()
