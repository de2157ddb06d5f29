"""Frozen codecs: `load_codec(name_or_folder)` gives audio -> codes -> audio behind one contract (`Codec`)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import SpectralConfig
from .base import LEADING, Codec, StreamingCoder
from .blocks import BlockCodec
from .spectral import SpectralCodec

EMBEDDED_CODEC = Path(__file__).parent.parent / "pretrained"
BUILT_IN = ("spectral", "mulaw", "mdct")
HUB = {  # short names of what is fetched from the hub
    "encodec": "facebook/encodec_24khz",
    "mimi": "kyutai/mimi",
    "dac": "descript/dac_44khz",
}


def load_codec(name_or_folder: str | Path = "spectral", num_codebooks: int | None = None) -> Codec:
    """A frozen codec, in eval mode and float32.

    name_or_folder: "spectral" (the embedded one), "mulaw" or "mdct" (teaching codecs), "encodec", "mimi" or "dac"
    (fetched from the hub), any hub id of one of these three, a folder with config.json + model.safetensors, or a .th
    file of the original `encodec` package. num_codebooks: use only so many leading codebooks; NAME:K does the same.

    Raises ValueError for an unknown name or weights that do not fit, FileNotFoundError for a folder without weights,
    OSError for what cannot be fetched.
    """
    name, num_codebooks = split_name(str(name_or_folder), num_codebooks)
    folder = Path(name)
    if name == "spectral":
        codec = _load_folder(EMBEDDED_CODEC, num_codebooks, "codec.json", "codec.safetensors")
    elif name in BUILT_IN:
        codec = with_leading(_teaching_codec(name)().eval(), num_codebooks, name)
    elif folder.is_dir():
        codec = _load_folder(folder, num_codebooks)
    elif folder.suffix == ".th":
        from .original import load_original

        codec = with_leading(load_original(folder), num_codebooks, name)
    elif name in HUB or (name.count("/") == 1 and not folder.is_absolute() and not name.startswith(".")):
        codec = _load_folder(_fetch(HUB.get(name, name)), num_codebooks)
    else:
        raise ValueError(
            f"codec '{name}' is unknown; give 'spectral' or a folder that holds a codec, "
            f"or one of {', '.join([*BUILT_IN[1:], *HUB])}, a hub id, or a .th file of the encodec package"
        )
    return codec


def split_name(name: str, num_codebooks: int | None) -> tuple[str, int | None]:
    """ "mimi:8" -> ("mimi", 8); a name without a number stays as it is, and so does a folder that is called so."""
    start, colon, number = name.rpartition(":")
    if not colon or not number.isdecimal() or Path(name).exists():
        return name, num_codebooks
    if num_codebooks not in (None, int(number)):
        raise ValueError(f"codec '{name}' names {number} codebooks, num_codebooks {num_codebooks}; give one of them")
    return start, int(number)


def _load_folder(
    folder: Path, num_codebooks: int | None, config_name: str = "config.json", weights_name: str = "model.safetensors"
) -> Codec:
    path = folder / config_name
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: holds no codec ({config_name} is missing)")
    try:
        values = json.loads(path.read_text())
        saved = values.pop(LEADING, None)
        kind = values.pop("codec") if "codec" in values else values["model_type"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: is not a codec's config") from None
    leading = saved if num_codebooks is None else num_codebooks
    if kind == "spectral":
        return with_leading(SpectralCodec.load(folder / weights_name, values, "spectral"), leading, str(folder))
    if kind in BUILT_IN:
        from .tables import load_tables

        return with_leading(load_tables(_teaching_codec(kind), folder, values), leading, str(folder))
    if kind in HUB:
        return with_leading(_load_network(kind, folder, values), leading, str(folder))
    raise ValueError(f"{path}: codec '{kind}' is unknown; this version knows {', '.join([*BUILT_IN, *HUB])}")


def _teaching_codec(name: str) -> Any:
    from .mdct import MdctCodec
    from .mulaw import MuLawCodec

    return {"mulaw": MuLawCodec, "mdct": MdctCodec}[name]


def _load_network(kind: str, folder: Path, values: dict[str, Any]) -> Codec:
    """A folder of transformers'."""
    from transformers import DacModel, EncodecModel, MimiModel

    from .dac import DacCodec
    from .encodec import EncodecCodec
    from .mimi import MimiCodec
    from .pretrained import load_pretrained

    ours = {"encodec": EncodecCodec, "mimi": MimiCodec, "dac": DacCodec}[kind]
    theirs = {"encodec": EncodecModel, "mimi": MimiModel, "dac": DacModel}[kind]
    return load_pretrained(ours, theirs, folder, values)


def _fetch(hub_id: str) -> Path:
    """The folder with config.json and model.safetensors of a hub id, downloaded where it is not in the cache."""
    from transformers.utils.hub import cached_file

    try:
        files = [cached_file(hub_id, name) for name in ("config.json", "model.safetensors")]
    except (OSError, ValueError) as error:
        raise OSError(
            f"codec '{hub_id}' cannot be fetched ({' '.join(str(error).split())[:200]}); give a folder that holds it"
        ) from None
    assert files[0] is not None
    return Path(files[0]).parent


def with_leading(codec: Any, num_codebooks: int | None, name: str) -> Codec:
    """The codec with its first codebooks only. Raises ValueError for a number that it does not have."""
    if num_codebooks is None or num_codebooks == codec.num_codebooks:
        return codec
    least = getattr(codec, "min_codebooks", 1)
    if not isinstance(num_codebooks, int) or not least <= num_codebooks <= codec.num_codebooks:
        raise ValueError(f"{name}: num_codebooks must be {least}..{codec.num_codebooks}, not {num_codebooks!r}")
    if isinstance(codec, BlockCodec):
        codec.num_codebooks = num_codebooks
        return codec
    smaller = SpectralCodec(replace(codec.config, num_codebooks=num_codebooks), codec.name)
    weights = codec.state_dict()
    smaller.load_state_dict({key: weights[key] for key in smaller.state_dict()})
    return smaller.eval().requires_grad_(False)


__all__ = ["Codec", "SpectralCodec", "SpectralConfig", "StreamingCoder", "load_codec"]
