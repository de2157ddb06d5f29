"""Load a speech LM with its codec: `load()` is the embedded default, `load(folder)` what training has written.

A model folder holds config.json and model.safetensors (transformers' layout), tokenizer.model where there is a text
stream, and `codec/` where the codec is not the embedded one. Loading is strict: nothing missing, unknown, misshapen or
NaN gets through.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..data.text_tokenizer import TextTokenizer
from ..model.codecs import Codec, load_codec
from ..model.hf_config import SpeechLMConfig
from ..model.lm import SpeechLM
from ..model.weights import load_strictly, read_weights
from .checks import no_model
from .generator import SpeechGenerator, check_codec

EMBEDDED_MODEL = Path(__file__).parent.parent / "model" / "pretrained"
DEFAULT = "default"
# what transformers adds to a config.json of its own accord
FOREIGN_KEYS = {"architectures", "dtype", "torch_dtype", "transformers_version", "model_type"}


def load(name_or_folder: str | Path = DEFAULT) -> SpeechGenerator:
    """A `SpeechGenerator`: "default" (embedded) or a folder.

    Raises FileNotFoundError or ValueError in one line: no model there, weights broken, a setting unknown, or the codec
    is not the one that the model was trained on.
    """
    folder = model_folder(name_or_folder)
    model = load_speech_lm(folder)
    codec = load_model_codec(folder, model)
    return SpeechGenerator(model, codec, str(name_or_folder), load_tokenizer(folder, model))


def model_folder(name_or_folder: str | Path) -> Path:
    """The folder that holds config.json: the embedded one, FOLDER, or FOLDER/model of a training run."""
    if str(name_or_folder) == DEFAULT:
        return EMBEDDED_MODEL
    folder = Path(name_or_folder)
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file() and (candidate / "model.safetensors").is_file():
            return candidate
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such model folder (leave --model out for the embedded model)")
    raise FileNotFoundError(no_model(folder))


def load_speech_lm(folder: Path) -> SpeechLM:
    """config.json + model.safetensors -> SpeechLM in float32, eval mode. Raises ValueError or FileNotFoundError."""
    model = SpeechLM(read_config(folder / "config.json"))
    weights = {name: tensor.float() for name, tensor in read_weights(folder / "model.safetensors").items()}
    load_strictly(model, weights, str(folder / "model.safetensors"))
    return model.eval()


def read_config(path: Path) -> SpeechLMConfig:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file, so this folder holds no model") from None
    except ValueError:
        raise ValueError(f"{path}: is not valid JSON") from None
    if not isinstance(values, dict) or values.get("model_type") != SpeechLMConfig.model_type:
        raise ValueError(f"{path}: is not a codeclm model's config")
    values = {key: value for key, value in values.items() if key not in FOREIGN_KEYS}
    known = set(SpeechLMConfig().to_dict())
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{path}: unknown setting '{unknown[0]}'")
    try:
        return SpeechLMConfig(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except TypeError as error:
        raise ValueError(f"{path}: a setting is not of the right kind ({error})") from None


def load_model_codec(folder: Path, model: SpeechLM) -> Codec:
    """The codec in FOLDER/codec, else the embedded one; refused if the model was not trained on it."""
    has_own = (folder / "codec").is_dir()
    # a codec may have more codebooks than its model uses: Moshi's has 32, of which it uses 8
    codec = load_codec(folder / "codec", model.num_codebooks) if has_own else load_codec()
    check_codec(model, codec, str(folder))
    return codec


def load_tokenizer(folder: Path, model: SpeechLM) -> TextTokenizer | None:
    """The tokenizer of a model with a text stream. Raises ValueError if it is not the one it was trained with.

    A converted model names none: its tokens are then given and returned as numbers.
    """
    text = model.config.text_stream
    if not text.vocab_size or not text.tokenizer:
        return None
    tokenizer = TextTokenizer.load(folder)
    if tokenizer.fingerprint != text.tokenizer:
        raise ValueError(
            f"{folder}: the model was trained with the tokenizer {text.tokenizer[:12]}, not with this "
            f"{tokenizer.fingerprint[:12]}; copy the tokenizer.model that belongs to it"
        )
    return tokenizer


def save_model(
    model: SpeechLM,
    codec: Codec,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    tokenizer: TextTokenizer | None = None,
) -> None:
    """Write what `load` reads, whole or not at all. The codec goes along unless it is the embedded one.

    Raises OSError if the disk does not take it; what was in `folder` before is then still there.
    """
    partial, old = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "old"))
    weights = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model.config.save_pretrained(partial)
        save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
        if not is_embedded(codec):
            codec.save(partial / "codec")
        if tokenizer is not None:
            tokenizer.save(partial)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)  # a folder that is not empty cannot be replaced in one go
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (SafetensorError, OSError) as error:
        raise OSError(f"{folder}: the model could not be written ({error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_embedded(codec: Codec) -> bool:
    try:
        return load_codec().fingerprint == codec.fingerprint
    except FileNotFoundError:  # while the embedded codec is being built
        return False
