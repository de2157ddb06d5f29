"""The verb `convert`: folders of other people's checkpoints become model folders, and the other way round.

A converted folder holds what `load` reads (config.json, model.safetensors), the codec in codec/ as transformers has it,
and in source/ what only the way back needs: the config, the tokenizer, and tensors that no logit depends on.
Heavy imports are inside the functions, so that --help answers at once.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from ..model.hub import is_hub_id
from ..model.shapes import PATTERNS, PRESETS
from .argument_checks import check_codec, check_model, check_seeds, check_text_model, check_writable
from .cli import CodecName, Seed
from .screen import say_loading

UNUSED = "unused.safetensors"
OLD_KEYS = ("rope_theta", "rope_scaling", "torch_dtype")  # what config.json files had before rope_parameters and dtype
KEPT = ("max_position_embeddings", "sliding_window")  # of depth decoders: limits that their few positions never reach


def convert(
    kind: Positional[Annotated[Literal["csm", "moshi", "text"], arg(help="what SRC is: CSM, Moshi, or a text LM")]],
    src: Positional[
        Annotated[Path, arg(metavar="SRC", help="a checkpoint folder of transformers' or a hub id; text: or a .gguf")]
    ],
    dst: Positional[Annotated[Path, arg(metavar="DST", help="the new model folder")]],
    back: Annotated[bool, arg(help="the other way: SRC is a model folder of ours, DST one for transformers")] = False,
    codec: CodecName = "spectral",
    depth: Annotated[str, arg(help=f"text: shape of the fresh depth decoder, one of {', '.join(PRESETS)}")] = "default",
    pattern: Annotated[str, arg(help=f"text: one of {', '.join(PATTERNS)}")] = "depth",
    bos_token: Annotated[int | None, arg(help="text: the token that begins a text; default: the checkpoint's")] = None,
    seed: Seed = 0,
) -> None:
    """Convert a CSM or Moshi checkpoint into a model folder or --back, or grow a new model from a text LM."""
    check_conversion(kind, src, dst, back, codec, depth, pattern, seed)
    say_loading(src.name or str(src))
    if kind == "text":
        warm_start(src, dst, codec, depth, pattern, bos_token, seed)
        print(f"{dst}: has the text of {src} and no speech yet; go on with: codeclm finetune --from {dst}")
        return
    (export_folder if back else import_folder)(kind, src, dst)
    print(f"{dst}: {kind} {'for transformers' if back else 'as a model folder'}, from {src}")


def check_conversion(
    kind: str, src: Path, dst: Path, back: bool, codec: str, depth: str, pattern: str, seed: int
) -> None:
    """Raise for what is wrong with the arguments, before torch and transformers are loaded."""
    own = {"--codec": codec != "spectral", "--depth": depth != "default", "--pattern": pattern != "depth"}
    if kind == "text" and back:
        raise ValueError("--back: a model that was grown from a text LM has no way back; only csm and moshi have")
    if kind != "text" and any(own.values()):
        raise ValueError(f"{' and '.join(flag for flag, given in own.items() if given)}: for text models only")
    for flag, value, legal in (("--depth", depth, tuple(PRESETS)), ("--pattern", pattern, PATTERNS)):
        if value not in legal:
            raise ValueError(f"{flag} '{value}' is unknown; choose one of {', '.join(legal)}")
    check_seeds(seed)
    check_codec(codec)
    if kind == "text":
        check_text_model(src)
    elif back:
        if not src.exists() and str(src) != "default":
            raise FileNotFoundError(f"{src}: no such folder; give a model folder of ours")
        check_model(str(src))
        if not any((place / "codec").is_dir() for place in (src, src / "model")):
            raise ValueError(f"{src}: has no Mimi in codec/, so there is no {kind} folder that it could become")
    elif not (src / "config.json").is_file() and (src.exists() or not is_hub_id(str(src))):
        reason = "is a file" if src.is_file() else "no such folder"
        reason = "holds no checkpoint (config.json is missing)" if src.is_dir() else reason
        raise FileNotFoundError(f"{src}: {reason}; give the folder of a checkpoint that is on this machine")
    if dst.is_file() or dst.is_dir() and any(dst.iterdir()):
        raise FileExistsError(f"{dst}: exists already; give a new folder")
    check_writable(dst / "config.json")


def import_folder(kind: str, src: Path, dst: Path) -> None:
    """A CSM or Moshi folder of transformers', or a hub id -> a model folder of ours, whole or not at all.

    Raises ValueError naming what cannot be expressed, FileNotFoundError, FileExistsError or OSError.
    """
    from ..model.checksums import write_checksums
    from ..model.convert.checkpoint import copy_companions, local_folder, read_checkpoint
    from ..model.convert.mimi import codec_reference, codec_settings, split_codec
    from ..model.files import whole_folder
    from ..model.strict import refusing
    from ..model.weights import write_checkpoint, write_weights

    theirs, src = format_of(kind), local_folder(src)
    values, weights = read_checkpoint(src, kind)
    with refusing(str(src / "config.json")):
        codec_values = codec_settings(values.get(theirs.CODEC_CONFIG), str(src))
        weights, codec_weights = split_codec(weights, theirs.PREFIX)
        ours = theirs.to_speech_lm(values, weights, str(src))
        ours.config.codec = codec_reference(codec_values, codec_weights, ours.config.num_codebooks, str(src))
    with whole_folder(dst) as folder:
        write_checkpoint(folder, json.loads(ours.config.to_json_string()), ours.weights)
        write_checkpoint(folder / "codec", codec_values, codec_weights)
        write_checksums(folder)
        write_checksums(folder / "codec")
        copy_companions(src, folder / "source")
        (folder / "source" / "config.json").write_text(json.dumps(values, indent=2) + "\n")
        if ours.unused:
            write_weights(folder / "source" / UNUSED, ours.unused)


def export_folder(kind: str, src: Path, dst: Path) -> None:
    """A model folder of ours with a Mimi in codec/ -> a folder that transformers loads; raises as `import_folder`.

    What only transformers knows (token ids, the tokenizer) comes from source/, where the folder has one.
    """
    from ..model.checksums import check_files
    from ..model.convert import Converted
    from ..model.convert.checkpoint import copy_companions, read_checkpoint
    from ..model.convert.mimi import codec_reference
    from ..model.files import whole_folder
    from ..model.strict import read_object
    from ..model.weights import WEIGHTS, read_folder, read_weights, write_checkpoint
    from .loading import checked_names, model_folder, read_config

    theirs, folder = format_of(kind), model_folder(str(src))
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


def format_of(kind: str) -> Any:
    """The module that knows `kind`: to_speech_lm, from_speech_lm, and where the codec is."""
    from ..model.convert import csm, moshi

    return {"csm": csm, "moshi": moshi}[kind]


def warm_start(
    src: Path, dst: Path, codec: str, depth: str, pattern: str, bos_token: int | None = None, seed: int = 0
) -> None:
    """Grow a model on `codec` from a text LM and save it in DST. Raises as `import_folder` does."""
    import torch

    from ..model.codecs import load_codec
    from ..model.convert.checkpoint import local_folder
    from ..model.convert.text_lm import from_text_lm
    from ..model.files import check_absent
    from ..model.shapes import CodecReference
    from .loading import save_model

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
