"""Frozen codecs: `load_codec(name_or_folder)` gives audio -> codes -> audio behind one contract (`Codec`)."""

import json
from pathlib import Path

from ..config import SpectralConfig
from .base import Codec, StreamingCoder
from .spectral import SpectralCodec

EMBEDDED_CODEC = Path(__file__).parent.parent / "pretrained"


def load_codec(name_or_folder: str | Path = "spectral") -> Codec:
    """A frozen codec, in eval mode: "spectral" (the embedded one) or a folder with config.json + model.safetensors.

    Raises ValueError for an unknown name or weights that do not fit, FileNotFoundError for a folder without weights.
    """
    if str(name_or_folder) == "spectral":
        return _load_folder(EMBEDDED_CODEC, "codec.json", "codec.safetensors")
    folder = Path(name_or_folder)
    if folder.is_dir():
        return _load_folder(folder, "config.json", "model.safetensors")
    raise ValueError(f"codec '{name_or_folder}' is unknown; give 'spectral' or a folder that holds a codec")


def _load_folder(folder: Path, config_name: str, weights_name: str) -> Codec:
    path = folder / config_name
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: holds no codec ({config_name} is missing)")
    try:
        config = json.loads(path.read_text())
        kind = config.pop("codec")
    except (ValueError, KeyError, AttributeError):
        raise ValueError(f"{path}: is not a codec's config") from None
    if kind != "spectral":
        raise ValueError(f"{path}: codec '{kind}' is unknown; this version knows 'spectral'")
    return SpectralCodec.load(folder / weights_name, config, "spectral")


__all__ = ["Codec", "SpectralCodec", "SpectralConfig", "StreamingCoder", "load_codec"]
