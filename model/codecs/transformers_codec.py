"""EnCodec, Mimi and DAC of transformers as codecs: what they share. Each is used through its public encode and decode.

The codec keeps the tensors of its file as they were (memory-mapped): their names are the same for every version of
transformers, whose modules are not, so the fingerprint is over them, and `save` writes them.
"""

from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..strict import refusing
from ..weights import read_weights
from .base import write_codec
from .blocks import BlockCodec
from .hf_config import check_counts, read_settings


class PretrainedCodec(BlockCodec):
    """A network of transformers', frozen, in float32. Subclasses say which, and set what `Codec` asks for."""

    model_type: ClassVar[str]
    model: Any

    def __init__(self, model: Any, tensors: dict[str, Tensor], values: dict[str, Any]):
        """tensors, values: the content of model.safetensors and config.json."""
        super().__init__()
        self.name, self.tensors, self.values = self.model_type, tensors, values
        self.model = model.float().requires_grad_(False)
        self.eval()

    def fingerprinted(self) -> dict[str, Tensor]:
        return self.tensors

    def save(self, folder: Path) -> None:
        write_codec(folder, self.values | self.leading, self.tensors)


def load_pretrained(kind: type[PretrainedCodec], network: Any, folder: Path, values: dict[str, Any]) -> PretrainedCodec:
    """FOLDER (config.json, model.safetensors) -> codec. network: transformers' model class of this kind.

    Raises FileNotFoundError or ValueError in one line for weights that are missing, broken or not this network's.
    """
    path = folder / "model.safetensors"
    return from_tensors(kind, network, read_weights(path), values, str(path), str(folder / "config.json"))


def from_tensors(
    kind: type[PretrainedCodec], network: Any, tensors: dict[str, Tensor], values: dict[str, Any], path: str, name: str
) -> PretrainedCodec:
    """The same of tensors and settings that were read already; `path` and `name` are what messages call the two."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor if tensor.itemsize > 1 else tensor.float()).all():
            raise ValueError(f"{path}: tensor '{key}' holds NaN or infinite values")
    config = read_settings(network.config_class, values, name)
    check_counts(config, len(tensors), name)
    try:
        with quiet():
            model, info = network.from_pretrained(
                None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # a wrong setting ends in any of a dozen classes
        raise ValueError(f"{path}: does not fit {name} ({' '.join(str(error).split())[:300]})") from None
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise ValueError(f"{path}: tensor '{missing[0]}' is missing from the weights")
    _share(model, tensors)
    try:
        with refusing(name):
            codec = kind(model, tensors, values)
    except ValueError as error:
        raise ValueError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from None
    if min(codec.sample_rate, codec.hop_length, codec.num_codebooks) < 1 or codec.codebook_size < 2:
        raise ValueError(f"{name}: has no samples, no codebooks or no codes")
    return codec


def _share(model: Any, tensors: dict[str, Tensor]) -> None:
    """Let the network use the file's tensors where they are the same, so that memory holds them once."""
    for name, own in [*model.named_parameters(), *model.named_buffers()]:
        if name in tensors and tensors[name].dtype == own.dtype and torch.equal(tensors[name], own):
            own.data = tensors[name]


@contextmanager
def quiet():
    """Without transformers' progress bar and its table of what was loaded: what is wrong is raised as an error."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
