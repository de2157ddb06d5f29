"""LoRA adapters on disk, in peft's own format, and in a model: their product is added to the weights of the base.

A folder of adapters holds adapter_config.json and adapter_model.safetensors, which peft and others read too, a
config.json (the base's settings) and checksums.json. The base is named in it, and by the hash of its weights. What a
model computes with is plain weights, so everything that takes a model takes one with adapters.
"""

import copy
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..model.checksums import check_files, content_sha256
from ..model.lm import SpeechLM
from ..model.strict import read_object
from .argument_checks import ADAPTER, ADAPTER_WEIGHTS, check_package
from .precision import weights_of

if TYPE_CHECKING:
    from .generator import SpeechGenerator

FILES = (ADAPTER, ADAPTER_WEIGHTS)


@dataclass(frozen=True)
class Base:
    """A model without the adapters that are on it."""

    name: str
    fingerprint: str
    weights: dict[str, Tensor]  # those that the adapters have changed


def use_adapter(lm: "SpeechGenerator", folder: str | Path | None) -> None:
    """See `SpeechGenerator.use_adapter`."""
    if precision := weights_of(lm.model):
        raise ValueError(f"a model loaded with weights={precision!r} takes no adapters any more; give them to load")
    found = None if folder is None else adapter_folder(folder)
    base = lm.base or Base(lm.name, lm.fingerprint, {})
    if found is not None:
        check_base(found, base.fingerprint, base.name)
    now = put(lm.model, base.weights)
    try:
        changed = {} if found is None else merged_weights(lm.model, found)
    except Exception:
        put(lm.model, now)
        raise
    lm.base = replace(base, weights=put(lm.model, changed))
    lm.name = base.name if folder is None else str(folder)
    vars(lm).pop("fingerprint", None)  # it was that of the weights before


def adapter_folder(folder: str | Path) -> Path:
    """FOLDER or FOLDER/model of a run. Raises FileNotFoundError if neither holds adapters."""
    for candidate in (Path(folder), Path(folder) / "model"):
        if is_adapter(candidate):
            return candidate
    raise FileNotFoundError(f"{folder}: holds no adapters ({' and '.join(FILES)} are needed)")


def is_adapter(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def base_of(folder: Path) -> str:
    """The name of the model that the adapters in `folder` were made for. Raises ValueError if none is named."""
    base = read_object(folder / ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{folder / ADAPTER}: names no base model; load that one, with adapter='{folder}'")
    return base


def check_base(folder: Path, fingerprint: str, name: str) -> None:
    """Raise ValueError unless the adapters were made for this model; those of other tools may not say for which."""
    wanted = read_object(folder / ADAPTER).get("revision")
    if wanted and wanted != fingerprint:
        raise ValueError(
            f"{folder}: these adapters belong to the weights {wanted[:12]} of '{base_of(folder)}', "
            f"not to these of '{name}' ({fingerprint[:12]}); load that model with them"
        )


def adapter_hash(folder: Path) -> str:
    """sha256 over the adapters and how they are applied."""
    return hashlib.sha256("".join(content_sha256(folder / name) for name in FILES).encode()).hexdigest()


def merged_weights(model: SpeechLM, folder: Path) -> dict[str, Tensor]:
    """The weights of `model` that adapters change, as they are with them; the model stays as it is.

    Raises ImportError without peft, ValueError in one line for adapters that are broken or of another shape.
    """
    check_package(f"{folder}: LoRA adapters", "peft", "lora")
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTuner

    check_files(folder, FILES)
    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        # a copy, as peft changes the modules of what it wraps
        wrapped = PeftModel(copy.deepcopy(model), PeftConfig.from_pretrained(str(folder)))
        outcome: Any = set_peft_model_state_dict(wrapped, tensors)
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: these adapters do not fit the model, or are broken: {reason}") from None
    missing = [name for name in outcome.missing_keys if "lora_" in name]
    if outcome.unexpected_keys or missing:
        raise ValueError(f"{folder}: these adapters do not fit the model ({[*outcome.unexpected_keys, *missing][0]})")
    if any(not tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError(f"{folder / ADAPTER_WEIGHTS}: holds NaN or infinite numbers")
    assert isinstance(wrapped.base_model, BaseTuner)
    merged = wrapped.base_model.merge_and_unload().state_dict()
    before = model.state_dict()
    return {name: tensor for name, tensor in merged.items() if not tensor.equal(before[name])}


@torch.no_grad()
def put(model: SpeechLM, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Write some weights into a model, in place -> those that were there. The fused frame step notices."""
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach().clone() for name in weights}
    for name, tensor in weights.items():
        parameters[name].copy_(tensor)
    return before
