"""LoRA: small matrices beside those of a model learn in its place. How they are read and merged is inference's.

They go beside every matrix of both transformers, codebook 0's head and the projection between them; embeddings, norms
and the depth decoder's heads stay the base's.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..inference.adapters import FILES, is_adapter
from ..inference.generator import SpeechGenerator
from ..inference.loading import EMBEDDED_MODEL, model_folder
from ..model.checksums import COVERED, write_checksums
from ..model.files import whole_folder
from ..model.hub import is_hub_id
from ..model.lm import SpeechLM
from .finetune_config import LoraOptions

if TYPE_CHECKING:
    from peft import PeftModel


def with_adapters(model: SpeechLM, base: SpeechGenerator, options: LoraOptions, seed: int) -> "PeftModel":
    """Put new adapters into `model`, a copy of the base's: they learn, and nothing else does. They change nothing yet.

    Raises ValueError if there are adapters on the base, FileNotFoundError if no folder holds it.
    """
    from peft import LoraConfig, PeftModel

    folder = model_folder(base.name)
    if is_adapter(folder):
        raise ValueError(f"{base.name}: holds adapters; new ones go on a whole model, such as --lora.merge writes")
    torch.manual_seed(seed)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha or 2 * options.rank,  # pyright: ignore[reportArgumentType]
        target_modules=[name for name, module in model.named_modules() if isinstance(module, nn.Linear)],
        base_model_name_or_path=base.name
        if folder == EMBEDDED_MODEL or is_hub_id(base.name)
        else str(folder.resolve()),
        revision=base.fingerprint,
    )
    return PeftModel(model, config)


def save_adapters(adapters: "PeftModel", folder: Path) -> None:
    """Write what `codeclm.load` and peft read: whole or not at all."""
    with whole_folder(folder, replace=True) as partial:
        adapters.save_pretrained(str(partial))
        (partial / "README.md").unlink(missing_ok=True)  # a form to fill in
        model: Any = adapters.base_model.model
        model.config.save_pretrained(partial)
        write_checksums(partial, {*COVERED, *FILES})
