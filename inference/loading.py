"""Load a speech LM with its codec: `load()` is the embedded default, `load(folder)` what training has written.

A model folder holds config.json and model.safetensors (transformers' layout), tokenizer.model where there is a text
stream, and perhaps ngram.safetensors beside it, `codec/` where the codec is not the embedded one, and checksums.json.
Loading is strict: nothing missing, unknown, misshapen, NaN or changed gets through. A CSM or Moshi folder of
transformers' is taken as it is (foreign.py).
"""

import hashlib
import logging
import shutil
from pathlib import Path

import torch
from torch import Tensor

from ..data.ngram import NGRAM_FILE
from ..data.text_tokenizer import TOKENIZER_FILE, TextTokenizer
from ..model.checksums import CHECKSUMS, check_files, write_checksums
from ..model.checksums import FOREIGN_KEYS as NOTES
from ..model.codecs import EMBEDDED_CODEC, EMBEDDED_FILES, Codec, load_codec
from ..model.convert.checkpoint import local_folder
from ..model.device import resolve_device
from ..model.files import file_sha256, whole_folder
from ..model.hub import fetch, is_hub_id
from ..model.lm import SpeechLM
from ..model.old_names import with_current_names
from ..model.speech_lm_config import SETTINGS, SpeechLMConfig
from ..model.strict import check_names, read_object, shown
from ..model.weights import INDEX, WEIGHTS, load_strictly, pack_int8, read_folder, weight_files, write_weights
from .adapters import adapter_hash, base_of, is_adapter
from .argument_checks import ADAPTER, ADAPTER_WEIGHTS, no_model
from .config import WeightPrecision
from .foreign import foreign_content, foreign_kind, open_foreign
from .generator import SpeechGenerator
from .precision import set_weights, weights_of

logger = logging.getLogger(__name__)

EMBEDDED_MODEL = Path(__file__).parent.parent / "model" / "pretrained"
DEFAULT = "default"
# what transformers adds to a config.json of its own accord
FOREIGN_KEYS = NOTES | {"model_type"}
# what is fetched of a model on the hub: never code
PATTERNS = (
    *("config.json", CHECKSUMS, WEIGHTS, INDEX, "model-*.safetensors", TOKENIZER_FILE, NGRAM_FILE),
    *(ADAPTER, ADAPTER_WEIGHTS),
    *("codec/config.json", f"codec/{CHECKSUMS}", f"codec/{WEIGHTS}"),
)


def load(
    name_or_folder: str | Path = DEFAULT,
    device: str | torch.device = "auto",
    weights: WeightPrecision | None = None,
    rows: int = 1,
    adapter: str | Path | None = None,
    codec: str | Path | None = None,
) -> SpeechGenerator:
    """A `SpeechGenerator`: "default" (embedded), a folder, a training run, or "owner/name" on the Hugging Face hub.

    A run or folder of LoRA adapters is loaded with its base. adapter: one to put on the model (`use_adapter`).
    codec: the Mimi of a CSM or Moshi of transformers' that holds none, as `load_codec` takes it.

    device: where model and codec compute, "auto", "cpu", "cuda", "cuda:N" or "mps". The model is in float32 whatever
    its file holds (`AutoModel.from_pretrained` keeps the file's type: bfloat16 for the embedded one).
    weights: "float32", "float16", "bfloat16" or "int8" for a model that generates and scores in less memory and time,
    and cannot be trained, saved or moved any more (precision.py). rows: that it will mostly generate together.

    Raises FileNotFoundError, ValueError or OSError in one line: no model there, weights broken or changed, a setting
    unknown, the codec not the one that the model was trained on, no such device, weights that the machine is not made
    for, or the hub out of reach.
    """
    target = resolve_device(device)
    folder = model_folder(name_or_folder)
    base = base_folder(folder)
    model, coder = _open(base, codec)
    name = str(name_or_folder) if base == folder else base_of(folder)
    lm = SpeechGenerator(model, coder, name, load_tokenizer(base, model)).to(target)
    if adapter is not None or base != folder:
        lm.use_adapter(name_or_folder if adapter is None else adapter)
    if weights is not None:
        _ = lm.fingerprint  # now, while the weights are as they are in the file
        set_weights(model, weights, rows)
    return lm


