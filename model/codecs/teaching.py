"""Codecs without a network: their few numbers are stored as any codec's weights are."""

from pathlib import Path
from typing import Any

from ..weights import load_strictly, read_weights
from .base import Codec, write_codec
from .blocks import BlockCodec


def save_tables(codec: BlockCodec, folder: Path, settings: dict[str, Any]) -> None:
    write_codec(folder, {"codec": codec.name, **settings, **codec.leading}, codec.state_dict())


def load_tables(kind: type[Codec], folder: Path, settings: dict[str, Any]) -> Codec:
    """Raises ValueError for a setting that `kind` does not have or weights that do not fit."""
    try:
        codec = kind(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'}: does not fit this codec ({error})") from None
    path = folder / "model.safetensors"
    load_strictly(codec, read_weights(path), str(path))
    return codec.eval().requires_grad_(False)
