"""What can be known to be wrong before torch and a model are loaded: files, folders, and numbers out of range.

A bad argument should be told at once. Nothing here is the last word: what loads or writes a thing checks it again.
"""

import json
import math
import os
import re
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..model.files import check_file, readable
from ..model.hub import is_hub_id
from ..model.presets import PRESETS
from ..model.shapes import PATTERNS

CODECS = ("spectral", "mulaw", "mdct", "encodec", "mimi", "dac")  # names of load_codec
MAX_DURATION_S = 24 * 3600.0
STORE = "store.json"
READ_LATER = r"\.(jsonl|csv|tsv|jsonl\.gz|tar|tar\.\w+|tgz|parquet|arrow)$"  # what holds audio and is none
FOREIGN = ("csm", "moshi")  # model_type of checkpoints of others that are taken as they are
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # LoRA's files, as peft names them


def check_seeds(*seeds: int) -> None:
    if not seeds or not all(0 <= seed < 2**63 for seed in seeds):
        given = f"--seed {' '.join(map(str, seeds))}" if seeds else "a seed is missing"
        raise ValueError(f"{given}: seeds are whole numbers from 0 to 2**63 - 1")


def check_number(flag: str, value: float, least: float, most: float = math.inf, unit: str = "") -> None:
    """Raise ValueError unless least <= value <= most, and finite."""
    if not (least <= value <= most and math.isfinite(value)):
        limits = f"at least {least:g}{unit}" if most == math.inf else f"{least:g} to {most:g}{unit}"
        raise ValueError(f"{flag} is {value:g}; it must be {limits}{', and finite' if most == math.inf else ''}")


def check_duration(seconds: float, endless: bool = False) -> None:
    """Raise ValueError for a duration that is too long to hold, or, if `endless`, none at all."""
    if not 0 < seconds <= MAX_DURATION_S and not (endless and seconds == float("inf")):
        limit = "at most a day, or inf" if endless else "at most a day"
        raise ValueError(f"--duration is {seconds:g} s; it must be more than 0 s and {limit}")


def check_kept(keep: int, num_codebooks: int | None) -> None:
    """Raise ValueError unless some codebooks are kept and some are drawn, of as many as are known."""
    most = math.inf if num_codebooks is None else num_codebooks - 1
    if not 1 <= keep <= most:
        limits = f"1 to {most}, for some to be drawn" if num_codebooks else "at least 1"
        raise ValueError(f"{keep} codebooks are to be kept; it must be {limits}")


