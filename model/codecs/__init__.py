"""Frozen codecs: `load_codec(name_or_folder)` gives audio -> codes -> audio behind one contract (`Codec`)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checksums import check_files
from ..codec_shapes import SpectralConfig
from ..hub import fetch, is_hub_id
from ..strict import read_object, shown
from ..weights import WEIGHTS
from .base import LEADING, Codec, StreamingCoder
from .blocks import BlockCodec
from .spectral import SpectralCodec

EMBEDDED_CODEC = Path(__file__).parent.parent / "pretrained"
EMBEDDED_FILES = ("codec.json", "codec.safetensors")
BUILT_IN = ("spectral", "mulaw", "mdct")
HUB = {  # short names of what is fetched from the hub
    "encodec": "facebook/encodec_24khz",
    "mimi": "kyutai/mimi",
    "dac": "descript/dac_44khz",
}


def load_codec(name_or_folder: str | Path = "spectral", num_codebooks: int | None = None) -> Codec:
    """A frozen codec, in eval mode and float32.

    name_or_folder: "spectral" (the embedded one), "mulaw" or "mdct" (teaching codecs), "encodec", "mimi" or "dac"
    (fetched from the hub), any hub id of one of these three, a folder with config.json + model.safetensors, the folder
    of a run or a model that holds such a folder as codec/, or a .th file of the original `encodec` package.
    num_codebooks: use this many leading codebooks only; NAME:K does the same.

    Raises ValueError for an unknown name, weights that do not fit, or files that are not what was written
    (checksums.json); FileNotFoundError for a folder without weights, OSError for what cannot be fetched.
    """
    name, num_codebooks = split_name(str(name_or_folder), num_codebooks)
    folder = Path(name)
    if name == "spectral":
        codec = _load_folder(EMBEDDED_CODEC, num_codebooks, *EMBEDDED_FILES)
    elif name in BUILT_IN:
        codec = with_leading(_teaching_codec(name)().eval(), num_codebooks, name)
    elif folder.is_dir():
        codec = _load_folder(codec_folder(folder), num_codebooks)
    elif folder.suffix == ".th":
        from .encodec_package import load_original

        codec = with_leading(load_original(folder), num_codebooks, name)
    elif name in HUB or is_hub_id(name):
        codec = _load_folder(fetch(HUB.get(name, name), "codec", ("config.json", WEIGHTS)), num_codebooks)
    else:
        raise ValueError(
            f"codec '{name}' is unknown; give 'spectral' or a folder that holds a codec, "
            f"or one of {', '.join([*BUILT_IN[1:], *HUB])}, a hub id, or a .th file of the encodec package"
        )
    return codec


def load_spectral(name_or_folder: str | Path) -> SpectralCodec:
    """As `load_codec`, for what only a "spectral" codec can do. Raises ValueError for another kind, too."""
    codec = load_codec(name_or_folder)
    if not isinstance(codec, SpectralCodec):
        raise ValueError(f"codec '{name_or_folder}': is of another kind; give a 'spectral' one")
    return codec


def codec_folder(folder: Path) -> Path:
    """FOLDER, or the codec/ in it where FOLDER is a codec's training run, a model, or a run with a model."""
    for candidate in (folder, folder / "codec", folder / "model" / "codec"):
        try:
            _kind(read_object(candidate / "config.json"), candidate)
        except (OSError, ValueError):
            continue
        return candidate
    return folder  # which says what is wrong with it


def split_name(name: str, num_codebooks: int | None) -> tuple[str, int | None]:
    """ "mimi:8" -> ("mimi", 8); a name without a number stays as it is, and so does a folder that is called so."""
    start, colon, number = name.rpartition(":")
    if not colon or not number.isdecimal() or Path(name).exists():
        return name, num_codebooks
    if num_codebooks not in (None, int(number)):
        raise ValueError(f"codec '{name}' names {number} codebooks, num_codebooks {num_codebooks}; give one of them")
    return start, int(number)


def _load_folder(
    folder: Path, num_codebooks: int | None, config_name: str = "config.json", weights_name: str = WEIGHTS
) -> Codec:
    path = folder / config_name
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: holds no codec ({config_name} is missing)")
    values = read_object(path)
    kind = _kind(values, path)
    leading = values.pop(LEADING, None) if num_codebooks is None else num_codebooks
    values = {key: value for key, value in values.items() if key not in ("codec", LEADING)}
    if kind == "spectral":
        codec = SpectralCodec.load(folder / weights_name, values, "spectral")
    elif kind in BUILT_IN:
        from .teaching import load_tables

        codec = load_tables(_teaching_codec(kind), folder, values)
    else:
        codec = _load_network(kind, folder, values)
    codec = with_leading(codec, leading, str(folder))
    check_files(folder, (config_name, weights_name))
    return codec


def _kind(values: dict[str, Any], path: Path) -> str:
    """Which codec a config.json describes. Raises ValueError if it is none that is known."""
    kind = values.get("codec", values.get("model_type"))
    if not isinstance(kind, str):
        raise ValueError(f"{path}: is not a codec's config")
    if kind not in BUILT_IN and kind not in HUB:
        known = ", ".join([*BUILT_IN, *HUB])
        raise ValueError(f"{path}: codec {shown(kind)} is unknown; this version knows {known}")
    return kind


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
    from .transformers_codec import load_pretrained

    ours = {"encodec": EncodecCodec, "mimi": MimiCodec, "dac": DacCodec}[kind]
    theirs = {"encodec": EncodecModel, "mimi": MimiModel, "dac": DacModel}[kind]
    return load_pretrained(ours, theirs, folder, values)


def mimi_from_tensors(
    tensors: dict[str, Tensor], values: dict[str, Any], num_codebooks: int | None, name: str
) -> Codec:
    """A Mimi whose tensors and settings another checkpoint holds. Raises ValueError as `load_codec` does."""
    from transformers import MimiModel

    from .mimi import MimiCodec
    from .transformers_codec import from_tensors

    return with_leading(from_tensors(MimiCodec, MimiModel, tensors, values, name, name), num_codebooks, name)


def with_leading(codec: Any, num_codebooks: int | None, name: str) -> Codec:
    """The codec with its first codebooks only. Raises ValueError for a number that it does not have."""
    if num_codebooks is None or num_codebooks == codec.num_codebooks:
        return codec
    least = getattr(codec, "min_codebooks", 1)
    if type(num_codebooks) is not int or not least <= num_codebooks <= codec.num_codebooks:
        raise ValueError(f"{name}: num_codebooks must be {least}..{codec.num_codebooks}, not {shown(num_codebooks)}")
    if isinstance(codec, BlockCodec):
        codec.num_codebooks = num_codebooks
        return codec
    smaller = SpectralCodec(replace(codec.config, num_codebooks=num_codebooks), codec.name)
    weights = codec.state_dict()
    smaller.load_state_dict({key: weights[key] for key in smaller.state_dict()})
    return smaller.eval().requires_grad_(False)


__all__ = ["Codec", "SpectralCodec", "SpectralConfig", "StreamingCoder", "load_codec", "load_spectral"]
