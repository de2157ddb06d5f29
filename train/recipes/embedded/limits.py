"""What limits a "spectral" codec on some speech: python -m codeclm.train.recipes.embedded.limits CODEC CLIPS

Each clip comes back in ways that leave out one cause of loss: with the pitch that was sung, without quantization, with
both, and by filters that are fitted to the clip itself, which is the best that pulses and noise through filters can do.
The distance from one row to the next is what that cause costs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from tyro.conf import Positional, arg

from ....data.audio import evenly, find_audio, load_audio
from ....data.progress import progress_bar
from ....inference.screen import say_error
from ....inference.sound.compare import ClipMeasures, compare, mean_measures
from ....inference.sound.measures import pitch_track
from ....inference.text_table import markdown_table
from ....model.codecs import load_spectral
from ....model.codecs.convnext import State
from ....model.codecs.source_filter import Decoder, overlap_add
from ....model.codecs.spectral import SpectralCodec
from ... import codec_losses as losses
from ...codec_config import CodecTrainConfig
from ...voice_crops import PITCH_RATE

FITTING_STEPS, FITTING_RATE = 150, 0.1  # of the filters that are fitted to a clip
QUIET = -4.0  # logarithm of the gains that fitting begins with
WEIGHTS = CodecTrainConfig()


@dataclass(frozen=True)
class Parts:
    """A codec taken apart. B = 1; S samples, N trunk frames."""

    codec: SpectralCodec

    def back(self, audio: Tensor, quantize: bool, true_pitch: bool) -> Tensor:
        """audio [1, S], whole frames -> [1, S]."""
        latent = self.codec.encoder(audio)
        if quantize:
            latent = self.codec.quantizer.decode(self.codec.quantizer.encode(latent)[0])
        read = self.codec.read_pitch(latent)
        return self.codec.decoder(latent, self.sung(audio, read) if true_pitch else read)

    def sung(self, audio: Tensor, read: Tensor) -> Tensor:
        """The pitch that is found in the audio, as log2 Hz [1, N]; where there is none, the one that was read."""
        config = self.codec.config
        track = pitch_track(audio[0].numpy(), config.sample_rate)
        ends = np.arange(1, read.shape[1] + 1) * config.trunk_hop / config.sample_rate * PITCH_RATE
        found = torch.from_numpy(track[np.minimum(np.round(ends).astype(int), len(track) - 1)].astype(np.float64))
        return torch.where(found > 0, found.clamp_min(1.0).log2(), read)

    def fitted(self, audio: Tensor) -> Tensor:
        """audio [1, S] by filters that gradient descent finds for it, on the losses that a codec is trained with."""
        decoder = self.codec.decoder
        with torch.no_grad():
            sources = decoder.sources(self.sung(audio, self.codec.read_pitch(self.codec.encoder(audio))), State())
        num_filters = audio.shape[1] // self.codec.config.synthesis_hop
        gains = torch.full((1, num_filters, 2, decoder.num_bins), QUIET, requires_grad=True)
        optimizer = torch.optim.Adam([gains], lr=FITTING_RATE)
        output = audio
        for step in range(FITTING_STEPS):
            output = played(decoder, gains.exp(), sources)
            loss = distance(output, audio[:, : output.shape[1]], self.codec.sample_rate)
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = FITTING_RATE * (1 - step / FITTING_STEPS)
            optimizer.step()
        return F.pad(output.detach(), (0, audio.shape[1] - output.shape[1]))


def played(decoder: Decoder, gains: Tensor, sources: Tensor) -> Tensor:
    """Gains [1, M, 2, bins] and sources -> audio [1, a little less than S]."""
    frames = decoder.synthesise(gains, sources)
    tail = torch.zeros(1, decoder.overlap)
    return overlap_add(frames, decoder.window, decoder.config.synthesis_hop, tail)[:, decoder.overlap :]


def distance(output: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """The losses of codec training, but the adversarial ones."""
    terms = losses.reconstruction_terms(output, target, sample_rate)
    return torch.stack([getattr(WEIGHTS, f"{name}_weight") * term for name, term in terms.items()]).sum()


def ways(parts: Parts) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name of a row -> how a clip comes back."""
    return {
        "as it is": lambda audio: parts.back(audio, True, False),
        "at the pitch that was sung": lambda audio: parts.back(audio, True, True),
        "without quantization": lambda audio: parts.back(audio, False, False),
        "without quantization, at that pitch": lambda audio: parts.back(audio, False, True),
        "filters fitted to the clip, at that pitch": parts.fitted,
    }


def measured(codec: SpectralCodec, clips: list[np.ndarray]) -> dict[str, ClipMeasures]:
    """Name of a row -> the mean over clips [S], each at the codec's rate."""
    found: dict[str, list[ClipMeasures]] = {}
    for clip in progress_bar(clips, desc="clips", unit="clip"):
        audio = F.pad(torch.from_numpy(clip).float(), (0, -len(clip) % codec.hop_length))[None]
        for name, way in ways(Parts(codec)).items():
            output = way(audio).detach()[0, : len(clip)].clamp(-1, 1).numpy()
            found.setdefault(name, []).append(compare(clip, output, codec.sample_rate))
    return {name: mean_measures(measures, []) for name, measures in found.items()}


def main(
    codec: Positional[Annotated[str, arg(help="name or folder of a 'spectral' codec")]],
    clips: Positional[Annotated[Path, arg(help="a folder of recordings of two seconds and more")]],
    limit: Annotated[int, arg(help="at most this many of them; each takes half a minute of a core")] = 12,
) -> None:
    """Print what limits CODEC on CLIPS."""
    try:
        loaded = load_spectral(codec)
        files = evenly(sorted(find_audio(clips)), limit)
        torch.manual_seed(0)
        rows = measured(loaded, [load_audio(file, loaded.sample_rate) for file in files])
    except (ValueError, OSError, ImportError) as error:
        say_error(str(error))
        raise SystemExit(2) from None
    table = [["sound", "PESQ-WB", "STOI", "pitch r", "level dB"]]
    for name, mean in rows.items():
        table.append([
            name, f"{mean.pesq_wb:.2f}", f"{mean.stoi:.3f}", f"{mean.pitch_correlation:.3f}",
            f"{mean.loudness_difference_db:+.1f}",
        ])  # fmt: skip
    print("\n".join(markdown_table(table)))


if __name__ == "__main__":
    tyro.cli(main)