def check_device(name: str) -> None:
    """Raise ValueError for what is no device's name; whether it is there is asked when it is used."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"--device '{name}' is unknown; choose one of auto, cpu, cuda, mps, or cuda:N")


def check_package(flag: str, module: str, extra: str) -> None:
    """Raise ImportError where an option needs a package that is not installed."""
    if find_spec(module) is None:
        raise ImportError(f"{flag} needs more packages: pip install 'codeclm[{extra}]'")


def check_writable(*files: Path | None) -> None:
    """Raise OSError before long work whose result could not be written to one of `files`. Creates nothing."""
    for path in filter(None, files):
        check_file(path)
        name = readable(path)
        nearest = next(folder for folder in Path(os.path.realpath(path)).parents if folder.exists())
        if not nearest.is_dir():
            raise OSError(f"{name}: cannot be written, because {readable(nearest)} is a file, not a folder")
        if not os.access(nearest, os.W_OK):
            raise OSError(f"{name}: cannot be written (no permission in {readable(nearest)})")


def check_stream(kind: str, others: dict[str, bool]) -> None:
    """Raise ValueError for a stream that cannot be written to stdout. others: flags that need all of a continuation."""
    if kind not in ("-", "pcm"):
        raise ValueError(f"--stream is '{kind}'; give - (WAV) or pcm (bare samples), or a file to --out")
    for flag in [flag for flag, given in others.items() if given]:
        raise ValueError(f"{flag}: of no use with --stream, which writes the continuation alone")
    if sys.stdout.isatty():
        raise ValueError("--stream writes sound to stdout, a terminal here; pipe it into a player: ... | aplay")


def check_audio_out(path: Path) -> None:
    """The same for audio, whose format the suffix names. Raises ValueError for one that is not known."""
    from ..data.audio_out import check_audio_file

    check_audio_file(path)
    check_writable(path)


def check_folder(path: Path | None) -> None:
    """Raise OSError where `path` could not become, or is not, a folder to write to."""
    if path is not None:
        if path.exists() and not path.is_dir():
            raise OSError(f"{readable(path)}: is a file, not a folder; choose another place")
        check_writable(path / "file")


def check_distinct(out: Path | None, inputs: Iterable[Path | None]) -> None:
    """Raise ValueError where writing `out` would destroy an input, links followed."""
    for path in filter(None, inputs):
        if out is not None and out.exists() and path.exists() and out.samefile(path):
            raise ValueError(f"{readable(out)}: would overwrite what is read; give another name")


def check_recording(path: Path | None) -> None:
    """Raise AudioError for an audio file that cannot be used, as far as its first minute tells."""
    if path is None:
        return
    if re.match(r"https?:/", str(path)) and not path.exists():
        raise ValueError(f"{str(path).replace(':/', '://', 1)}: is a web address; download the file first")
    from ..data.audio import audio_blocks, audio_header

    own_rate = audio_header(path)[0] or 16_000
    for number, _ in enumerate(audio_blocks(path, own_rate, check_speech=True)):
        if number:  # the rest is read when it is used
            return


def check_prompt(path: Path | None) -> None:
    """The same for a prompt, which may be a file of `codeclm prefix` instead; what is in that is checked later."""
    if path is None or path.suffix != ".safetensors":
        check_recording(path)
    elif not path.is_file():
        raise FileNotFoundError(f"{readable(path)}: no such file; codeclm prefix VOICE.wav --out {path.name} makes it")


def check_audio(path: Path | None) -> None:
    """Raise AudioError for a file that cannot be used, or a folder without audio files."""
    if path is not None and path.is_dir():
        from ..data.audio import EXTENSIONS, find_audio

        if not any(file.suffix.lower() in EXTENSIONS for file in path.rglob("*")):
            find_audio(path)
    elif path is not None and not path.exists():
        raise FileNotFoundError(f"{readable(path)}: no such file or folder")
    else:
        check_recording(path)


def check_audio_folder(path: Path) -> None:
    """The same for a folder alone."""
    if path.is_file():
        raise ValueError(f"{readable(path)}: is one file; give a folder of recordings")
    check_audio(path)


def check_speech(place: str) -> None:
    """The same for whatever `codeclm prepare` reads; a list, a table or an address is read when it is used."""
    path = Path(place)
    if "://" not in place and not path.exists() and is_hub_id(place):
        check_package(f"{place} is no file or folder here; a dataset of the hub", "datasets", "data")
    elif "://" not in place and not (path.exists() and re.search(READ_LATER, place)):
        holds_others = path.is_dir() and any(re.search(READ_LATER, file.name) for file in path.rglob("*"))
        check_audio(None if holds_others else path)


def check_rank(rank: int | None, world_size: int | None, commit: bool, ray: bool) -> tuple[int, int] | None:
    """Which of how many processes this is; None for the only one."""
    if (rank is None) != (world_size is None):
        raise ValueError("--rank and --world-size: give both, or neither")
    if commit + ray + (rank is not None) > 1:
        raise ValueError("--rank, --commit and --ray: give one of them")
    if ray:
        check_package("--ray", "ray", "ray")
    if rank is None or world_size is None:
        return None
    check_number("--world-size", world_size, 1)
    check_number("--rank", rank, 0, world_size - 1)
    return rank, world_size


def check_data(path: Path | None, model: dict[str, Any] | None = None) -> None:
    """Raise ValueError or OSError for what is neither audio nor a token store of the codec of `model`, a config."""
    if path is None or not (path / STORE).is_file():
        return check_audio(path)
    ours, theirs = _part(_json(path / STORE), "codec"), _part(model or {}, "codec")
    mine, wanted = ours.get("fingerprint"), theirs.get("fingerprint")
    if isinstance(mine, str) and isinstance(wanted, str) and wanted and mine != wanted:
        raise ValueError(
            f"{readable(path)}: holds tokens of codec '{ours.get('name')}' ({mine[:12]}), not of the model's "
            f"'{theirs.get('name')}' ({wanted[:12]}); give the audio itself"
        )


def check_model(name: str, flag: str = "--model") -> dict[str, Any]:
    """What config.json of a model says, as far as it can be read; nothing of a hub id's.

    flag: what to leave out for the embedded model. Raises FileNotFoundError for a name or folder that is no model.
    """
    if name == "default":
        return _json(Path(__file__).parent.parent / "model" / "pretrained" / "config.json")
    folder = Path(name)
    if not folder.exists():
        if is_hub_id(name):
            return {}
        raise FileNotFoundError(f"{folder}: no such model folder (leave {flag} out for the embedded model)")
    for place in (folder, folder / "model"):
        if (place / "config.json").is_file() and any(place.glob("*.safetensors*")):
            return _json(place / "config.json")
    raise FileNotFoundError(no_model(folder))


def no_model(folder: Path) -> str:
    """What to say of a folder without a model's files: a training run may be too young to have any."""
    if (folder / "metrics.jsonl").is_file() and _json(folder / "config.json").get("evaluate_every"):
        return f"{folder}: this run has no weights yet; they come with its first look at the held-out speech"
    if (folder / "model.safetensors").is_file() and folder.name.startswith("step-"):
        return f"{folder}: is what a training run goes on from, not a model; give {folder.parent}"
    return f"{folder}: holds no model (config.json and model.safetensors are needed)"


