"""Checkpoints of others, as transformers has them: a CSM or Moshi folder, read as a SpeechLM and its Mimi.

`load` takes such a folder as it is; convert.py makes a model folder of ours of it. Nothing is written here.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..model.codec_reference import CodecReference
from ..model.codecs import Codec, load_codec, mimi_from_tensors
from ..model.convert import Converted, csm, moshi
from ..model.convert.checkpoint import read_checkpoint, weights_name
from ..model.convert.mimi import codec_settings, split_codec
from ..model.strict import read_object, refusing
from ..model.weights import weight_files
from .argument_checks import FOREIGN

# each has to_speech_lm and from_speech_lm, and says where the codec is
FORMATS: dict[str, Any] = dict(zip(FOREIGN, (csm, moshi), strict=True))


@dataclass(frozen=True)
class Foreign:
    """A checkpoint of others; config.codec of the SpeechLM is not set yet."""

    values: dict[str, Any]  # config.json
    ours: Converted
    codec_values: dict[str, Any]  # config.json of the codec
    codec_weights: dict[str, Tensor]  # none: the checkpoint does not hold its codec


def foreign_kind(folder: Path) -> str | None:
    """ "csm" or "moshi", None for a folder that is neither's."""
    try:
        kind = read_object(folder / "config.json").get("model_type")
    except (OSError, ValueError):
        return None
    return kind if isinstance(kind, str) and kind in FORMATS else None


def read_foreign(kind: str, folder: Path) -> Foreign:
    """Raises FileNotFoundError, or ValueError naming what cannot be expressed."""
    theirs = FORMATS[kind]
    values, weights = read_checkpoint(folder, kind)
    with refusing(str(folder / "config.json")):
        codec_values = codec_settings(values.get(theirs.CODEC_CONFIG), str(folder))
        weights, codec_weights = split_codec(weights, theirs.PREFIX)
        return Foreign(values, theirs.to_speech_lm(values, weights, str(folder)), codec_values, codec_weights)


def open_foreign(kind: str, folder: Path, codec: str | Path | None = None) -> tuple[Converted, Codec]:
    """A checkpoint and its Mimi, all in memory. codec: the Mimi of a folder that holds none, as `load_codec` takes it.

    Raises as `read_foreign` does, and ValueError for a Mimi that is missing or is not this model's.
    """
    found = read_foreign(kind, folder)
    config, weights = found.ours.config, found.codec_weights
    if codec is None and not weights:
        prefix = FORMATS[kind].PREFIX
        raise ValueError(
            f"{folder}: holds no Mimi (no tensor '{prefix}...'); name its folder: --codec MIMI (in Python codec=MIMI)"
        )
    own = mimi_from_tensors(weights, found.codec_values, config.num_codebooks, str(folder)) if weights else None
    given = None if codec is None else load_codec(codec, config.num_codebooks)
    coder = own or given
    assert coder is not None
    if coder.name != "mimi" or coder.codebook_size > config.codebook_size:
        entries = f"{coder.codebook_size} entries a codebook"
        raise ValueError(f"{codec}: is '{coder.name}' with {entries}; {folder} needs a Mimi of {config.codebook_size}")
    config.codec = CodecReference.of(coder)
    if given is not None:
        config.codec.require(given, str(folder))
    return found.ours, coder


def foreign_content(folder: Path) -> tuple[str, list[Path]]:
    """The settings in an order of their own, and the files of the weights: what decides a checkpoint's numbers."""
    path = folder / "config.json"
    values = read_object(path)
    return json.dumps(values, sort_keys=True), weight_files(folder, weights_name(values, str(path)))
