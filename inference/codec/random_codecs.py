"""Codecs without training, for what does not depend on what their weights are: the contract, speed and memory.

B batch, S samples, K codebooks, T frames, D width.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch

from ...model.codec_shapes import SpectralConfig
from ...model.codecs.base import Codec

SEED = 0
PUBLISHED: dict[str, dict[str, Any]] = {  # what differs from the defaults of transformers' own configs
    "encodec": {},  # facebook/encodec_24khz
    "mimi": {},  # kyutai/mimi
    "dac": dict(  # descript/dac_16khz
        sampling_rate=16_000, downsampling_ratios=[2, 4, 5, 8], n_codebooks=12, codebook_size=1024, codebook_dim=8,
        encoder_hidden_size=64, decoder_hidden_size=1536,
    ),
}  # fmt: skip

TINY_MIMI = dict(
    sampling_rate=800, hidden_size=8, num_filters=2, upsampling_ratios=[2, 2], codebook_size=16, codebook_dim=4,
    num_quantizers=4, vector_quantization_hidden_dimension=4, upsample_groups=8, num_hidden_layers=2,
    intermediate_size=8, num_attention_heads=2, num_key_value_heads=2, sliding_window=20,
    layer_scale_initial_scale=1.0,
)  # fmt: skip
TINY_ENCODEC = dict(
    sampling_rate=800, hidden_size=8, num_filters=2, upsampling_ratios=[4, 2], codebook_size=32, codebook_dim=8,
    target_bandwidths=[0.5, 1.0, 2.0],
)  # fmt: skip
STEREO = dict(
    audio_channels=2, normalize=True, chunk_length_s=1.0, overlap=0.01, norm_type="time_group_norm",
    use_causal_conv=False,
)  # fmt: skip
TINY_DAC = dict(
    encoder_hidden_size=4, downsampling_ratios=[2, 4], decoder_hidden_size=16, n_codebooks=3, codebook_size=32,
    codebook_dim=4, sampling_rate=800,
)  # fmt: skip
TINY: dict[str, tuple[str, dict[str, Any]]] = {  # every form of a network that is coded in a way of its own
    "mimi": ("mimi", TINY_MIMI),
    "encodec 24 kHz": ("encodec", TINY_ENCODEC),
    "encodec 48 kHz": ("encodec", TINY_ENCODEC | STEREO),
    "encodec 32 kHz": ("encodec", TINY_ENCODEC | dict(use_causal_conv=False)),
    "dac": ("dac", TINY_DAC),
    "dac, odd stride": ("dac", TINY_DAC | dict(downsampling_ratios=[2, 5])),
}
TINY_SPECTRAL = SpectralConfig(
    sample_rate=8_000, trunk_hop=40, window=80, pitch_window=128, filters_per_hop=2, encoder_dim=16, dim=16,
    encoder_layers=1, decoder_layers=1, pitch_dim=8, kernel=3, num_codebooks=4, codebook_size=32, codebook_dim=4,
)  # fmt: skip
EVERY_KIND = ["spectral", "mulaw", "mdct", *TINY]


def published(kind: str, num_codebooks: int | None = None) -> Codec:
    """EnCodec (24 kHz), Mimi or DAC (16 kHz) in the shape in which it was published, with random weights.

    kind: "encodec", "mimi" or "dac"; num_codebooks: use only this many leading codebooks; KIND:K does the same.
    Every call gives the same weights, and the global random numbers are left as they were. Raises ValueError for
    another kind, or a number of codebooks that it does not have.
    """
    from ...model.codecs import split_name, with_leading
    from ...model.codecs.dac import DacCodec
    from ...model.codecs.encodec import EncodecCodec
    from ...model.codecs.mimi import MimiCodec

    name, num_codebooks = split_name(kind, num_codebooks)
    if name not in PUBLISHED:
        raise ValueError(f"codec '{name}' has no published shape here; choose one of {', '.join(PUBLISHED)}")
    ours = {"encodec": EncodecCodec, "mimi": MimiCodec, "dac": DacCodec}[name]
    theirs, config = _network(name)
    settings = config(**PUBLISHED[name])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        model: Any = theirs(settings)
        for key, buffer in model.named_buffers():
            if key.endswith((".embed", ".embed_sum")):  # codebooks that training fills: zeros would all be as near
                buffer.normal_()
    codec = ours(model, model.state_dict(), settings.to_dict()).eval()
    return with_leading(codec, num_codebooks, name)


def save_tiny(name: str, folder: Path) -> Path:
    """Write a codec of one of EVERY_KIND, as small as it can be, into `folder`, which `load_codec` reads."""
    from ...model.codecs import load_codec
    from ...model.codecs.spectral import SpectralCodec
    from ...model.codecs.transformers_codec import quiet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if name in TINY:
            with quiet():
                tiny_network(name).save_pretrained(folder)
        elif name == "spectral":
            SpectralCodec(TINY_SPECTRAL).save(folder)
        else:
            load_codec(name).save(folder)
    return folder


def load_tiny(name: str) -> Codec:
    """A codec of one of EVERY_KIND, as small as it can be."""
    from ...model.codecs import load_codec

    with tempfile.TemporaryDirectory() as folder:
        return load_codec(save_tiny(name, Path(folder)))


@torch.no_grad()
def tiny_network(name: str) -> Any:
    """transformers' model with weights so far from zero that all of it matters, and codebooks that are used."""
    kind, settings = TINY[name]
    theirs, config = _network(kind)
    generator = torch.Generator().manual_seed(SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)  # some biases stay near what they are initialised to
        model = theirs(config(**settings)).eval()
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        else:
            parameter.add_(0.2 * noise)
    for key, buffer in model.named_buffers():
        if key.rsplit(".")[-1] in ("embed", "embed_sum"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
    if kind == "encodec":
        _fill_codebooks(model, generator)
    return model


def _fill_codebooks(model: Any, generator: torch.Generator) -> None:
    """With what the encoder says about noise: it says so little that random codebooks would give few codes."""
    residual = model.encoder(torch.randn(1, model.config.audio_channels, 8 * 400, generator=generator))  # [1, D, T]
    for layer in model.quantizer.layers:
        entries = layer.codebook.embed
        entries.copy_(residual[0, :, torch.randperm(400, generator=generator)[: len(entries)]].T)
        residual = residual - layer.decode(layer.encode(residual))


def _network(kind: str) -> tuple[Any, Any]:
    """transformers' classes of model and config."""
    from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, MimiConfig, MimiModel

    return {"encodec": (EncodecModel, EncodecConfig), "mimi": (MimiModel, MimiConfig), "dac": (DacModel, DacConfig)}[
        kind
    ]