def _open(folder: Path, codec: str | Path | None) -> tuple[SpeechLM, Codec]:
    """The model of a folder and its codec; `codec` as for `load`."""
    if kind := foreign_kind(folder):
        found, coder = open_foreign(kind, folder, codec)
        return speech_lm(found.config, found.weights, str(folder)), coder
    if codec is not None:
        raise ValueError(f"codec '{codec}' was given, but {folder} has its own; only a CSM or Moshi may lack it")
    model = load_speech_lm(folder)
    return model, load_model_codec(folder, model)


def model_folder(name_or_folder: str | Path) -> Path:
    """The folder that holds config.json: the embedded one, FOLDER, FOLDER/model of a training run, or a hub id's.

    That of LoRA adapters has the config.json of their base, and no model's weights: `base_folder` is where these are.
    """
    name = str(name_or_folder)
    if name == DEFAULT:
        return EMBEDDED_MODEL
    folder = Path(name_or_folder)
    for candidate in (folder, folder / "model"):
        if is_adapter(candidate):
            return candidate
        if (candidate / "config.json").is_file() and any((candidate / file).is_file() for file in (WEIGHTS, INDEX)):
            return candidate
    if folder.exists():
        raise FileNotFoundError(no_model(folder))
    if isinstance(name_or_folder, Path) or not is_hub_id(name):
        raise FileNotFoundError(f"{folder}: no such model folder; '{DEFAULT}' is the embedded model")
    if foreign_kind(fetch(name, "model", ("config.json",))):
        return local_folder(Path(name))
    return fetch(name, "model", PATTERNS)


def base_folder(folder: Path) -> Path:
    """The folder of the weights: `folder` itself, or that of the base if it holds adapters."""
    if not is_adapter(folder):
        return folder
    try:
        base = model_folder(base_of(folder))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder}: the base of these adapters is not there ({error})") from None
    if is_adapter(base):
        raise ValueError(f"{folder}: the base of these adapters, {base}, is not a whole model")
    return base


def load_speech_lm(folder: Path) -> SpeechLM:
    """config.json + weights -> SpeechLM in float32, eval mode. Raises ValueError or FileNotFoundError."""
    config, files = read_config(folder / "config.json"), weight_files(folder)
    model = speech_lm(config, read_folder(folder), str(files[0] if len(files) == 1 else folder))
    if not check_files(folder, checked_names(folder)):
        logger.info("%s: has no %s, so changed weights would not be noticed", folder, CHECKSUMS)
    return model


def speech_lm(config: SpeechLMConfig, weights: dict[str, Tensor], name: str) -> SpeechLM:
    """A SpeechLM in float32, eval mode, of these weights; `name` is what messages call them. Raises ValueError."""
    with torch.device("meta"):  # a config that asks for more than the file holds is refused before it takes memory
        model = SpeechLM(config)
    weights = {key: tensor.float() for key, tensor in weights.items()}
    load_strictly(model, with_current_names(weights, model.depth_is_first), name)
    return model.eval()


def checksum_note(folder: Path) -> str:
    """Whether the files of a model that was loaded were compared with what was written, in words."""
    if (folder / CHECKSUMS).is_file():
        return f"its files are what was written ({CHECKSUMS})"
    return f"it has no {CHECKSUMS}, so whether its files are what was written is not known"


def checked_names(folder: Path) -> list[str]:
    """The files of a model folder that decide its numbers, the codec's left out."""
    others = [name for name in (INDEX, TOKENIZER_FILE, NGRAM_FILE) if (folder / name).is_file()]
    return ["config.json", *(path.name for path in weight_files(folder)), *others]


