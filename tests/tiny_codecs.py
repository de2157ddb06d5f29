"""Tiny codecs of every kind with random weights, for the contract and for bad input. Rates are low: 800 Hz."""

from pathlib import Path
from typing import Any

import torch
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, MimiConfig, MimiModel

from codeclm.model.codecs import Codec, SpectralCodec, load_codec
from codeclm.model.config import SpectralConfig

MIMI = dict(
    sampling_rate=800, hidden_size=8, num_filters=2, upsampling_ratios=[2, 2], codebook_size=16, codebook_dim=4,
    num_quantizers=4, vector_quantization_hidden_dimension=4, upsample_groups=8, num_hidden_layers=2,
    intermediate_size=8, num_attention_heads=2, num_key_value_heads=2, sliding_window=20,
    layer_scale_initial_scale=1.0,
)  # fmt: skip
ENCODEC = dict(
    sampling_rate=800, hidden_size=8, num_filters=2, upsampling_ratios=[4, 2], codebook_size=32, codebook_dim=8,
    target_bandwidths=[0.5, 1.0, 2.0],
)  # fmt: skip
STEREO = dict(
    audio_channels=2, normalize=True, chunk_length_s=1.0, overlap=0.01, norm_type="time_group_norm",
    use_causal_conv=False,
)  # fmt: skip
DAC = dict(
    encoder_hidden_size=4, downsampling_ratios=[2, 4], decoder_hidden_size=16, n_codebooks=3, codebook_size=32,
    codebook_dim=4, sampling_rate=800,
)  # fmt: skip
NETWORKS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "mimi": (MimiModel, MimiConfig, MIMI),
    "encodec 24 kHz": (EncodecModel, EncodecConfig, ENCODEC),
    "encodec 48 kHz": (EncodecModel, EncodecConfig, ENCODEC | STEREO),
    "encodec 32 kHz": (EncodecModel, EncodecConfig, ENCODEC | dict(use_causal_conv=False)),
    "dac": (DacModel, DacConfig, DAC),
    "dac, odd stride": (DacModel, DacConfig, DAC | dict(downsampling_ratios=[2, 5])),
}
NAMES = ["spectral", "mulaw", "mdct", *NETWORKS]
TINY = SpectralConfig(
    sample_rate=8_000, trunk_hop=40, window=80, encoder_dim=16, dim=16, encoder_layers=1, decoder_layers=1,
    kernel=3, num_codebooks=4, codebook_size=32, codebook_dim=4,
)  # fmt: skip


def save_codec(name: str, folder: Path) -> Path:
    """A folder that `load_codec` reads, with a codec of this kind."""
    torch.manual_seed(0)
    if name in NETWORKS:
        network(name).save_pretrained(folder)
    elif name == "spectral":
        SpectralCodec(TINY).save(folder)
    else:
        load_codec(name).save(folder)
    return folder


def network(name: str) -> Any:
    """transformers' model with weights so far from zero that all of it matters, and codebooks that are used."""
    torch.manual_seed(0)  # some biases stay near what they are initialised to
    kind, config, settings = NETWORKS[name]
    model, generator = kind(config(**settings)).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.2 * noise)
        for key, buffer in model.named_buffers():
            if key.rsplit(".")[-1] in ("embed", "embed_sum"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        if isinstance(model, EncodecModel):
            fill_codebooks(model, generator)
    return model


def fill_codebooks(model: Any, generator: torch.Generator) -> None:
    """With what the encoder says about noise: it says so little that random codebooks would give few codes."""
    audio = torch.randn(1, model.config.audio_channels, 8 * 400, generator=generator)
    residual = model.encoder(audio)  # [1, D, T]
    for layer in model.quantizer.layers:
        entries = layer.codebook.embed
        entries.copy_(residual[0, :, torch.randperm(400, generator=generator)[: len(entries)]].T)
        residual = residual - layer.decode(layer.encode(residual))


def tiny_codec(name: str, folder: Path) -> Codec:
    return load_codec(save_codec(name, folder))