def check_missing_codec(codec: str | None, model: str, config: dict[str, Any]) -> None:
    """Raise ValueError for a codec given to a model that has its own, or for what cannot be a codec."""
    if codec is None:
        return
    if config and config.get("model_type") not in FOREIGN:
        raise ValueError(f"--codec {codec}: {model} has its own codec; only a CSM or Moshi may lack it")
    check_codec(codec)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a training run."""
    return (folder / "metrics.jsonl").is_file() or "run" in _json(folder / "config.json")


def check_layout(flag: str, name: str, config: dict[str, Any], *layouts: str) -> None:
    """Raise ValueError where a model has no text, or none in a layout that `flag` needs."""
    text = _part(config, "text")
    if config and not (text.get("vocab_size") and text.get("layout") in layouts):
        has = f"has its text {text.get('layout')}" if text.get("vocab_size") else "has no text stream"
        raise ValueError(f"{flag}: the model '{name}' {has}; train one with --model.text.layout {layouts[0]}")


def check_text_model(path: Path | None) -> None:
    """Raise for what is no text model: neither a folder nor a .gguf file, or one for which a package is missing."""
    if path is None or (not path.exists() and is_hub_id(str(path)) and path.suffix != ".gguf"):
        return
    if not path.exists():
        raise FileNotFoundError(
            f"{readable(path)}: no such file or folder (give a folder of transformers', or a .gguf file)"
        )
    if path.is_file() and path.suffix != ".gguf":
        raise NotADirectoryError(f"{readable(path)}: is a file; give the folder of a checkpoint, or a .gguf file")
    if path.is_dir() and not (path / "config.json").is_file():
        raise FileNotFoundError(f"{readable(path)}: holds no checkpoint (config.json is missing)")
    if path.is_file() and find_spec("gguf") is None:
        raise ImportError(f"{readable(path)}: reading GGUF files needs: pip install 'codeclm[gguf]'")


def check_conversion(
    kind: str, src: Path, dst: Path, back: bool, codec: str, depth: str, pattern: str, seed: int
) -> None:
    """Raise for what is wrong with the arguments, before torch and transformers are loaded."""
    own = {"--codec": codec != "spectral", "--depth": depth != "default", "--pattern": pattern != "depth"}
    if kind == "store" and back:
        raise ValueError("--back: a token store has no way back")
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
    elif kind == "store":
        if not (src / STORE).is_file():
            raise FileNotFoundError(f"{readable(src)}: is no token store ({STORE} is missing)")
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


def check_codec(name: str) -> None:
    """Raise ValueError or FileNotFoundError for what cannot be a codec."""
    if Path(name).exists():
        folder, start = Path(name), name
    else:
        start, colon, number = name.rpartition(":")
        start = start if colon and number.isdecimal() else name
        folder = Path(start)
    if start in CODECS or (folder.is_file() and folder.suffix == ".th"):
        return
    if folder.is_dir():
        if not any(
            (place / "config.json").is_file() for place in (folder, folder / "codec", folder / "model" / "codec")
        ):
            raise FileNotFoundError(f"{folder}: holds no codec (config.json is missing)")
    elif folder.exists() or not is_hub_id(start):
        raise ValueError(
            f"codec '{name}' is unknown; choose one of {', '.join(CODECS)}, or give a folder that holds a codec, "
            "a hub id, or a .th file of the encodec package"
        )


def check_clm(path: Path) -> None:
    """Raise FileNotFoundError or ValueError for what is not a .clm file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'is a folder, not a .clm file' if path.is_dir() else 'no such file'}")
    with path.open("rb") as file:
        if file.read(4) != b"clm\0":
            raise ValueError(f"{path}: is not a .clm file; give one that 'codeclm codec compress' has written")


def _part(values: dict[str, Any], key: str) -> dict[str, Any]:
    return values[key] if isinstance(values.get(key), dict) else {}


def _json(path: Path) -> dict[str, Any]:
    """An object in a JSON file; empty where there is none: what reads it in earnest says what is wrong."""
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