def read_config(path: Path) -> SpeechLMConfig:
    """Raises FileNotFoundError, or ValueError in one line: a setting unknown, of another type, or out of range."""
    try:
        values = read_object(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file, so this folder holds no model") from None
    if values.get("model_type") != SpeechLMConfig.model_type:
        found = shown(values.get("model_type"))
        raise ValueError(
            f"{path}: is not a codeclm model's config, nor CSM's or Moshi's (model_type is {found}); "
            "any other model is scored through an adapter (README.md in inference/evaluate)"
        )
    others = {*FOREIGN_KEYS, *SpeechLMConfig().to_dict()} - set(SETTINGS)
    own = {key: value for key, value in values.items() if key not in others}
    try:
        check_names(own, SETTINGS)
        return SpeechLMConfig(**own)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def checkpoint_hash(folder: Path) -> str:
    """sha256 over the settings that decide a model's numbers, and its weights: how config.json is written is no part.

    Raises FileNotFoundError or ValueError for a folder that holds no model.
    """
    if is_adapter(folder):
        return hashlib.sha256(f"{checkpoint_hash(base_folder(folder))} {adapter_hash(folder)}".encode()).hexdigest()
    if foreign_kind(folder):
        settings, files = foreign_content(folder)
    else:
        settings, files = read_config(folder / "config.json").canonical(), weight_files(folder)
    digest = hashlib.sha256(settings.encode())
    for path in files:
        digest.update(bytes.fromhex(file_sha256(path)))
    return digest.hexdigest()


def load_model_codec(folder: Path, model: SpeechLM) -> Codec:
    """The codec in FOLDER/codec, else the embedded one; refused if the model was not trained on it."""
    has_own = (folder / "codec").is_dir()
    # a codec may have more codebooks than its model uses: Moshi's has 32, of which it uses 8
    codec = load_codec(folder / "codec", model.num_codebooks) if has_own else load_codec()
    model.config.codec.require(codec, str(folder))
    return codec


def load_tokenizer(folder: Path, model: SpeechLM) -> TextTokenizer | None:
    """The tokenizer of a model with a text stream. Raises ValueError if it is not the one it was trained with.

    A converted model names none: its tokens are then given and returned as numbers.
    """
    text = model.config.text
    if not text.vocab_size or not text.tokenizer:
        return None
    tokenizer = TextTokenizer.load(folder, text.numbers, text.phonemes)
    if tokenizer.fingerprint != text.tokenizer:
        raise ValueError(
            f"{folder}: the model was trained with the tokenizer {text.tokenizer[:12]}, not with this "
            f"{tokenizer.fingerprint[:12]}; copy the tokenizer.model that belongs to it"
        )
    return tokenizer


def save_model(
    model: SpeechLM,
    codec: Codec | None,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    tokenizer: TextTokenizer | None = None,
    with_codec: bool = False,
    replace: bool = True,
    packed: bool = False,
) -> None:
    """Write what `load` reads, whole or not at all. The codec goes along unless it is the embedded one.

    codec: None where it is not at hand; then `load` asks for FOLDER/codec, unless it is the embedded one.
    with_codec: the embedded codec goes along, too, so that the model does not depend on this version of codeclm.
    replace: what was in `folder` goes, once the new model is whole; else FileExistsError if there is anything.
    packed: matrices in 8 bits a number instead of `dtype`; all else is float32. Codes and nats change a little.
    Raises OSError if the disk does not take it; what was in `folder` before is then still there.
    """
    if precision := weights_of(model):
        raise ValueError(f"a model loaded with weights={precision!r} cannot be saved; load it without")
    dtype = torch.float32 if packed else dtype
    weights = {name: tensor.detach().cpu().to(dtype) for name, tensor in model.state_dict().items()}
    with whole_folder(folder, replace) as partial:
        model.config.save_pretrained(partial)
        write_weights(partial / WEIGHTS, pack_int8(weights, axis=-1) if packed else weights)
        if tokenizer is not None:
            tokenizer.save(partial)
        write_checksums(partial)
        if codec is not None and not is_embedded(codec):
            codec.save(partial / "codec")
        elif with_codec:
            copy_embedded_codec(partial / "codec")


def copy_embedded_codec(folder: Path) -> None:
    """Its files as they are: packed again, their numbers could differ."""
    folder.mkdir()
    for source, name in zip(EMBEDDED_FILES, ("config.json", WEIGHTS), strict=True):
        shutil.copyfile(EMBEDDED_CODEC / source, folder / name)
    write_checksums(folder)


def is_embedded(codec: Codec) -> bool:
    try:
        return load_codec().fingerprint == codec.fingerprint
    except FileNotFoundError:  # while the embedded codec is being built
        return False
