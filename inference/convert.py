"""Folders of other people's checkpoints become model folders, and the other way round.

A converted folder holds what `load` reads (config.json, model.safetensors), the codec in codec/ as transformers has it,
and in source/ what only the way back needs: the config, the tokenizer, and tensors that no logit depends on.
"""

import json
from pathlib import Path
from typing import Any

import torch

from ..model.checksums import check_files, write_checksums
from ..model.codec_reference import CodecReference
from ..model.codecs import load_codec
from ..model.convert import Converted
from ..model.convert.checkpoint import copy_companions, local_folder, read_checkpoint
from ..model.convert.mimi import codec_reference
from ..model.convert.text_lm import from_text_lm
from ..model.files import check_absent, whole_folder
from ..model.presets import PRESETS
from ..model.strict import read_object, refusing
from ..model.weights import WEIGHTS, read_folder, read_weights, write_checkpoint, write_weights
from .foreign import FORMATS, read_foreign
from .loading import checked_names, model_folder, read_config, save_model

UNUSED = "unused.safetensors"
OLD_KEYS = ("rope_theta", "rope_scaling", "torch_dtype")  # what config.json files had before rope_parameters and dtype
KEPT = ("max_position_embeddings", "sliding_window")  # limits of depth decoders that their few positions never reach


def import_folder(kind: str, src: Path, dst: Path) -> None:
    """A CSM or Moshi folder of transformers', or a hub id -> a model folder of ours, whole or not at all.

    Raises ValueError naming what cannot be expressed, FileNotFoundError, FileExistsError or OSError.
    """
    src = local_folder(src)
    found = read_foreign(kind, src)
    ours, codec_values, codec_weights = found.ours, found.codec_values, found.codec_weights
    with refusing(str(src / "config.json")):
        ours.config.codec = codec_reference(codec_values, codec_weights, ours.config.num_codebooks, str(src))
    with whole_folder(dst) as folder:
        write_checkpoint(folder, json.loads(ours.config.to_json_string()), ours.weights)
        write_checkpoint(folder / "codec", codec_values, codec_weights)
        write_checksums(folder)
        write_checksums(folder / "codec")
        copy_companions(src, folder / "source")
        (folder / "source" / "config.json").write_text(json.dumps(found.values, indent=2) + "\n")
        if ours.unused:
            write_weights(folder / "source" / UNUSED, ours.unused)


def export_folder(kind: str, src: Path, dst: Path) -> None:
    """A model folder of ours with a Mimi in codec/ -> a folder that transformers loads; raises as `import_folder`.

    What only transformers knows (token ids, the tokenizer) comes from source/, where the folder has one.
    """
    theirs, folder = FORMATS[kind], model_folder(str(src))
    config, source = read_config(folder / "config.json"), folder / "source"
    if not (folder / "codec").is_dir():
        raise ValueError(f"{src}: has no Mimi in codec/, so there is no {kind} folder that it could become")
    codec_values, codec_weights = read_checkpoint(folder / "codec", "mimi")
    codec = codec_reference(codec_values, codec_weights, config.num_codebooks, str(folder / "codec"))
    if codec.fingerprint != config.codec.fingerprint:
        raise ValueError(f"{folder / 'codec'}: is not the codec ({config.codec.name}) of this model")
    unused = read_weights(source / UNUSED) if (source / UNUSED).is_file() else {}
    ours = Converted(config, read_folder(folder), unused)
    values, weights = theirs.from_speech_lm(ours, str(folder))
    check_files(folder, checked_names(folder))
    check_files(folder / "codec", ("config.json", WEIGHTS))
    known = read_object(source / "config.json") if (source / "config.json").is_file() else {}
    values = merge(known, values) | {theirs.CODEC_CONFIG: codec_values}
    values["dtype"] = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    with whole_folder(dst) as out:
        if source.is_dir():
            copy_companions(source, out)
        write_checkpoint(out, values, weights | {theirs.PREFIX + key: codec_weights[key] for key in codec_weights})


def merge(known: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A source's config.json under what the model says; limits of its depth decoder stay as they were."""
    depth = known.get("depth_decoder_config")
    depth = depth if isinstance(depth, dict) else {}
    depth = depth | values["depth_decoder_config"] | {key: depth[key] for key in KEPT if key in depth}
    merged = known | values | {"depth_decoder_config": depth}
    for part in (merged, depth):
        for key in OLD_KEYS:
            part.pop(key, None)
    return merged


def warm_start(
    src: Path, dst: Path, codec: str, depth: str, pattern: str, bos_token: int | None = None, seed: int = 0
) -> None:
    """Grow a model on `codec` from a text LM and save it in DST. Raises as `import_folder` does."""
    check_absent(dst)
    coder = load_codec(codec)
    torch.manual_seed(seed)
    model = from_text_lm(
        src if src.suffix == ".gguf" else local_folder(src),
        bos_token,
        num_codebooks=coder.num_codebooks,
        codebook_size=coder.codebook_size,
        codec=CodecReference.of(coder),
        pattern=pattern,
        depth=PRESETS[depth][1],
    )
    save_model(model, coder, dst)
