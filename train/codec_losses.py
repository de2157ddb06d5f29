"""What the codec's output is compared by: mel spectra, loudness as the ear has it, and envelopes of bands.

None of them sees phase. B batch, S samples, F frequency bins, N STFT frames.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

RESOLUTIONS = ((0.02, 48), (0.04, 80), (0.064, 100))  # (window in seconds, mel bands)
LEVEL_S = 0.32  # seconds of which the level is compared
FAINT_DBFS = -70.0  # of a band
EAR_S = 0.032  # seconds of the window that loudness and envelopes are measured over, every half of it


def reconstruction_terms(output: Tensor, target: Tensor, sample_rate: int) -> dict[str, Tensor]:
    """Name -> loss of two [B, S], for all that need no other network."""
    difference, added = loudness_losses(output, target, sample_rate)
    return {
        "mel": mel_loss(output, target, sample_rate),
        "difference": difference,
        "added": added,
        "envelope": envelope_loss(output, target, sample_rate),
        "level": level_loss(output, target, sample_rate),
    }


def samples(seconds: float, sample_rate: int) -> int:
    """The next multiple of 4: a window that hops of a quarter fit into."""
    return 4 * math.ceil(seconds * sample_rate / 4)


def spectrum(audio: Tensor, window: int) -> Tensor:
    """[B, S] -> real and imaginary part [B, F, N, 2], hop a quarter of the window."""
    taper = torch.hann_window(window, device=audio.device)
    return torch.view_as_real(
        torch.stft(audio.float(), window, window // 4, window=taper, center=True, return_complex=True)
    )


def magnitude(z: Tensor) -> Tensor:
    """[..., 2] -> [...]; with a floor, so that its gradient is finite in silence."""
    return (z.square().sum(dim=-1) + 1e-8).sqrt()


@lru_cache
def mel_filterbank(sample_rate: int, window: int, num_bands: int) -> Tensor:
    """[num_bands, window // 2 + 1]: triangles at equal distances on the mel scale (HTK formula)."""
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, num_bands + 2, dtype=torch.float64) / 2595) - 1)
    frequencies = torch.linspace(0, sample_rate / 2, window // 2 + 1, dtype=torch.float64)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    bank = torch.minimum(rising, falling).clamp_min(0)
    # at low frequencies a short window has no bin inside a band: give the band its nearest bin
    for band in (bank.sum(dim=1) == 0).nonzero().flatten():
        bank[band, (frequencies - edges[band + 1]).abs().argmin()] = 1.0
    return bank.float()


def log_mel(size: Tensor, sample_rate: int, window: int, num_bands: int) -> Tensor:
    """Magnitudes [B, F, N] -> log10 mel magnitudes [B, num_bands, N], floored at -5."""
    return (mel_filterbank(sample_rate, window, num_bands).to(size.device) @ size).clamp_min(1e-5).log10()


def mel_loss(output: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """Mean absolute difference of the log mel spectra of two [B, S], over RESOLUTIONS; phase does not count."""
    terms = []
    for seconds, bands in RESOLUTIONS:
        window = samples(seconds, sample_rate)
        a, b = (log_mel(magnitude(spectrum(x, window)), sample_rate, window, bands) for x in (output, target))
        terms.append(F.l1_loss(a, b))
    return torch.stack(terms).mean()


def power(audio: Tensor, window: int) -> Tensor:
    """[B, S] -> power spectrum [B, F, N], hop half the window."""
    taper = torch.hann_window(window, device=audio.device)
    z = torch.stft(audio.float(), window, window // 2, window=taper, return_complex=True)
    return torch.view_as_real(z).square().sum(dim=-1)


@lru_cache
def bark_filterbank(sample_rate: int, window: int, num_bands: int = 49) -> tuple[Tensor, Tensor]:
    """([num_bands, window // 2 + 1] that adds the bins of a band, power at the threshold of hearing [num_bands, 1]).

    Bark by Traunmueller's inverse hyperbolic sine; threshold in quiet by Terhardt (1979).
    """
    frequencies = torch.arange(window // 2 + 1, dtype=torch.float64) * sample_rate / window
    edges = torch.linspace(0, 6 * math.asinh(sample_rate / 1200), num_bands + 1, dtype=torch.float64)
    centres = (edges[:-1] + edges[1:]) / 2
    bark = 6 * torch.asinh(frequencies / 600)
    band = (torch.bucketize(bark, edges, right=True) - 1).clamp(0, num_bands - 1)
    bank = torch.zeros(num_bands, len(frequencies))
    bank[band, torch.arange(len(frequencies))] = 1.0
    for empty in (bank.sum(dim=1) == 0).nonzero().flatten():
        bank[empty, (bark - centres[empty]).abs().argmin()] = 1.0
    khz = (0.6 * torch.sinh(centres / 6)).clamp_min(0.03)
    decibel = 3.64 * khz**-0.8 - 6.5 * torch.exp(-0.6 * (khz - 3.3) ** 2) + 1e-3 * khz**4
    return bank, (10 ** (decibel / 10)).float()[:, None]


def loudness_losses(output: Tensor, target: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """(difference, added) of loudness over Bark bands, for two [B, S]; the disturbances that PESQ (P.862) builds on.

    Both are played so that the target is at 65 dB. A quarter of the quieter loudness masks a difference; `added`
    weighs it by how much power the output adds to the target's, because what is added disturbs more.
    """
    window = samples(EAR_S, sample_rate)
    bank, threshold = (t.to(output.device) for t in bark_filterbank(sample_rate, window))
    scale = 10**6.5 / target.square().mean(dim=1).clamp_min(1e-7) / (0.375 * window * window / 4)
    a, b = (scale[:, None, None] * (bank @ power(x, window)) for x in (output, target))  # [B, bands, N]
    zwicker = (2 * threshold) ** 0.23
    loud_a, loud_b = (zwicker * ((0.5 + 0.5 * x / threshold) ** 0.23 - 1).clamp_min(0) for x in (a, b))
    masked = 0.25 * torch.minimum(loud_a, loud_b).detach()
    disturbance = F.relu((loud_a - loud_b).abs() - masked)
    ratio = ((a + 50 * threshold) / (b + 50 * threshold)).detach() ** 1.2
    ratio = torch.where(ratio < 3, 0.0, ratio.clamp(max=12))
    weight = ((b.sum(dim=1) + 1e4) / 1e6) ** -0.04  # [B, N]
    difference = (disturbance.square().mean(dim=1) + 1e-6).sqrt() * weight
    added = (disturbance * ratio).mean(dim=1) * weight
    return (difference.square().mean(dim=1) + 1e-6).sqrt().mean(), added.mean()


def level_loss(output: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """Mean distance in bels between the levels of two [B, S] over stretches of LEVEL_S, in each octave from 125 Hz on.

    Spectra that cannot be told exactly are best guessed at their medians, which are too quiet: the other losses like
    that. Levels below FAINT_DBFS count as that.
    """
    window = samples(EAR_S, sample_rate)
    bank = octaves(sample_rate, window).to(output.device)
    steps = max(1, round(LEVEL_S / EAR_S * 2))
    a, b = (bank @ power(x, window) / (0.375 * window * window / 2) for x in (output, target))  # [B, bands, N]
    size = min(steps, a.shape[2])
    faint = 10 ** (FAINT_DBFS / 10)
    a, b = (x.unfold(2, size, size).mean(dim=3).clamp_min(faint).log10() for x in (a, b))
    return (a - b).abs().mean()


@lru_cache
def octaves(sample_rate: int, window: int) -> Tensor:
    """[bands, window // 2 + 1]: 1 for the bins of each octave from 125 Hz to the highest frequency."""
    octave = ((torch.arange(window // 2 + 1) * sample_rate / window).clamp_min(1.0) / 125).log2().floor()
    return (octave == torch.arange(round(math.log2(sample_rate / 2 / 125)))[:, None]).float()


@lru_cache
def third_octaves(sample_rate: int, window: int) -> Tensor:
    """[15, window // 2 + 1]: 1 for the bins of each third of an octave from 150 Hz."""
    frequencies = torch.arange(window // 2 + 1) * sample_rate / window
    centres = 150 * 2 ** (torch.arange(15) / 3)[:, None]
    return ((frequencies >= centres * 2 ** (-1 / 6)) & (frequencies < centres * 2 ** (1 / 6))).float()


def envelope_loss(output: Tensor, target: Tensor, sample_rate: int, steps: int = 24) -> Tensor:
    """1 - correlation of the envelopes of third-octave bands over `steps` windows, as intelligibility (STOI) has it."""
    window = samples(EAR_S, sample_rate)
    bank = third_octaves(sample_rate, window).to(output.device)
    a, b = (((bank @ power(x, window)) + 1e-8).sqrt() for x in (output, target))
    steps = min(steps, a.shape[2])
    a, b = (x.unfold(2, steps, max(1, steps // 6)) for x in (a, b))
    a, b = a - a.mean(dim=-1, keepdim=True), b - b.mean(dim=-1, keepdim=True)
    sizes = (a.square().sum(dim=-1) + 1e-6) * (b.square().sum(dim=-1) + 1e-6)
    return (1 - (a * b).sum(dim=-1) * sizes.rsqrt()).mean()
