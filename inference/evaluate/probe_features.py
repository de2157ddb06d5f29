"""What `codeclm evaluate probes` probes, frame by frame: codes, latents, and hidden states. K codebooks, T frames.

Codes stand for a 1 among zeros each. The latents are the codec's: the sum of codebook vectors, the decoder's input.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...model.codecs import Codec
from ...model.codecs.rvq import ResidualVectorQuantizer
from ...model.lm import SpeechLM
from .hidden_states import hidden_states
from .probe_speech import Recording

if TYPE_CHECKING:
    from ..generator import SpeechGenerator

LATENT_FRAMES = 8  # the last few frames


def names(lm: "SpeechGenerator") -> list[str]:
    num_layers = len(lm.model.backbone.blocks)
    latents = ["latents", f"latents of {LATENT_FRAMES} frames"] if _quantizer(lm.codec) else []
    layers = [f"layer {layer}" for layer in range(num_layers + 1)]
    return ["codes", *latents, *layers, *(f"shuffled {layer}" for layer in _control_layers(num_layers))]


def _control_layers(num_layers: int) -> list[int]:
    return sorted({0, num_layers // 2, num_layers})


def _quantizer(codec: Codec) -> ResidualVectorQuantizer | None:
    quantizer = getattr(codec, "quantizer", None)
    return quantizer if isinstance(quantizer, ResidualVectorQuantizer) else None


@torch.inference_mode()
def probed_parts(
    lm: "SpeechGenerator", recordings: Sequence[Recording], seed: int, left_out: dict[str, str]
) -> Iterator[tuple[str, list[Tensor]]]:
    """What is probed, one after the other: its name, and for each recording codes [T, K] or numbers [T', D]."""
    size, num_codebooks = lm.codec.codebook_size, lm.codec.num_codebooks
    offsets = size * torch.arange(num_codebooks)
    yield "codes", [item.codes.T.cpu() + offsets for item in recordings]
    quantizer = _quantizer(lm.codec)
    if quantizer is None:
        left_out["latents"] = f"the codec '{lm.codec.name}' has none that this codeclm reads"
    else:
        latents = [quantizer.decode(item.codes[None])[0].cpu() for item in recordings]
        yield "latents", latents
        yield f"latents of {LATENT_FRAMES} frames", [_last(each) for each in latents]
        del latents
    num_layers = len(lm.model.backbone.blocks)
    shuffled = shuffled_weights(lm.model, seed)
    for kind, model, layers in (
        ("layer", lm.model, list(range(num_layers + 1))),
        ("shuffled", shuffled, _control_layers(num_layers)),
    ):
        states = [hidden_states(model, item.codes.to(model.device), layers) for item in recordings]
        for number, layer in enumerate(layers):
            yield f"{kind} {layer}", [each[number].float().cpu() for each in states]


def _last(latents: Tensor) -> Tensor:
    """[T, d] -> [T, LATENT_FRAMES * d]: each frame after those before it, zeros where there are none."""
    padded = torch.cat([latents.new_zeros(LATENT_FRAMES - 1, latents.shape[1]), latents])
    return padded.unfold(0, LATENT_FRAMES, 1).flatten(1)


def shuffled_weights(model: SpeechLM, seed: int) -> SpeechLM:
    """A copy with the numbers of each matrix in another order."""
    model = copy.deepcopy(model)
    rng = torch.Generator().manual_seed(seed)
    for weights in model.parameters():
        order = torch.randperm(weights.numel(), generator=rng).to(weights.device)
        weights.data = weights.data.flatten()[order].view_as(weights)
    return model
